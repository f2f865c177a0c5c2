"""Where a run computes: the device, the processes that decode, and those that share the steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Placement:
    """Where a run computes.

    Attributes:
        device: Of this process.
        workers: Processes that decode images for it; 0 decodes in this one.
        processes: Those that share each step.
        feature_cache: Folder for the features of frozen encoders; none are kept where None.
    """

    device: torch.device
    workers: int
    processes: ProcessGroup = SINGLE_PROCESS
    feature_cache: Path | None = None

"""Where a run computes: the device, the processes that decode, and those that share the steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wiseft_cli.training.distributed import ALONE, Processes


@dataclass(frozen=True)
class Placement:
    """Where a run computes.

    Attributes:
        device: Of this process.
        workers: Processes that decode images for it; 0 decodes in this one.
        processes: Those that share each step.
    """

    device: torch.device
    workers: int
    processes: Processes = ALONE

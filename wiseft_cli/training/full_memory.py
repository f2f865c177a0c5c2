"""Tells a device that is out of memory as an error with what would need less of it.

It measures nothing (`estimate.py` does); which errors mean it is `evaluation/memory.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wiseft_cli.errors import ModelError
from wiseft_cli.evaluation.memory import is_lack_of_memory


@contextmanager
def telling_full_memory(device: torch.device, *, n_images: int | None = None) -> Iterator[None]:
    """Turn an allocation that failed into an error for the person.

    Args:
        device: Where the model computes.
        n_images: Images of a forward pass; None where no image has a part in it yet.
    Raises:
        ModelError: The device is out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        if n_images is None:
            raise ModelError(
                f"{device} is out of memory before the first step: the model does not fit",
                hint="end what else runs there, or take another --device",
            ) from None
        smaller = f"try --micro-batch-size {n_images // 2}, which makes the same update; "
        raise ModelError(
            f"{device} is out of memory with {n_images} images in a forward pass",
            hint=(smaller if n_images > 1 else "")
            + "--grad-checkpointing and --precision bf16 need less too",
        ) from None

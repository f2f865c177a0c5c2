"""Tells a lack of memory as what it is, with what uses less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wiseft_cli.errors import ModelError


@contextmanager
def telling_lack_of_memory(batch_size: int) -> Iterator[None]:
    """Turn an allocation that failed into an error of the environment.

    Args:
        batch_size: Images of one forward pass.
    Raises:
        ModelError: The device or the machine is out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
        raise ModelError(
            f"the memory does not suffice for batches of {batch_size} images: {reason}",
            hint=f"use a smaller --batch-size than {batch_size}, or fewer --workers",
        ) from None


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had, on a device or the host."""
    # The host's allocator raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "can't allocate memory" in str(error)
    )

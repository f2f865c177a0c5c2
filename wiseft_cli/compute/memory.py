"""Turn out-of-memory errors into messages that suggest what needs less memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wiseft_cli.errors import ModelError


@contextmanager
def report_out_of_memory(purpose: str, *, hint: str) -> Iterator[None]:
    """Turn a failed allocation, on a device or the host, into an error with a remedy.

    Args:
        purpose: What the memory is for, such as `batches of 64 images on cuda:0`.
        hint: What needs less memory.
    Raises:
        ModelError: The device or the machine is out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
        raise ModelError(f"not enough memory for {purpose}: {reason}", hint=hint) from None


def _is_out_of_memory(error: BaseException) -> bool:
    # The host's allocator and oneDNN raise plain RuntimeErrors.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        mark in str(error) for mark in ("can't allocate memory", "could not create a primitive")
    )

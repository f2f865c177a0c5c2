"""Turn out-of-memory errors into messages that suggest what needs less memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from wiseft_cli.errors import ModelError

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device, *, n_processes: int = 1) -> int | None:
    """Return the free memory of a device for one process; None if it cannot be known.

    For a GPU that is its own memory; for the CPU, memory that the system can hand out without
    swapping, within the limit of the control group.

    Args:
        n_processes: Processes on this machine that share the memory of the CPU.
    """
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (free,) = (int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, ValueError):  # not on macOS
        return None
    with contextlib.suppress(OSError, ValueError):  # "max" without a limit
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()))
    return free // n_processes


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

"""Turn the text of `--device` into a torch device of this machine, and set the CPU threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.errors import ModelError, UsageError


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Let torch use this number of CPU threads in the block; None keeps its number."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def resolve_device(text: str, launch: Launch | None = None) -> torch.device:
    """Return the device that `text` names.

    Args:
        text: `auto` (CUDA if available, otherwise the CPU), or any name that torch knows, such
            as `cpu`, `cuda`, `cuda:1` or `mps`.
        launch: The rank of this process; under torchrun each process uses a GPU of its own.
    Raises:
        UsageError: torch does not know this kind of device, or several processes would share it.
        ModelError: The device is not on this machine, or there are fewer GPUs than processes.
    """
    if launch is not None and launch.world_size > 1 and text != "cpu":
        text = _device_of_rank(text, launch)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UsageError(
            f"--device {text}: unknown device", hint="use auto, cpu, cuda, cuda:N or mps"
        ) from None
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "not available"
        raise ModelError(
            f"--device {text}: cannot be used on this machine: {reason}",
            hint="use --device cpu, or auto to use a GPU only if there is one",
        ) from None
    return device


def _device_of_rank(text: str, launch: Launch) -> str:
    if text not in ("auto", "cuda"):
        raise UsageError(
            f"--device {text} for {launch.world_size} processes, expected auto, cuda or cpu:"
            " each process uses a GPU of its own"
        )
    n_devices = torch.cuda.device_count()
    if n_devices == 0:
        return "cpu" if text == "auto" else text
    if launch.local_world_size > n_devices:
        raise ModelError(
            f"{launch.local_world_size} processes on a machine with {n_devices} GPUs, expected"
            " at most one process per GPU",
            hint=f"torchrun --nproc-per-node {n_devices} ..., or --device cpu",
        )
    return f"cuda:{launch.local_rank}"

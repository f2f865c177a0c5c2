"""Turn the text of `--device` into a torch device that is really there.

It does not move anything to the device.
"""

from __future__ import annotations

import torch

from wiseft_cli.errors import ModelError, UsageError


def resolve_device(text: str) -> torch.device:
    """Return the device that `text` names.

    Args:
        text: `auto` (the first CUDA device where there is one, otherwise the CPU), or any name
            torch knows, such as `cpu`, `cuda`, `cuda:1` or `mps`.
    Raises:
        UsageError: torch knows no such kind of device.
        ModelError: The device is not on this machine.
    """
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
            hint="use --device cpu, or auto to take a GPU only where there is one",
        ) from None
    return device

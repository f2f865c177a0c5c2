"""Numerical precision: autocast of the image encoder, loss scaling, deterministic algorithms.

Weights, gradients, optimizer state, the classification head and the loss are float32 in every
precision.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from wiseft_cli.errors import RecipeError, UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "fp16")
"""The precisions in which image encoders can compute."""


def require_precision(precision: str) -> None:
    """Reject a precision that is not one of `PRECISIONS`.

    Raises:
        UsageError: It is another text, such as `float32`.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which modules compute in a precision.

    Args:
        precision: One of `PRECISIONS`; nothing changes for `fp32`.
        device: Where the modules are.
    """
    if precision == "fp32":
        return nullcontext()
    # lazy: torch costs seconds
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=dtype)
    return context


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler of a run; it does nothing for fp32 and bf16.

    fp16 has no numbers below 6e-8, where most gradients of a large model lie. The loss is scaled
    up before the backward pass and gradients are scaled down after it; a step whose gradients
    overflow is skipped and the scale is halved. `state_dict()` belongs to the state of a run.
    """
    # lazy: torch costs seconds
    import torch

    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def deterministic_algorithms(enabled: bool, device: torch.device) -> Iterator[None]:
    """Use only algorithms that give the same bits each time, and restore the settings after.

    Raises:
        RecipeError: An operation of the model has no such algorithm on this device.
    """
    if not enabled:
        yield
        return
    # lazy: torch costs seconds
    import torch

    if device.type == "cuda":
        # cuBLAS reads this when it starts, at the first matrix product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).splitlines()[0].split(", but you set")[0]
        raise RecipeError(
            f"deterministic: {reason} on {device}", hint="train with --no-deterministic"
        ) from None
    finally:
        torch.set_deterministic_debug_mode(before)

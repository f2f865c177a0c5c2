"""In which arithmetic a step is computed: autocast, the scaler of fp16, deterministic algorithms.

Weights, gradients and the optimizer's moments are float32 whatever the precision; so are the
classification head and the loss. It knows neither the loop nor the CLI.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

from wiseft_cli.errors import RecipeError
from wiseft_cli.model.classifier import ImageClassifier

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def encode_in(
    precision: str, classifier: ImageClassifier, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the image encoder in a precision: images (B, 3, H, W) to float32 features (B, D).

    Args:
        precision: `fp32`, `bf16` or `fp16`.
        device: Where the model computes.
    """
    if precision == "fp32":
        return classifier.encode_image

    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=_AUTOCAST_DTYPES[precision]):
            features = classifier.visual(images)
        return functional.normalize(features.float(), dim=-1)

    return encode


def logits_in(
    precision: str, classifier: ImageClassifier, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the classifier in a precision: images (B, 3, H, W) to float32 logits (B, C).

    The head is computed in float32: near 30, where logits of CLIP lie, bfloat16 knows no
    numbers between 30 and 30.125.
    """
    if precision == "fp32":
        return classifier
    encode = encode_in(precision, classifier, device)
    return lambda images: classifier.classification_head(encode(images))


def enable_grad_checkpointing(classifier: ImageClassifier) -> None:
    """Make the image encoder compute its activations again in the backward pass.

    Raises:
        RecipeError: The encoder has no such mode; some take the call and do nothing.
    """
    classifier.visual.set_grad_checkpointing(True)  # type: ignore[operator]
    if not any(getattr(part, "grad_checkpointing", False) for part in classifier.modules()):
        raise RecipeError(
            "grad_checkpointing: the image encoder"
            f" ({type(classifier.visual).__name__}) does not support it",
            hint="train without it; --micro-batch-size saves memory with every model",
        )


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler of a run; for fp32 and bf16 one that does nothing.

    fp16 has no numbers below 6e-8, where most gradients of a large model lie: the loss is
    scaled up before the backward pass, gradients down after it, and a step whose gradients
    overflowed is left out and the scale halved. `state_dict()` is a part of a run's state.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def deterministic_algorithms(wanted: bool, device: torch.device) -> Iterator[None]:
    """Ask torch for algorithms that give the same bits each time, and put its settings back.

    Raises:
        RecipeError: An operation of the model has no such algorithm on this device.
    """
    if not wanted:
        yield
        return
    if device.type == "cuda":
        # Read when cuBLAS starts, which is at the first matrix product.
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

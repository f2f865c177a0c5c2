"""The precision an image encoder computes in, with everything after it in float32.

It knows no training: gradients and their scaling are `training/`'s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wiseft_cli.model.classifier import ImageClassifier

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def encoder_in(
    precision: str, classifier: ImageClassifier, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return the image encoder in a precision: images (B, 3, H, W) to float32 features (B, D).

    Weights stay float32 and are cast by autocast. The features are normalised, and the head is
    to be applied, in float32: near 30, where logits of CLIP lie, neighbouring bfloat16 numbers
    are 0.125 apart.

    Args:
        precision: `fp32`, `bf16` or `fp16`.
        device: Where the classifier is.
    """
    if precision == "fp32":
        return classifier.encode_image

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision]):
            features = classifier.visual(images)
        return functional.normalize(features.float(), dim=-1)

    return encode

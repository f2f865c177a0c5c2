"""The classifier every command after the first works on: image encoder and linear head.

    logits = normalize(visual(images)) @ weight.T + bias

`visual.*` are the tensors of open_clip's image tower; `classification_head.*` is the head, with
exp(logit_scale) inside its weight.
Paper: Wortsman et al. 2022, arXiv:2109.01903, section 3 and appendix D.2.
It does not build the head from text (`zeroshot_head.py`) and does not write files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wiseft_cli.checkpoint.card import Card, ModelSpec
from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint
from wiseft_cli.compute.precision import autocast
from wiseft_cli.errors import CheckpointError, NotACheckpointError, list_some
from wiseft_cli.model.image_encoder import assign_weights, build_image_encoder

HEAD_WEIGHT = "classification_head.weight"
HEAD_BIAS = "classification_head.bias"
_VISUAL_PREFIX = "visual."


class ImageClassifier(nn.Module):
    """An image encoder with a linear head on its normalised features.

    Args:
        visual: open_clip's image tower; images (B, 3, H, W) -> image features (B, D).
        classification_head: Linear layer D -> C.
    """

    def __init__(self, visual: nn.Module, classification_head: nn.Linear) -> None:
        super().__init__()
        self.visual = visual
        self.classification_head = classification_head

    def encode_image(self, images: Tensor, *, precision: str = "fp32") -> Tensor:
        """Return L2-normalised image features (B, D) of preprocessed images (B, 3, H, W).

        The encoder computes in `precision`, one of `PRECISIONS`; features are float32, because
        near 30, where logits of CLIP lie, neighbouring bfloat16 numbers are 0.125 apart.
        """
        with autocast(precision, images.device):
            features: Tensor = self.visual(images)
        if precision != "fp32":
            features = features.float()
        return functional.normalize(features, dim=-1)

    def forward(self, images: Tensor, *, precision: str = "fp32") -> Tensor:
        """Return logits (B, C) of preprocessed images (B, 3, H, W)."""
        logits: Tensor = self.classification_head(self.encode_image(images, precision=precision))
        return logits


def build_classification_head(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return the linear layer with these very tensors: weight (C, D) and bias (C,), no copy."""
    class_count, feature_dim = weight.shape
    head = nn.Linear(feature_dim, class_count, device="meta")
    head.load_state_dict({"weight": weight, "bias": bias}, strict=True, assign=True)
    return head


def load_classifier(
    path: Path, *, device: torch.device | str = "cpu"
) -> tuple[ImageClassifier, Card]:
    """Rebuild a classifier from a checkpoint alone.

    Args:
        path: A checkpoint of any role that holds a model.
        device: Where the classifier is moved.
    Returns:
        The classifier in evaluation mode with float32 weights, and the file's card.
    Raises:
        NotACheckpointError: Not safetensors, or without a card.
        CheckpointError: No model in the card, or tensors that are not the model's.
        ModelError: The card's config cannot be built.
    """
    with open_checkpoint(path) as reader:
        card, spec = _card_with_model(reader)
        visual = build_image_encoder(spec.config)
        _check_tensors(path, reader.tensors, _expected_shapes(visual, card, spec))
        state_dict = {name: _read_tensor(reader, name) for name in reader.tensors}
    head = build_classification_head(state_dict.pop(HEAD_WEIGHT), state_dict.pop(HEAD_BIAS))
    tower = {name.removeprefix(_VISUAL_PREFIX): tensor for name, tensor in state_dict.items()}
    classifier = ImageClassifier(assign_weights(visual, tower), head)
    return classifier.eval().to(device), card


def state_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a module's state dict as arrays by name; a classifier's is its checkpoint's.

    Floating tensors are float32, integers as they are. Arrays share memory with tensors that
    are float32 on the CPU already, so that writing a module needs no second copy of it.
    """
    arrays = {}
    for name, tensor in module.state_dict().items():
        stored = tensor.detach().to("cpu")
        arrays[name] = (stored.float() if stored.is_floating_point() else stored).numpy()
    return arrays


def _card_with_model(reader: CheckpointReader) -> tuple[Card, ModelSpec]:
    card = reader.card
    if card is None:
        raise NotACheckpointError(
            f"{reader.path}: has no wiseft card, expected a checkpoint written by wiseft",
            hint="make one with `wiseft zeroshot-head`",
        )
    if card.model is None:
        raise CheckpointError(
            f"{reader.path}: its card names no model, expected a classifier",
            hint="a merge of files that are not wiseft's can be merged again, but not run",
        )
    return card, card.model


def _expected_shapes(visual: nn.Module, card: Card, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    class_count = len(card.classes)
    shapes = {
        _VISUAL_PREFIX + name: tuple(tensor.shape) for name, tensor in visual.state_dict().items()
    }
    shapes[HEAD_WEIGHT] = (class_count, spec.config["embed_dim"])
    shapes[HEAD_BIAS] = (class_count,)
    return shapes


def _check_tensors(
    path: Path, found: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a file whose tensors are not exactly those of its card's model, naming each."""
    problems = []
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            problems.append(f"{name}: missing, expected shape {expected[name]}")
        elif name not in expected:
            problems.append(f"{name}: unknown to the model")
        elif found[name].shape != expected[name]:
            problems.append(f"{name}: shape {found[name].shape}, expected {expected[name]}")
    if problems:
        lines = "".join(f"\n  {line}" for line in list_some(problems))
        raise CheckpointError(
            f"{path}: does not hold the classifier its card describes{lines}",
            hint="the file was changed after wiseft wrote it; write it again",
        )


def _read_tensor(reader: CheckpointReader, name: str) -> Tensor:
    array = reader.read_array(name)
    if reader.tensors[name].dtype.startswith(("F", "BF")):
        array = array.astype(np.float32, copy=False)
    return torch.from_numpy(array)

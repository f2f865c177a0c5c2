"""The classifier: an image encoder and a linear head on its normalized features.

    logits = normalize(visual(images)) @ weight.T + bias

A checkpoint holds `visual.*`, the tensors of open_clip's image tower, and
`classification_head.*`, the head, whose weight includes the factor exp(logit_scale).
Paper: Wortsman et al. 2022, arXiv:2109.01903, section 3 and appendix D.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wiseft_cli.checkpoint.card import Card, ModelSpec
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint, require_classifier
from wiseft_cli.compute.devices import resolve_device
from wiseft_cli.compute.precision import autocast
from wiseft_cli.errors import CheckpointError
from wiseft_cli.model.image_encoder import assign_weights, build_image_encoder
from wiseft_cli.model.transforms import Transform, eval_transform

HEAD_WEIGHT = "classification_head.weight"
HEAD_BIAS = "classification_head.bias"
_VISUAL_PREFIX = "visual."


class ImageClassifier(nn.Module):
    """An image encoder with a linear head on its normalized features.

    Args:
        visual: open_clip's image tower; images (B, 3, H, W) -> image features (B, D).
        classification_head: Linear layer D -> C.
    """

    def __init__(self, visual: nn.Module, classification_head: nn.Linear) -> None:
        super().__init__()
        self.visual = visual
        self.classification_head = classification_head

    def encode_image(self, images: Tensor, *, precision: str = "fp32") -> Tensor:
        """Return L2-normalized image features (B, D) of preprocessed images (B, 3, H, W).

        The encoder computes in `precision`, one of `PRECISIONS`. Features are always float32:
        near 30, a typical logit of CLIP, adjacent bfloat16 numbers differ by 0.125.
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


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that is ready to classify images.

    Attributes:
        model: Images (B, 3, H, W) -> logits (B, C); float32 and in evaluation mode.
        transform: PIL image -> input of the model (3, H, W).
        class_names: Names of the C classes.
        card: The checkpoint's card: class ids, preprocessing, history.
    """

    model: ImageClassifier
    transform: Transform
    class_names: tuple[str, ...]
    card: Card


def load_checkpoint(path: str | Path, *, device: str = "cpu") -> LoadedCheckpoint:
    """Load a checkpoint as a torch module, with its transform and class names.

    Args:
        path: A zero-shot, fine-tuned or merged checkpoint.
        device: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto` for CUDA if available.
    Raises:
        NotACheckpointError: The file is not a safetensors file or has no card.
        CheckpointError: The card names no model, or the tensors do not match the model.
        ModelError: The model cannot be built, or the device is not available.
    """
    model, card = load_classifier(Path(path), device=resolve_device(device))
    names = tuple(entry.name for entry in card.classes)
    return LoadedCheckpoint(model, eval_transform(card.preprocess or {}), names, card)


def load_classifier(
    path: Path, *, device: torch.device | str = "cpu"
) -> tuple[ImageClassifier, Card]:
    """Rebuild the classifier of a checkpoint.

    Args:
        path: A checkpoint of any role, in shards too.
        device: Device of the classifier.
    Returns:
        The classifier in evaluation mode with float32 weights, and the card; its `model` is set.
    Raises:
        NotACheckpointError: The file is not a safetensors file or has no card.
        CheckpointError: The card names no model, or the tensors do not match the model.
        ModelError: The model cannot be built from the card.
    """
    with open_checkpoint(path, allow_shards=True) as reader:
        card = require_classifier(reader)
        assert card.model is not None
        spec = card.model
        visual = build_image_encoder(spec.config)
        _check_tensors(reader, _expected_shapes(visual, card, spec))
        state_dict = {name: _read_tensor(reader, name) for name in reader.tensors}
    head = build_classification_head(state_dict.pop(HEAD_WEIGHT), state_dict.pop(HEAD_BIAS))
    tower = {name.removeprefix(_VISUAL_PREFIX): tensor for name, tensor in state_dict.items()}
    classifier = ImageClassifier(assign_weights(visual, tower), head)
    return classifier.eval().to(device), card


def build_classification_head(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer of a weight (C, D) and a bias (C,), without a copy."""
    class_count, feature_dim = weight.shape
    head = nn.Linear(feature_dim, class_count, device="meta")
    head.load_state_dict({"weight": weight, "bias": bias}, strict=True, assign=True)
    return head


def state_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a module's state dict as arrays, as a checkpoint stores them.

    Floating-point tensors become float32. Arrays share memory with tensors that are already
    float32 on the CPU, so writing a module needs no second copy.
    """
    arrays = {}
    for name, tensor in module.state_dict().items():
        stored = tensor.detach().to("cpu")
        arrays[name] = (stored.float() if stored.is_floating_point() else stored).numpy()
    return arrays


def _expected_shapes(visual: nn.Module, card: Card, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    class_count = len(card.classes)
    shapes = {
        _VISUAL_PREFIX + name: tuple(tensor.shape) for name, tensor in visual.state_dict().items()
    }
    shapes[HEAD_WEIGHT] = (class_count, spec.config["embed_dim"])
    shapes[HEAD_BIAS] = (class_count,)
    return shapes


def _check_tensors(reader: CheckpointReader, expected: dict[str, tuple[int, ...]]) -> None:
    found = {name: info.shape for name, info in reader.tensors.items()}
    faults = []
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            faults.append(f"{name}: missing, expected shape {expected[name]}")
        elif name not in expected:
            faults.append(f"{name}: unknown to the model")
        elif found[name] != expected[name]:
            faults.append(f"{name}: shape {found[name]}, expected {expected[name]}")
    if faults:
        raise CheckpointError(
            f"{reader.path}: the tensors do not match the card",
            faults=faults,
            hint="the file was changed after wiseft wrote it; create it again",
        )


def _read_tensor(reader: CheckpointReader, name: str) -> Tensor:
    array = reader.read_array(name)
    if reader.tensors[name].dtype.startswith(("F", "BF")):
        array = array.astype(np.float32, copy=False)
    return torch.from_numpy(array)

"""Inspect a local file of CLIP weights and load it into a model.

Nothing is unpickled: `.safetensors` files are read directly, all others with torch's weights-only
loader. open_clip's loader converts the names it knows. `model_source.py` decides which file
belongs to a model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from wiseft_cli.checkpoint.format import read_header
from wiseft_cli.errors import ModelError
from wiseft_cli.model.classifier import HEAD_WEIGHT
from wiseft_cli.model.quiet import quiet_libraries

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
OPENAI_KEYS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries of OpenAI's state dicts that are not weights."""


@dataclass(frozen=True)
class WeightsFile:
    """A weights file.

    Attributes:
        shapes: Shape of each tensor by name.
        digest: `sha256:...` of the file.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    digest: str

    @property
    def is_from_openai(self) -> bool:
        """Whether these are OpenAI's own weights, which were trained with QuickGELU."""
        return self.shapes.keys() >= OPENAI_KEYS


def inspect_weights(path: Path) -> WeightsFile:
    """Read the names and shapes of the tensors in a weights file, and its digest.

    Raises:
        NotACheckpointError: A `.safetensors` file is damaged.
        ModelError: The file is missing, of an unsupported type, cannot be read without
            unpickling, or holds a classifier or no state dict.
    """
    if not path.is_file():
        raise ModelError(f"{path}: not a file, expected model weights")
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path}: unsupported file type {path.suffix!r}",
            hint=f"supported types are {', '.join(SUFFIXES)}",
        )
    if path.suffix == ".safetensors":
        shapes = {name: info.shape for name, info in read_header(path).tensors.items()}
    else:
        shapes = _torch_shapes(path)
    if HEAD_WEIGHT in shapes:
        raise ModelError(
            f"{path}: holds a classifier (image encoder and head), expected a whole CLIP model",
            hint=f"to use its image encoder, add --image-encoder {path} and set --pretrained to "
            "the weights it was made from",
        )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return WeightsFile(path, shapes, f"sha256:{digest}")


def load_weights(model: nn.Module, weights: WeightsFile) -> None:
    """Load a weights file into a whole CLIP model, strictly.

    Raises:
        ModelError: Tensors are missing, unknown, or have other shapes.
    """
    with quiet_libraries():
        try:
            outcome = open_clip.load_checkpoint(
                model, str(weights.path), strict=False, weights_only=True
            )
            faults = [f"{name}: missing from the file" for name in outcome.missing_keys]
            unknown = sorted(set(outcome.unexpected_keys) - OPENAI_KEYS)
            faults += [f"{name}: unknown to the model" for name in unknown]
        except Exception as error:  # open_clip's conversions raise errors of any type
            faults = _find_differences(model, weights) or str(error).splitlines()
            faults = faults or [type(error).__name__]
    if faults:
        raise ModelError(
            f"{weights.path}: does not hold the weights of this model",
            faults=faults,
            hint="check that --model is the architecture that these weights were trained with",
        )


def _find_differences(model: nn.Module, weights: WeightsFile) -> list[str]:
    return [
        f"{name}: missing from the file"
        if name not in weights.shapes
        else f"{name}: shape {weights.shapes[name]}, expected {tuple(tensor.shape)}"
        for name, tensor in model.state_dict().items()
        if weights.shapes.get(name) != tuple(tensor.shape)
    ]


def _torch_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        content: Any = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # a hostile or damaged file raises errors of any type
        hint = "nothing is unpickled; if you trust the file, convert it to .safetensors"
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"contains {found[1]}"
        elif "TorchScript" in str(error):
            reason = "a TorchScript archive, which contains code"
            hint = "for OpenAI's models use --pretrained openai instead of the file"
        else:
            reason = "damaged, or not written by torch.save"
        raise ModelError(
            f"{path}: rejected by torch's weights-only loader: {reason}", hint=hint
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        found_keys = isinstance(content, dict) and ", ".join(map(str, list(content)[:10]))
        raise ModelError(
            f"{path}: expected a state dict (names to tensors), found a {type(content).__name__}"
            + (f" with keys {found_keys}" if found_keys else ""),
            hint="save `model.state_dict()`, or a dict with that under the key `state_dict`",
        )
    return {
        str(name).removeprefix("module."): tuple(getattr(value, "shape", ()))
        for name, value in content.items()
    }

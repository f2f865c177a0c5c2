"""Inspect a local file of CLIP weights and load it into a model.

Nothing is unpickled: `.safetensors` files are read directly, all others with torch's weights-only
loader. Names of transformers and timm are converted here, some others by open_clip's loader.
`model_source.py` decides which file belongs to a model.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.factory import load_state_dict
from torch import Tensor, nn

from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.checkpoint.shards import INDEX_SUFFIX
from wiseft_cli.convert.convert import convert_names
from wiseft_cli.convert.plain_names import read_plainly
from wiseft_cli.convert.source import open_source
from wiseft_cli.errors import ModelError, counted, did_you_mean_path
from wiseft_cli.merging.causes import find_renaming
from wiseft_cli.model.classifier import HEAD_WEIGHT
from wiseft_cli.model.quiet import quiet_libraries

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
OPENAI_KEYS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries of OpenAI's state dicts that are not weights."""
_CONVERTED_NAME = re.compile(
    r"(?:^|\.)(?:vision_model\.)?embeddings\.patch_embedding\.weight$|^blocks\.0\.attn\.qkv\.weight$"
)
"""Names in files of transformers and timm."""
MAX_LOGIT_FACTOR = 1000
"""Largest plausible exp(logit_scale); CLIP's training limits it to 100."""


@dataclass(frozen=True)
class WeightsFile:
    """A weights file.

    Attributes:
        shapes: Shape of each tensor by name.
        digest: `sha256:...` of the file.
        is_converted: Whether the file has names of transformers or timm; `shapes` has open_clip's.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    digest: str
    is_converted: bool = False

    @property
    def is_from_openai(self) -> bool:
        """Whether these are OpenAI's own weights, which were trained with QuickGELU."""
        return self.shapes.keys() >= OPENAI_KEYS

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a model's tensor in the file, or None if the file lacks it.

        A model with a text tower of its own has `text.*` where older files have no prefix.
        """
        return self.shapes.get(name, self.shapes.get(name.removeprefix("text.")))


def inspect_weights(path: Path, *, is_tower: bool = False) -> WeightsFile:
    """Read the names and shapes of the tensors in a weights file, and its digest.

    Args:
        path: The file.
        is_tower: Whether the file holds an image encoder, possibly with a head.
    Raises:
        NotACheckpointError: A `.safetensors` file is damaged.
        ModelError: The file is missing, of an unsupported type, cannot be read without
            unpickling, or holds a classifier or no state dict.
    """
    if not path.is_file():
        raise ModelError(
            f"{path}: not a file, expected model weights", hint=did_you_mean_path(path)
        )
    if path.suffix not in SUFFIXES and not path.name.endswith(INDEX_SUFFIX):
        raise ModelError(
            f"{path}: unsupported file type {path.suffix!r}",
            hint=f"supported types are {', '.join(SUFFIXES)}",
        )
    is_converted = False
    if path.suffix == ".safetensors" or path.name.endswith(INDEX_SUFFIX):
        with open_source(path) as source:
            shapes, is_converted = _find_shapes(source.reader)
            files = source.reader.files
    else:
        shapes, files = _torch_shapes(path), (path,)
        if any(map(_CONVERTED_NAME.search, shapes)):
            with open_source(path) as source:
                shapes, is_converted = _find_shapes(source.reader)
    if HEAD_WEIGHT in shapes and not is_tower:
        raise ModelError(
            f"{path}: holds a classifier (image encoder and head), expected a whole CLIP model",
            hint=f"to use its image encoder, add --image-encoder {path} and set --pretrained to "
            "the weights it was made from",
        )
    return WeightsFile(path, shapes, _digest_of(files), is_converted)


def _find_shapes(reader: CheckpointReader) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return the shapes under open_clip's names, and whether the file has other names."""
    naming = read_plainly(reader)[1]
    is_converted = naming is not None and naming.library != "open_clip"
    tensors = convert_names(reader, "open_clip").reader.tensors if is_converted else reader.tensors
    return {
        name.removeprefix("module."): info.shape for name, info in tensors.items()
    }, is_converted


def _digest_of(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a file, or of the files of a sharded checkpoint together."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while data := stream.read(1 << 20):
                digest.update(data)
    return f"sha256:{digest.hexdigest()}"


def _read_converted(path: Path) -> dict[str, Tensor]:
    """Read a file of transformers or timm under open_clip's names; float32."""
    with open_source(path) as source:
        reader = convert_names(source.reader, "open_clip").reader
        return {
            name: torch.from_numpy(reader.read_array(name).astype(np.float32, copy=False))
            for name in reader.tensors
        }


def load_weights(model: nn.Module, weights: WeightsFile) -> None:
    """Load a weights file into a whole CLIP model, strictly.

    Raises:
        ModelError: Tensors are missing, unknown, have other shapes, or hold values that are not
            finite; or the logit scale is not a logarithm.
    """
    with quiet_libraries():
        try:
            if weights.is_converted:
                outcome: Any = model.load_state_dict(_read_converted(weights.path), strict=False)
            else:
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
            hint=_likely_cause(model, weights),
        )
    check_finite(weights.path, model.state_dict())
    _check_logit_scale(model, weights)


def load_tower(visual: nn.Module, path: Path) -> WeightsFile:
    """Load a file of image encoder weights, written by any program, into an image tower.

    The names are those of open_clip's tower, with or without a prefix that ends in `visual.`;
    with it, all other tensors are ignored.

    Raises:
        NotACheckpointError: A `.safetensors` file is damaged.
        ModelError: The file cannot be read, or does not match the tower.
    """
    weights = inspect_weights(path, is_tower=True)
    if weights.is_converted:
        tensors = _read_converted(path)
    else:
        with quiet_libraries():
            tensors = load_state_dict(str(path), device="cpu", weights_only=True)
    expected = visual.state_dict()
    prefix = _tower_prefix(tensors, expected)
    tower = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    faults = []
    for name in sorted(tower.keys() | expected.keys()):
        if name not in tower:
            faults.append(f"{name}: missing from the file")
        elif name not in expected:
            faults.append(f"{name}: unknown to the model")
        elif tower[name].shape != expected[name].shape:
            shapes = tuple(tower[name].shape), tuple(expected[name].shape)
            faults.append(f"{name}: shape {shapes[0]}, expected {shapes[1]}")
    if faults:
        raise ModelError(
            f"{path}: does not hold the image encoder of this model",
            faults=faults,
            hint="check that --model is the architecture that this encoder was trained with, and "
            "that its tensors have open_clip's names (visual.*)",
        )
    visual.load_state_dict(tower, strict=True)
    return weights


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Reject tensors with infinite or NaN values.

    Raises:
        ModelError: With the names of these tensors and the number of such values.
    """
    faults = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            count = tensor.numel() - int(tensor.isfinite().sum())
            if count:
                faults.append(f"{name}: {count:,} of {counted(tensor.numel(), 'value')}")
    if faults:
        raise ModelError(
            f"{path}: has values that are infinite or NaN",
            faults=faults,
            hint="the training diverged or the file is damaged; use an earlier checkpoint or "
            "another copy",
        )


def _check_logit_scale(model: Any, weights: WeightsFile) -> None:
    scale = float(model.logit_scale.detach().float().max())
    if scale > math.log(MAX_LOGIT_FACTOR):
        raise ModelError(
            f"{weights.path}: logit_scale is {scale:g}, expected the logarithm of the factor on "
            f"cosine similarities, at most {math.log(MAX_LOGIT_FACTOR):.4g}",
            hint="the factor itself was probably stored; store its logarithm, "
            f"{math.log(scale):.6g}",
        )


def _tower_prefix(names: Iterable[str], expected: Iterable[str]) -> str:
    """Return the prefix in front of a tower's names: empty, or one that ends in `visual.`."""
    counts = Counter(
        name[: name.index("visual.") + len("visual.")]
        for name in names
        if name.startswith("visual.") or ".visual." in name
    )
    is_plain = not counts or any(name in set(names) for name in expected)
    return "" if is_plain else counts.most_common(1)[0][0]


def _find_differences(model: nn.Module, weights: WeightsFile) -> list[str]:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    faults = [
        f"{name}: missing from the file"
        if weights.shape_of(name) is None
        else f"{name}: shape {weights.shape_of(name)}, expected {shape}"
        for name, shape in expected.items()
        if weights.shape_of(name) != shape
    ]
    known = {*expected, *(name.removeprefix("text.") for name in expected), *OPENAI_KEYS}
    return faults + [
        f"{name}: unknown to the model" for name in sorted(weights.shapes.keys() - known)
    ]


def _likely_cause(model: nn.Module, weights: WeightsFile) -> str:
    """Return the likely cause of differences in names or shapes, and its remedy."""
    expected, found = set(model.state_dict()), weights.shapes.keys()
    unknown = found - expected
    if unknown == {"logit_bias"}:
        return (
            "the weights have a logit bias, as SigLIP's have, and the model has none; use a SigLIP "
            "--model, or set init_logit_bias in the config of a local-dir: model"
        )
    if found and all(name.startswith("visual.") for name in found):
        return (
            f"the file holds an image encoder alone; add --image-encoder {weights.path} and set "
            "--pretrained to the weights it was made from"
        )
    if any(name.startswith(("vision_model.", "text_model.")) for name in unknown):
        return (
            "the file has transformers' tensor names (vision_model.*); use weights with "
            "open_clip's names (visual.*)"
        )
    renaming = find_renaming(
        _as_tensors({name: tuple(t.shape) for name, t in model.state_dict().items()}),
        _as_tensors(weights.shapes),
    )
    if renaming is not None:
        return renaming.describe().replace("the second file", "the file")
    return "check that --model is the architecture that these weights were trained with"


def _as_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, "F32", shape, 0, 4 * math.prod(shape))
        for name, shape in shapes.items()
    }


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

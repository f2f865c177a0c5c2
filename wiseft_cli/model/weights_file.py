"""A local file of CLIP weights: what is in it, and how it gets into a model.

Nothing is unpickled: `.safetensors` is read as such, everything else through torch's
weights-only loader. open_clip's own loader does the rest, renaming what it knows.
It does not decide which file belongs to a model; `model_source.py` does.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from wiseft_cli.checkpoint.format import read_header
from wiseft_cli.errors import ModelError, NotACheckpointError, list_some
from wiseft_cli.model.classifier import HEAD_WEIGHT
from wiseft_cli.model.quiet import quiet_libraries

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_CHUNK_BYTES = 1 << 20
OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries that OpenAI's own state dicts carry beside their weights."""


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        shapes: Shape of each tensor by name.
        digest: `sha256:...` of the file.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    digest: str

    @property
    def has_openai_marks(self) -> bool:
        """Whether these are OpenAI's own weights, which were trained with QuickGELU."""
        return self.shapes.keys() >= OPENAI_MARKS


def examine_weights(path: Path) -> WeightsFile:
    """Look into a weights file without loading its data.

    Raises:
        ModelError: Missing, of an unknown kind, a TorchScript archive, in need of unpickling,
            no state dict, or that of a classifier.
    """
    if not path.is_file():
        raise ModelError(f"{path}: is no file, expected model weights")
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path}: weights of the kind {path.suffix or 'without a suffix'!r} are not read",
            hint=f"give a file that ends in {', '.join(SUFFIXES)}",
        )
    shapes = _safetensors_shapes(path) if path.suffix == ".safetensors" else _torch_shapes(path)
    if HEAD_WEIGHT in shapes:
        raise ModelError(
            f"{path}: is a classifier, image encoder and head, expected a whole CLIP model",
            hint=f"its encoder is taken by --image-encoder {path}, beside the --pretrained weights "
            "that it was made from",
        )
    return WeightsFile(path, shapes, _file_digest(path))


def load_weights(model: nn.Module, weights: WeightsFile) -> None:
    """Load a weights file into a whole CLIP model, strictly.

    Raises:
        ModelError: Tensors are missing, unknown or of another shape.
    """
    with quiet_libraries():
        try:
            outcome = open_clip.load_checkpoint(
                model, str(weights.path), strict=False, weights_only=True
            )
        except Exception as error:  # open_clip's conversions raise whatever strikes them
            raise _misfit(weights.path, _differences(model, weights) or _reasons(error)) from None
    unknown = set(outcome.unexpected_keys) - OPENAI_MARKS
    if outcome.missing_keys or unknown:
        raise _misfit(
            weights.path,
            [f"{name}: missing from the file" for name in outcome.missing_keys]
            + [f"{name}: unknown to the model" for name in sorted(unknown)],
        )


def _differences(model: nn.Module, weights: WeightsFile) -> list[str]:
    """Every tensor of the model that the file lacks or has in another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return [
        f"{name}: missing from the file"
        if name not in weights.shapes
        else f"{name}: shape {weights.shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if weights.shapes.get(name) != shape
    ]


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        return {name: info.shape for name, info in read_header(path).tensors.items()}
    except NotACheckpointError as error:
        raise ModelError(error.message, hint=error.hint) from None


def _torch_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    _refuse_torchscript(path)
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # a hostile or damaged file makes the loader raise anything
        raise ModelError(
            f"{path}: torch's weights-only loader refuses it{_offender(error)}",
            hint="nothing is unpickled here; where the file is trusted, convert it to .safetensors "
            "and give that",
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        held = f"keys {', '.join(map(str, list(content)[:10]))}" if content else "nothing"
        raise ModelError(
            f"{path}: holds no state dict (a mapping of names to tensors), but "
            f"{held if isinstance(content, dict) else type(content).__name__}",
            hint="save `model.state_dict()`, or that under the key `state_dict`",
        )
    return {
        str(name).removeprefix("module."): tuple(getattr(value, "shape", ()))
        for name, value in content.items()
    }


def _refuse_torchscript(path: Path) -> None:
    """A TorchScript archive is a zip that carries code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{path}: is a damaged archive: {error}") from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(
            f"{path}: is a TorchScript archive, which carries code, expected plain weights",
            hint="for OpenAI's models give --pretrained openai instead of the file",
        )


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _reasons(error: Exception) -> list[str]:
    """The lines of torch's report on a state dict without its heading, or what else was said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1:] or lines or [type(error).__name__]


def _offender(error: Exception) -> str:
    """What the loader met that is not plain weights, where its report says so."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    return f": it holds {match[1]}" if match else ", as it is no file that torch.save wrote"


def _misfit(path: Path, problems: Sequence[str]) -> ModelError:
    lines = "".join(f"\n  {line}" for line in list_some(problems))
    return ModelError(
        f"{path}: does not hold the weights of this model{lines}",
        hint="check that --model is the architecture these weights were trained with",
    )

"""A weights file is looked into without being trusted, and fits its model or is refused."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.model.conftest import FAMILIES, random_clip
from wiseft_cli.errors import ModelError
from wiseft_cli.model.full_clip import build_untrained_clip
from wiseft_cli.model.weights_file import OPENAI_MARKS, examine_weights, load_weights


def vit_weights() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in random_clip("vit").state_dict().items()}


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".pth", ".ckpt"])
def test_every_format_gives_the_same_model(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"w{suffix}", vit_weights())
    weights = examine_weights(path)
    model = build_untrained_clip(FAMILIES["vit"])
    load_weights(model, weights)
    expected = vit_weights()
    assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == weights.shapes
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    assert weights.digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_training_checkpoint_of_open_clip_is_unwrapped(tmp_path: Path) -> None:
    wrapped = {
        "epoch": 3,
        "state_dict": {f"module.{name}": tensor for name, tensor in vit_weights().items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
    }
    weights = examine_weights(write(tmp_path / "epoch_3.pt", wrapped))
    load_weights(build_untrained_clip(FAMILIES["vit"]), weights)
    assert weights.shapes.keys() == vit_weights().keys()


def test_openais_marks_are_seen_and_not_taken_for_weights(tmp_path: Path) -> None:
    marked = {**vit_weights(), **{name: torch.tensor(32) for name in OPENAI_MARKS}}
    weights = examine_weights(write(tmp_path / "openai.pt", marked))
    assert weights.has_openai_marks
    load_weights(build_untrained_clip(FAMILIES["vit"]), weights)
    assert not examine_weights(write(tmp_path / "plain.pt", vit_weights())).has_openai_marks


class Payload:
    """An object whose unpickling would leave a mark."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = write(tmp_path / "evil.pt", {"x": torch.ones(1), "y": Payload(tmp_path / "mark")})
    with pytest.raises(ModelError) as caught:
        examine_weights(path)
    assert not (tmp_path / "mark").exists()
    assert caught.value.message == (
        f"{path}: torch's weights-only loader refuses it: it holds posix.mkdir"
    )


def test_torchscript_archive_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the very format this is about
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    with pytest.raises(ModelError) as caught:
        examine_weights(path)
    assert caught.value.message == (
        f"{path}: is a TorchScript archive, which carries code, expected plain weights"
    )
    assert caught.value.hint == ("for OpenAI's models give --pretrained openai instead of the file")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("w.npz", b"PK", "weights of the kind '.npz' are not read"),
        ("w", b"PK", "weights of the kind 'without a suffix' are not read"),
        (
            "w.pt",
            b"not a file of torch",
            "torch's weights-only loader refuses it, as it is no file that torch.save wrote",
        ),
        (
            "w.pt",
            b"",
            "torch's weights-only loader refuses it, as it is no file that torch.save wrote",
        ),
        ("w.safetensors", b"12345", "5 bytes are too few for a safetensors file (at least 10)"),
    ],
)
def test_damaged_and_foreign_files_are_refused(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        examine_weights(path)
    assert caught.value.message == f"{path}: {message}"


def test_checkpoint_of_wiseft_is_no_clip_model_and_the_way_to_use_it_is_shown(
    tmp_path: Path,
) -> None:
    content = {"visual.proj": torch.ones(2, 2), "classification_head.weight": torch.ones(1, 2)}
    path = write(tmp_path / "zeroshot.safetensors", content)
    with pytest.raises(ModelError) as caught:
        examine_weights(path)
    assert caught.value.message == (
        f"{path}: is a classifier, image encoder and head, expected a whole CLIP model"
    )
    assert caught.value.hint == (
        f"its encoder is taken by --image-encoder {path}, beside the --pretrained weights that it "
        "was made from"
    )


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        examine_weights(tmp_path / "w.pt")
    assert caught.value.message == f"{tmp_path / 'w.pt'}: is no file, expected model weights"


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"model": {"x": 1}, "epoch": 2}, "keys model, epoch"),
        ([1, 2], "list"),
        ({}, "nothing"),
    ],
)
def test_file_without_a_state_dict_is_refused(content: Any, held: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", content)
    with pytest.raises(ModelError) as caught:
        examine_weights(path)
    assert caught.value.message == (
        f"{path}: holds no state dict (a mapping of names to tensors), but {held}"
    )


def test_missing_and_unknown_tensors_are_all_named(tmp_path: Path) -> None:
    content = vit_weights()
    del content["visual.proj"], content["ln_final.bias"]
    content["stray"] = torch.ones(1)
    path = write(tmp_path / "w.safetensors", content)
    with pytest.raises(ModelError) as caught:
        load_weights(build_untrained_clip(FAMILIES["vit"]), examine_weights(path))
    assert caught.value.message == (
        f"{path}: does not hold the weights of this model\n"
        "  visual.proj: missing from the file\n"
        "  ln_final.bias: missing from the file\n"
        "  stray: unknown to the model"
    )


def test_tensors_of_other_shapes_are_named_with_both_shapes(tmp_path: Path) -> None:
    content = vit_weights()
    content["visual.proj"] = torch.ones(64, 7)
    path = write(tmp_path / "w.pt", content)
    with pytest.raises(ModelError) as caught:
        load_weights(build_untrained_clip(FAMILIES["vit"]), examine_weights(path))
    assert caught.value.message == (
        f"{path}: does not hold the weights of this model\n"
        "  visual.proj: shape (64, 7), expected (64, 24)"
    )


def test_weights_of_another_architecture_are_counted_beyond_ten(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", vit_weights())
    with pytest.raises(ModelError, match=r"\n  \.\.\. and \d+ more$"):
        load_weights(build_untrained_clip(FAMILIES["modified-resnet"]), examine_weights(path))

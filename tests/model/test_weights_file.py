"""A weights file is read without unpickling, and matches its model or is rejected."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.model.conftest import FAMILIES, random_clip
from wiseft_cli.errors import ModelError, WiseftError
from wiseft_cli.model.full_clip import build_untrained_clip
from wiseft_cli.model.weights_file import OPENAI_KEYS, inspect_weights, load_weights


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
    weights = inspect_weights(path)
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
    weights = inspect_weights(write(tmp_path / "epoch_3.pt", wrapped))
    load_weights(build_untrained_clip(FAMILIES["vit"]), weights)
    assert weights.shapes.keys() == vit_weights().keys()


def test_openais_extra_keys_are_recognized_and_ignored_as_weights(tmp_path: Path) -> None:
    marked = {**vit_weights(), **{name: torch.tensor(32) for name in OPENAI_KEYS}}
    weights = inspect_weights(write(tmp_path / "openai.pt", marked))
    assert weights.is_from_openai
    load_weights(build_untrained_clip(FAMILIES["vit"]), weights)
    assert not inspect_weights(write(tmp_path / "plain.pt", vit_weights())).is_from_openai


class Payload:
    """An object whose unpickling creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = write(tmp_path / "evil.pt", {"x": torch.ones(1), "y": Payload(tmp_path / "mark")})
    with pytest.raises(ModelError) as caught:
        inspect_weights(path)
    assert not (tmp_path / "mark").exists()
    assert caught.value.message == (
        f"{path}: rejected by torch's weights-only loader: contains posix.mkdir"
    )


def test_torchscript_archive_is_rejected_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates this format
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    with pytest.raises(ModelError) as caught:
        inspect_weights(path)
    assert caught.value.message == (
        f"{path}: rejected by torch's weights-only loader: a TorchScript archive, which "
        "contains code"
    )
    assert caught.value.hint == "for OpenAI's models use --pretrained openai instead of the file"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("w.npz", b"PK", "unsupported file type '.npz'"),
        ("w", b"PK", "unsupported file type ''"),
        (
            "w.pt",
            b"not a file of torch",
            "rejected by torch's weights-only loader: damaged, or not written by torch.save",
        ),
        (
            "w.pt",
            b"",
            "rejected by torch's weights-only loader: damaged, or not written by torch.save",
        ),
        ("w.safetensors", b"12345", "5 bytes"),
    ],
)
def test_damaged_and_unsupported_files_are_rejected(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(WiseftError) as caught:
        inspect_weights(path)
    assert caught.value.message.startswith(f"{path}: {message}")


def test_classifier_is_rejected_with_the_way_to_use_its_image_encoder(
    tmp_path: Path,
) -> None:
    content = {"visual.proj": torch.ones(2, 2), "classification_head.weight": torch.ones(1, 2)}
    path = write(tmp_path / "zeroshot.safetensors", content)
    with pytest.raises(ModelError) as caught:
        inspect_weights(path)
    assert caught.value.message == (
        f"{path}: holds a classifier (image encoder and head), expected a whole CLIP model"
    )
    assert caught.value.hint == (
        f"to use its image encoder, add --image-encoder {path} and set --pretrained to the "
        "weights it was made from"
    )


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        inspect_weights(tmp_path / "w.pt")
    assert caught.value.message == f"{tmp_path / 'w.pt'}: not a file, expected model weights"


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"model": {"x": 1}, "epoch": 2}, "a dict with keys model, epoch"),
        ([1, 2], "a list"),
        ({}, "a dict"),
    ],
)
def test_file_without_a_state_dict_is_rejected(content: Any, held: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", content)
    with pytest.raises(ModelError) as caught:
        inspect_weights(path)
    assert caught.value.message == (
        f"{path}: expected a state dict (names to tensors), found {held}"
    )


def test_all_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    content = vit_weights()
    del content["visual.proj"], content["ln_final.bias"]
    content["stray"] = torch.ones(1)
    path = write(tmp_path / "w.safetensors", content)
    with pytest.raises(ModelError) as caught:
        load_weights(build_untrained_clip(FAMILIES["vit"]), inspect_weights(path))
    assert caught.value.message == (
        f"{path}: does not hold the weights of this model:\n"
        "  visual.proj: missing from the file\n"
        "  ln_final.bias: missing from the file\n"
        "  stray: unknown to the model"
    )


def test_tensors_of_wrong_shape_are_named_with_both_shapes(tmp_path: Path) -> None:
    content = vit_weights()
    content["visual.proj"] = torch.ones(64, 7)
    path = write(tmp_path / "w.pt", content)
    with pytest.raises(ModelError) as caught:
        load_weights(build_untrained_clip(FAMILIES["vit"]), inspect_weights(path))
    assert caught.value.message == (
        f"{path}: does not hold the weights of this model:\n"
        "  visual.proj: shape (64, 7), expected (64, 24)"
    )


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            {"logit_bias": torch.tensor(-10.0)},
            "  logit_bias: unknown to the model",
            "the weights have a logit bias, as SigLIP's have",
        ),
        (
            {"vision_model.embeddings.class_embedding": torch.ones(2)},
            "  vision_model.embeddings.class_embedding: unknown to the model",
            "the file has transformers' tensor names",
        ),
        (
            "model.",
            "visual.proj: missing from the file",
            "the names in the file start with 'model.'",
        ),
        ("clip._orig_mod.", "visual.proj: missing", "the names in the file start with 'clip._orig"),
        ("visual only", "text_projection: missing from", "the file holds an image encoder alone"),
    ],
)
def test_likely_cause_of_differences_is_the_hint(
    change: Any, message: str, hint: str, tmp_path: Path
) -> None:
    content = vit_weights()
    if change == "visual only":
        content = {name: t for name, t in content.items() if name.startswith("visual.")}
    elif isinstance(change, str):
        content = {change + name: tensor for name, tensor in content.items()}
    else:
        content |= change
    weights = inspect_weights(write(tmp_path / "w.safetensors", content))
    with pytest.raises(ModelError) as caught:
        load_weights(build_untrained_clip(FAMILIES["vit"]), weights)
    assert message in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("vit", "logit_scale", float("nan")),
        ("vit", "visual.proj", float("inf")),
        ("vit", "token_embedding.weight", float("-inf")),
        ("siglip", "logit_bias", float("nan")),
    ],
)
def test_values_that_are_not_finite_are_rejected_by_tensor_name(
    family: str, name: str, value: float, tmp_path: Path
) -> None:
    content = {key: tensor.clone() for key, tensor in random_clip(family).state_dict().items()}
    content[name].view(-1)[0] = value
    path = write(tmp_path / "w.safetensors", content)
    with pytest.raises(ModelError) as caught:
        load_weights(build_untrained_clip(FAMILIES[family]), inspect_weights(path))
    size = content[name].numel()
    assert caught.value.message == (
        f"{path}: has values that are infinite or NaN:\n"
        f"  {name}: 1 of {size:,} value{'s' * (size > 1)}"
    )


@pytest.mark.parametrize("scale", [100.0, 14.2857, 1e4])
def test_logit_scale_that_is_the_factor_itself_is_rejected(scale: float, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", vit_weights() | {"logit_scale": torch.tensor([scale])})
    with pytest.raises(ModelError) as caught:
        load_weights(build_untrained_clip(FAMILIES["vit"]), inspect_weights(path))
    assert f"{path}: logit_scale is {scale:g}, expected the logarithm" in caught.value.message
    assert f"store its logarithm, {math.log(scale):.6g}" in str(caught.value.hint)


def test_more_than_ten_mismatches_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", vit_weights())
    with pytest.raises(ModelError, match=r"\n  \.\.\. and \d+ more$"):
        load_weights(build_untrained_clip(FAMILIES["modified-resnet"]), inspect_weights(path))

"""A classifier is loaded from its checkpoint unchanged, or it is rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image

from tests.model.conftest import FAMILIES, random_clip
from tests.model.test_image_encoder import square_images
from wiseft_cli.checkpoint.card import Card, ClassEntry, ModelSpec
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import CheckpointError, NotACheckpointError, UsageError
from wiseft_cli.model.classifier import (
    ImageClassifier,
    build_classification_head,
    load_checkpoint,
    load_classifier,
    state_arrays,
)
from wiseft_cli.model.image_encoder import image_encoder_config
from wiseft_cli.model.transforms import eval_transform

CLASSES = tuple(ClassEntry(f"n{index}", f"name {index}") for index in range(3))


def tiny_classifier(family: str = "vit") -> ImageClassifier:
    full = random_clip(family)
    full.visual.output_tokens = False
    generator = torch.Generator().manual_seed(5)
    head = build_classification_head(
        torch.randn(3, FAMILIES[family]["embed_dim"], generator=generator),
        torch.randn(3, generator=generator),
    )
    return ImageClassifier(full.visual, head).eval()


def tiny_card(family: str = "vit") -> Card:
    spec = ModelSpec(family, None, image_encoder_config(FAMILIES[family]))
    return Card(role="zeroshot", model=spec, preprocess={"size": 32}, classes=CLASSES)


def test_logits_are_the_head_on_normalized_features() -> None:
    classifier = tiny_classifier()
    images = square_images(classifier.visual, count=4)
    with torch.no_grad():
        features = classifier.visual(images).double().numpy()
        found = classifier(images).double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    arrays = {name: array.astype(np.float64) for name, array in state_arrays(classifier).items()}
    expected = features @ arrays["classification_head.weight"].T
    expected += arrays["classification_head.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_classifier_equals_the_written_one(family: str, tmp_path: Path) -> None:
    classifier = tiny_classifier(family)
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, state_arrays(classifier), tiny_card(family))
    loaded, card = load_classifier(path)
    images = square_images(classifier.visual)
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))
    assert card.classes == CLASSES
    assert not loaded.training


@pytest.mark.parametrize("family", FAMILIES)
def test_state_arrays_are_open_clips_visual_tensors_and_the_head(family: str) -> None:
    full = random_clip(family)
    expected = {
        name: tensor for name, tensor in full.state_dict().items() if name.startswith("visual.")
    }
    arrays = state_arrays(tiny_classifier(family))
    head = {"classification_head.weight", "classification_head.bias"}
    assert arrays.keys() == expected.keys() | head
    for name, tensor in expected.items():
        assert np.array_equal(arrays[name], tensor.numpy())
        floating = tensor.is_floating_point()
        assert arrays[name].dtype == (np.float32 if floating else tensor.numpy().dtype)


def test_state_arrays_of_a_bfloat16_classifier_are_float32() -> None:
    arrays = state_arrays(tiny_classifier("modified-resnet").bfloat16())
    kinds = {name: array.dtype for name, array in arrays.items()}
    assert kinds.pop("visual.bn1.num_batches_tracked") == np.int64
    floats = {kind for name, kind in kinds.items() if not name.endswith("num_batches_tracked")}
    assert floats == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_floating_types_are_loaded_as_float32(dtype: type, tmp_path: Path) -> None:
    arrays = {name: array.astype(dtype) for name, array in state_arrays(tiny_classifier()).items()}
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, arrays, tiny_card())
    loaded, _ = load_classifier(path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    expected = arrays["visual.conv1.weight"].astype(np.float32)
    assert np.array_equal(loaded.state_dict()["visual.conv1.weight"].numpy(), expected)


@pytest.mark.parametrize("kind", [str, Path])
def test_checkpoint_is_loaded_with_transform_and_class_names(
    kind: Callable[[Path], str], tmp_path: Path
) -> None:
    classifier = tiny_classifier()
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, state_arrays(classifier), tiny_card())
    loaded = load_checkpoint(kind(path))
    assert loaded.class_names == ("name 0", "name 1", "name 2")
    assert loaded.card.classes == CLASSES
    image = Image.fromarray(np.full((40, 50, 3), 7, dtype=np.uint8))
    images = loaded.transform(image)[None]
    assert torch.equal(images[0], eval_transform({"size": 32})(image))
    with torch.no_grad():
        assert torch.equal(loaded.model(images), classifier(images))


def test_checkpoint_for_an_unavailable_device_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, state_arrays(tiny_classifier()), tiny_card())
    with pytest.raises(UsageError, match="gpu"):
        load_checkpoint(path, device="gpu")


def test_head_of_one_class_gives_two_dimensional_logits() -> None:
    head = build_classification_head(torch.ones(1, 4), torch.zeros(1))
    assert head(torch.ones(2, 4)).shape == (2, 1)


def test_all_mismatched_tensors_are_named(tmp_path: Path) -> None:
    arrays = state_arrays(tiny_classifier())
    arrays["stray"] = np.zeros(1, np.float32)
    del arrays["visual.ln_pre.bias"]
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, arrays, replace(tiny_card(), classes=CLASSES[:2]))
    with pytest.raises(CheckpointError) as caught:
        load_classifier(path)
    assert caught.value.message == (
        f"{path}: the tensors do not match the card:\n"
        "  classification_head.bias: shape (3,), expected (2,)\n"
        "  classification_head.weight: shape (3, 24), expected (2, 24)\n"
        "  stray: unknown to the model\n"
        "  visual.ln_pre.bias: missing, expected shape (64,)"
    )


def test_file_without_card_or_model_is_rejected(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    bare = tmp_path / "bare.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, bare)
    with pytest.raises(NotACheckpointError) as caught:
        load_classifier(bare)
    assert caught.value.message == (
        f"{bare}: has no wiseft card, expected a checkpoint written by wiseft"
    )
    foreign = tmp_path / "foreign.safetensors"
    write_checkpoint(foreign, {"x": np.zeros(1, np.float32)}, Card(role="merged"))
    with pytest.raises(CheckpointError) as refused:
        load_classifier(foreign)
    missing = "no model and no preprocessing and no classes"
    assert refused.value.message == f"{foreign}: its card has {missing}, expected a classifier"

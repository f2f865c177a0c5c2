"""The shipped files match docs/demo.md: the digits, and a tiny CLIP that open_clip loads."""

from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import default_bpe
from safetensors import safe_open
from sklearn import datasets

from tests.demo.makers.pretrain import BPE_NAME, CONFIGS, MERGES, PREPROCESS_CONFIG, normalize
from wiseft_cli.demo.embedded import (
    DIGIT_NAMES,
    SET_NAMES,
    DigitAssets,
    LabelledDigits,
    digits_path,
    embedded_model_folder,
)
from wiseft_cli.demo.image_folders import TEMPLATES, make_shift

FOLDER = embedded_model_folder()


@pytest.mark.parametrize(
    ("name", "count", "side"),
    [
        ("train", 2000, 28),
        ("validation", 500, 28),
        ("test", 1000, 28),
        ("optdigits", 1797, 8),
        ("fonts", 500, 48),
    ],
)
def test_each_set_has_its_documented_size(digits: DigitAssets, name: str, count: int, side: int):
    labelled = getattr(digits, name)
    assert labelled.images.shape == (count, side, side)
    assert labelled.images.dtype == np.uint8
    assert set(labelled.labels.tolist()) == set(range(10))
    if name != "optdigits":
        assert set(np.bincount(labelled.labels).tolist()) == {count // 10}


def test_mnist_splits_are_disjoint_and_free_of_duplicates(digits: DigitAssets):
    seen = {
        name: {hashlib.sha256(image.tobytes()).digest() for image in getattr(digits, name).images}
        for name in ("train", "validation", "test")
    }
    assert {name: len(hashes) for name, hashes in seen.items()} == {
        "train": 2000,
        "validation": 500,
        "test": 1000,
    }
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_optical_digits_equal_those_of_scikit_learn(digits: DigitAssets):
    bunch = datasets.load_digits()
    shipped = digits.optdigits
    assert np.array_equal(shipped.labels, bunch.target)
    assert np.array_equal(np.rint(shipped.images * (16 / 255)), bunch.images)


def test_digits_file_contains_exactly_the_sets_and_is_small():
    assert digits_path().stat().st_size < 1_500_000
    with np.load(digits_path(), allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(
            f"{name}_{part}" for name in SET_NAMES for part in ("images", "labels")
        )


def test_images_and_labels_of_different_length_are_rejected():
    with pytest.raises(ValueError, match=r"^2 images, 1 labels$"):
        LabelledDigits(np.zeros((2, 1, 1), np.uint8), np.zeros(1, np.uint8))


@pytest.fixture(scope="module")
def embedded() -> tuple[torch.nn.Module, open_clip.SimpleTokenizer]:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{FOLDER}", bpe_path=str(FOLDER / BPE_NAME))
    assert tokenizer.vocab_size == model.vocab_size == 2050
    return model.eval(), tokenizer


def test_model_folder_is_small_and_complete():
    names = sorted(path.name for path in FOLDER.iterdir())
    assert names == ["bpe.txt.gz", "open_clip_config.json", "open_clip_model.safetensors"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_weights_are_exactly_the_tensors_of_the_configured_model():
    config = json.loads((FOLDER / "open_clip_config.json").read_text())
    assert config == {"model_cfg": CONFIGS["resnet"], "preprocess_cfg": PREPROCESS_CONFIG}
    expected = open_clip.CLIP(**config["model_cfg"]).state_dict()
    with safe_open(FOLDER / "open_clip_model.safetensors", framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(t.isfinite().all() for t in found.values() if t.is_floating_point())
    assert {t.dtype for t in found.values()} == {torch.float16, torch.int64}


def test_tokenizer_merges_are_the_first_of_clips_vocabulary():
    own = gzip.decompress((FOLDER / BPE_NAME).read_bytes()).decode().split("\n")
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        clips = file.read().split("\n")
    assert own == clips[: MERGES + 1]


@pytest.mark.parametrize(("name", "at_least"), [("fonts", 0.98), ("fonts-colored", 0.95)])
def test_zero_shot_accuracy_on_held_out_fonts_is_high(
    embedded: tuple[torch.nn.Module, open_clip.SimpleTokenizer],
    digits: DigitAssets,
    name: str,
    at_least: float,
):
    model, tokenizer = embedded
    pictures, labels = make_shift(name, digits)
    rgb = normalize(pictures.clamp(0, 1).expand(-1, 3, -1, -1))
    with torch.no_grad():
        prompts = [t.replace("{}", digit) for digit in DIGIT_NAMES for t in TEMPLATES]
        text = model.encode_text(tokenizer(prompts), normalize=True)
        head = F.normalize(text.view(10, len(TEMPLATES), -1).mean(1), dim=1)
        predicted = (model.encode_image(rgb, normalize=True) @ head.T).argmax(1)
    accuracy = (predicted == torch.from_numpy(labels)).double().mean().item()
    assert accuracy >= at_least


def test_word_and_numeral_of_a_digit_have_the_closest_features(
    embedded: tuple[torch.nn.Module, open_clip.SimpleTokenizer],
):
    model, tokenizer = embedded
    with torch.no_grad():
        words = model.encode_text(
            tokenizer([f"the digit {w}." for w in DIGIT_NAMES]), normalize=True
        )
        numerals = model.encode_text(
            tokenizer([f"the digit {d}." for d in range(10)]), normalize=True
        )
    assert (words @ numerals.T).argmax(1).tolist() == list(range(10))

"""The embedded model: small, complete, loadable without us, and good at fonts it never saw."""

from __future__ import annotations

import gzip
import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import default_bpe
from safetensors import safe_open

from wiseft_cli.demo import tiny_clip
from wiseft_cli.demo.captions import DIGIT_NAMES
from wiseft_cli.demo.digits import load_digits
from wiseft_cli.demo.image_folders import TEMPLATES, make_shift

FOLDER = tiny_clip.embedded_model_folder()


@pytest.fixture(scope="module")
def embedded() -> tuple[torch.nn.Module, open_clip.SimpleTokenizer]:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    tokenizer = open_clip.get_tokenizer(
        f"local-dir:{FOLDER}", bpe_path=str(FOLDER / tiny_clip.BPE_NAME)
    )
    assert tokenizer.vocab_size == model.vocab_size == 2050
    return model.eval(), tokenizer


def test_the_folder_is_small_and_complete():
    names = sorted(path.name for path in FOLDER.iterdir())
    assert names == ["bpe.txt.gz", "open_clip_config.json", "open_clip_model.safetensors"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_the_weights_are_exactly_the_tensors_of_the_configured_model():
    config = json.loads((FOLDER / "open_clip_config.json").read_text())
    assert config == {
        "model_cfg": tiny_clip.RESNET_CONFIG,
        "preprocess_cfg": tiny_clip.PREPROCESS_CONFIG,
    }
    expected = open_clip.CLIP(**config["model_cfg"]).state_dict()
    with safe_open(FOLDER / "open_clip_model.safetensors", framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(t.isfinite().all() for t in found.values() if t.is_floating_point())
    assert {t.dtype for t in found.values()} == {torch.float16, torch.int64}


def test_the_merges_are_the_first_of_clips_own():
    own = gzip.decompress((FOLDER / "bpe.txt.gz").read_bytes()).decode().split("\n")
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        clips = file.read().split("\n")
    assert own == clips[: tiny_clip.MERGES + 1]


@pytest.mark.parametrize(("name", "at_least"), [("fonts", 0.98), ("fonts-colored", 0.95)])
def test_zero_shot_it_reads_fonts_it_never_saw(
    embedded: tuple[torch.nn.Module, open_clip.SimpleTokenizer], name: str, at_least: float
):
    model, tokenizer = embedded
    pictures, labels = make_shift(name, load_digits())
    rgb = tiny_clip.normalize(pictures.clamp(0, 1).expand(-1, 3, -1, -1))
    with torch.no_grad():
        prompts = [t.replace("{}", digit) for digit in DIGIT_NAMES for t in TEMPLATES]
        text = model.encode_text(tokenizer(prompts), normalize=True)
        head = F.normalize(text.view(10, len(TEMPLATES), -1).mean(1), dim=1)
        predicted = (model.encode_image(rgb, normalize=True) @ head.T).argmax(1)
    accuracy = (predicted == torch.from_numpy(labels)).double().mean().item()
    assert accuracy >= at_least


def test_a_digits_word_and_its_numeral_mean_the_same(
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

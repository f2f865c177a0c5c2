"""`wiseft zeroshot-head` with --truncate, --quick-gelu and --precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.test_zeroshot_classes import head_weight
from tests.cli.test_zeroshot_head import head
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.model.classifier import load_classifier

Captured = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("place")


def test_truncated_prompts_are_noted_and_recorded(capsys: Captured) -> None:
    long, fitting = "zq" * 9 + " zq", "zq" * 9
    Path("classes.txt").write_text(f"{long}\n")
    assert head("--template", "{}", "--truncate", "-o", "long.safetensors") == 0
    note = f"note: 1 prompt cut to 20 tokens, including the end-of-text token: '{long}'"
    assert capsys.readouterr().err.splitlines()[-1] == note
    Path("classes.txt").write_text(f"{fitting}\n")
    assert head("--template", "{}", "--truncate", "-o", "fits.safetensors") == 0
    assert np.array_equal(head_weight("long.safetensors"), head_weight("fits.safetensors"))
    assert read_card(Path("long.safetensors")).history[-1].options["truncate"] is True
    assert "truncate" not in read_card(Path("fits.safetensors")).history[-1].options


def test_requested_activation_is_built_noted_and_stored(capsys: Captured) -> None:
    assert head("-o", "gelu.safetensors") == 0
    assert head("--no-quick-gelu", "-o", "same.safetensors") == 0
    assert "note:" not in capsys.readouterr().err
    assert head("--quick-gelu", "-o", "quick.safetensors") == 0
    lines = capsys.readouterr().err.splitlines()
    assert ", QuickGELU, " in lines[2]
    assert lines[3] == "note: QuickGELU is used as requested, although the model states GELU"
    plain, same, quick = (head_weight(f"{n}.safetensors") for n in ("gelu", "same", "quick"))
    assert np.array_equal(plain, same)
    assert not np.allclose(plain, quick, rtol=1e-4)
    classifier, card = load_classifier(Path("quick.safetensors"))
    assert card.model is not None
    assert card.model.config["quick_gelu"] is True
    other, _ = load_classifier(Path("gelu.safetensors"))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(classifier.visual(images), other.visual(images), atol=1e-3)


@pytest.mark.parametrize("folder", ["tiny", "tiny-siglip"])
def test_bf16_is_close_to_fp32_and_the_file_is_float32(folder: str) -> None:
    model = f"local-dir:{folder}"
    assert head("-o", "f.safetensors", model=model) == 0
    assert head("--precision", "bf16", "-o", "b.safetensors", model=model) == 0
    exact, rough = head_weight("f.safetensors"), head_weight("b.safetensors")
    assert rough.dtype == np.float32
    difference = np.abs(exact - rough).max() / np.abs(exact).max()
    assert 1e-5 < difference < 2e-2
    assert read_card(Path("b.safetensors")).history[-1].options["precision"] == "bf16"


def test_unknown_precision_is_a_usage_error(capsys: Captured) -> None:
    assert head("--precision", "fp8", "-o", "z.safetensors") == 2
    assert "'fp8' is not one of 'fp32', 'bf16'" in capsys.readouterr().err

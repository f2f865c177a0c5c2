"""Trimmed prompts give the features of fully padded ones, and only where that is exact."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch.nn import functional

from tests.model.conftest import CONTEXT_LENGTH, FAMILIES, random_clip
from wiseft_cli.model.full_clip import build_untrained_clip
from wiseft_cli.model.text_encoder import TextEncoder

TEXTS = ["a", "a photo of a cat.", "two words", "zzz qqq xxx vvv www", ""]
FORBIDDEN = {"coca", "siglip"}
TRIMMING = [family for family in FAMILIES if family not in FORBIDDEN]


def full_features(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """open_clip's own text features on fully padded tokens, normalised."""
    with torch.no_grad():
        return functional.normalize(model.encode_text(tokens), dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_trimming_is_used_where_the_tower_ignores_padding_and_nowhere_else(family: str) -> None:
    assert TextEncoder(random_clip(family)).trims == (family in TRIMMING)


@pytest.mark.parametrize(
    "field",
    [
        {"no_causal_mask": True},
        {"pool_type": "last"},
        {"pool_type": "first"},
        {"embed_cls": True},
    ],
)
def test_each_condition_alone_forbids_trimming(field: dict[str, Any]) -> None:
    config = FAMILIES["custom-text-eos"]
    changed = {**config, "text_cfg": {**config["text_cfg"], **field}}
    assert TextEncoder(build_untrained_clip(config)).trims
    assert not TextEncoder(build_untrained_clip(changed)).trims


@pytest.mark.parametrize("family", TRIMMING)
def test_trimmed_features_equal_fully_padded_ones(
    family: str, simple_tokenizer: open_clip.SimpleTokenizer
) -> None:
    model = random_clip(family)
    encode = TextEncoder(model)
    tokens = simple_tokenizer(TEXTS)
    lengths = encode.lengths(tokens)
    assert lengths.tolist() == [(row != 0).sum().item() for row in tokens]
    longest = int(lengths.max())
    assert longest < CONTEXT_LENGTH
    with torch.no_grad():
        found = encode(tokens[:, :longest])
    torch.testing.assert_close(found, full_features(model, tokens), rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", sorted(FORBIDDEN))
def test_untrimmed_towers_go_through_open_clips_own_encoder(
    family: str, simple_tokenizer: open_clip.SimpleTokenizer
) -> None:
    model = random_clip(family)
    encode = TextEncoder(model)
    tokens = simple_tokenizer(TEXTS)
    assert encode.lengths(tokens).tolist() == [CONTEXT_LENGTH] * len(TEXTS)
    with torch.no_grad():
        assert torch.equal(encode(tokens), full_features(model, tokens))


def test_padding_does_change_the_features_of_the_towers_that_forbid_trimming(
    simple_tokenizer: open_clip.SimpleTokenizer,
) -> None:
    """The rule is needed: SigLIP's last position is another one in a shorter batch."""
    model = random_clip("siglip")
    tokens = simple_tokenizer(["a cat"])
    longer, shorter = tokens, tokens[:, :-1]
    with torch.no_grad():
        difference = (model.encode_text(longer) - model.encode_text(shorter)).abs().max()
    assert difference > 1e-4

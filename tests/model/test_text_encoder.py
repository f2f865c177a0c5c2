"""Prompts without padding give the features of padded ones."""

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
PADDED = {"coca", "siglip"}
UNPADDED = [family for family in FAMILIES if family not in PADDED]


def full_features(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return open_clip's normalized text features of fully padded tokens."""
    with torch.no_grad():
        return functional.normalize(model.encode_text(tokens), dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_omitted_only_for_towers_that_ignore_it(family: str) -> None:
    assert TextEncoder(random_clip(family)).ignores_padding == (family in UNPADDED)


@pytest.mark.parametrize(
    "field",
    [
        {"no_causal_mask": True},
        {"pool_type": "last"},
        {"pool_type": "first"},
        {"embed_cls": True},
    ],
)
def test_each_property_alone_requires_padding(field: dict[str, Any]) -> None:
    config = FAMILIES["custom-text-eos"]
    changed = {**config, "text_cfg": {**config["text_cfg"], **field}}
    assert TextEncoder(build_untrained_clip(config)).ignores_padding
    assert not TextEncoder(build_untrained_clip(changed)).ignores_padding


@pytest.mark.parametrize("family", UNPADDED)
def test_features_without_padding_equal_padded_ones(
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


@pytest.mark.parametrize("family", sorted(PADDED))
def test_padded_towers_use_open_clips_encode_text(
    family: str, simple_tokenizer: open_clip.SimpleTokenizer
) -> None:
    model = random_clip(family)
    encode = TextEncoder(model)
    tokens = simple_tokenizer(TEXTS)
    assert encode.lengths(tokens).tolist() == [CONTEXT_LENGTH] * len(TEXTS)
    with torch.no_grad():
        assert torch.equal(encode(tokens), full_features(model, tokens))


def test_padding_changes_the_features_of_siglip(
    simple_tokenizer: open_clip.SimpleTokenizer,
) -> None:
    """SigLIP pools the last position, which is another one in a shorter batch."""
    model = random_clip("siglip")
    tokens = simple_tokenizer(["a cat"])
    longer, shorter = tokens, tokens[:, :-1]
    with torch.no_grad():
        difference = (model.encode_text(longer) - model.encode_text(shorter)).abs().max()
    assert difference > 1e-4

"""Prompts are tokenized by the model's own tokenizer, and never cut."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.conftest import CONTEXT_LENGTH, VOCAB_SIZE
from wiseft_cli.errors import MissingDependencyError, ModelError, TemplatesError
from wiseft_cli.model.model_source import ModelSource, find_model
from wiseft_cli.model.tokenizer import PromptTokenizer, load_tokenizer, prompt_tokenizer

FITTING = "zq" * 9
"""18 tokens of one byte each; start and end make 20."""


EIGHT_TOKENS = prompt_tokenizer(open_clip.SimpleTokenizer(), 8)


@pytest.fixture
def source(vit_folder: Path) -> ModelSource:
    return find_model(f"local-dir:{vit_folder}", pretrained=None)


@pytest.fixture
def tokenizer(source: ModelSource) -> PromptTokenizer:
    return load_tokenizer(source)


def test_tokens_are_open_clips(
    tokenizer: PromptTokenizer, simple_tokenizer: open_clip.SimpleTokenizer
) -> None:
    texts = ["a cat", "", "A Photo of a DOG.", FITTING]
    assert torch.equal(tokenizer(texts), simple_tokenizer(texts))


def test_prompt_that_just_fits_keeps_its_end_of_text(tokenizer: PromptTokenizer) -> None:
    tokens = tokenizer([FITTING])
    assert tokens.shape == (1, CONTEXT_LENGTH)
    assert tokens[0, -1] == VOCAB_SIZE - 1
    tokenizer.check([FITTING])


def test_prompts_one_token_too_long_are_all_named(tokenizer: PromptTokenizer) -> None:
    long = [FITTING + "z", FITTING + "zqzq"]
    expected = (
        f"2 prompts have more than the 20 tokens that the model reads\n  {long[0]}\n  {long[1]}"
    )
    for refuse in (tokenizer, tokenizer.check):
        with pytest.raises(TemplatesError) as caught:
            refuse([long[0], "a cat", FITTING, long[1]])
        assert caught.value.message == expected
        assert caught.value.hint == (
            "shorten the templates or the class names, or cut the prompts with --truncate"
        )


def test_cut_prompts_keep_their_end_of_text_and_are_named(tokenizer: PromptTokenizer) -> None:
    cutting = replace(tokenizer, truncates=True)
    long = FITTING + " zq"
    assert cutting.check([long, "a cat", FITTING]) == [long]
    tokens = cutting([long, "a cat", FITTING])
    assert torch.equal(tokens[0], tokens[2])
    assert tokens[0, -1] == VOCAB_SIZE - 1
    assert torch.equal(tokens[1:], tokenizer(["a cat", FITTING]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_check_and_tokenizing_agree_on_what_is_too_long(texts: list[str]) -> None:
    tokenizer = EIGHT_TOKENS

    def refuses(call: object) -> bool:
        try:
            call(texts)  # type: ignore[operator]
        except TemplatesError:
            return True
        return False

    too_long = any(len(tokenizer.tokenize.encode(text)) > 6 for text in texts)  # type: ignore[attr-defined]
    assert refuses(tokenizer) == too_long
    if refuses(tokenizer.check):
        assert too_long


class HubTokenizer:
    """As open_clip wraps a tokenizer of the hub: ends in 2 or hides the end, pads with `pad`."""

    def __init__(self, *, pad: int, end: int) -> None:
        self.tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=end, sep_token_id=None)
        self.pad, self.end = pad, end

    def __call__(self, texts: list[str], context_length: int) -> torch.Tensor:
        rows = [[9] * min(len(text), context_length - 1) + [self.end] for text in texts]
        return torch.tensor([row + [self.pad] * (context_length - len(row)) for row in rows])


@pytest.mark.parametrize(("pad", "end"), [(0, 2), (1, 1), (0, 0)])
def test_long_prompts_are_found_where_the_end_of_text_is_the_padding(pad: int, end: int) -> None:
    tokenizer = prompt_tokenizer(HubTokenizer(pad=pad, end=end), 6)
    assert tokenizer(["x" * 5, "x"]).shape == (2, 6)
    with pytest.raises(TemplatesError, match="1 prompt has more than the 6 tokens"):
        tokenizer(["x" * 6])
    with pytest.raises(TemplatesError, match="2 prompts have more than the 6 tokens"):
        tokenizer(["x" * 7, "x" * 20, "x"])


def test_text_that_holds_the_id_of_padding_is_still_measured_right() -> None:
    """Id 0 pads, and is the byte of an exclamation mark that no merge takes up."""
    assert EIGHT_TOKENS.tokenize.encode("!^") == [0, 317]  # type: ignore[attr-defined]
    assert EIGHT_TOKENS(["!^ !^ !^"])[0, 1:7].tolist() == [0, 317] * 3
    with pytest.raises(TemplatesError, match="1 prompt has more than the 8 tokens"):
        EIGHT_TOKENS(["!^ !^ !^ !^"])


def test_unsupported_tokenizer_mode_is_refused(source: ModelSource) -> None:
    config = copy.deepcopy(dict(source.config))
    config["text_cfg"]["tokenizer_mode"] = "clips"
    with pytest.raises(ModelError) as caught:
        load_tokenizer(replace(source, config=config))
    assert caught.value.message == "tiny-vit: tokenizer mode 'clips' is not supported"


def test_merges_are_found_from_any_working_directory(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_tokenizer(source).tokenize.vocab_size == VOCAB_SIZE  # type: ignore[attr-defined]


def test_missing_merges_are_named(source: ModelSource, vit_folder: Path) -> None:
    merges = vit_folder.resolve() / "bpe.txt.gz"
    merges.unlink()
    with pytest.raises(ModelError) as caught:
        load_tokenizer(source)
    assert caught.value.message == (
        f"{merges}: is missing; the model's config names it as its bpe_path"
    )


def test_vocabulary_that_is_not_the_models_is_an_error(source: ModelSource) -> None:
    config = copy.deepcopy(dict(source.config))
    config["text_cfg"]["vocab_size"] = 49408
    with pytest.raises(ModelError) as caught:
        load_tokenizer(replace(source, config=config))
    assert caught.value.message == (
        f"the tokenizer of tiny-vit has {VOCAB_SIZE} tokens, but its text tower has 49408"
    )


def test_tokenizer_of_the_hub_without_transformers_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    source = find_model("ViT-B-16-SigLIP", pretrained=None, random_weights=True)
    with pytest.raises(MissingDependencyError) as caught:
        load_tokenizer(source)
    assert caught.value.message.startswith(
        "the tokenizer of ViT-B-16-SigLIP needs a package that is not installed: "
    )
    assert caught.value.hint == "pip install 'wiseft-cli[hf]'"

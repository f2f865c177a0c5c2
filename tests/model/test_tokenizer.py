"""Prompts are tokenized with the model's own tokenizer and never cut silently."""

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
"""18 tokens of one byte each; with start and end of text 20."""


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


def test_longest_fitting_prompt_keeps_its_end_of_text(tokenizer: PromptTokenizer) -> None:
    tokens = tokenizer([FITTING])
    assert tokens.shape == (1, CONTEXT_LENGTH)
    assert tokens[0, -1] == VOCAB_SIZE - 1
    tokenizer.find_long([FITTING])


def test_all_prompts_that_exceed_the_context_are_named(tokenizer: PromptTokenizer) -> None:
    long = [FITTING + "z", FITTING + "zqzq"]
    expected = (
        f"2 prompts longer than the 20 tokens of the model's context:\n  {long[0]}\n  {long[1]}"
    )
    for call in (tokenizer, tokenizer.find_long):
        with pytest.raises(TemplatesError) as caught:
            call([long[0], "a cat", FITTING, long[1]])
        assert caught.value.message == expected
        assert caught.value.hint == (
            "shorten the templates or the class names, or cut prompts with --truncate"
        )


def test_truncated_prompts_keep_their_end_of_text_and_are_returned(
    tokenizer: PromptTokenizer,
) -> None:
    truncating = replace(tokenizer, truncates=True)
    long = FITTING + " zq"
    assert truncating.find_long([long, "a cat", FITTING]) == [long]
    tokens = truncating([long, "a cat", FITTING])
    assert torch.equal(tokens[0], tokens[2])
    assert tokens[0, -1] == VOCAB_SIZE - 1
    assert torch.equal(tokens[1:], tokenizer(["a cat", FITTING]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_find_long_and_tokenizing_agree(texts: list[str]) -> None:
    tokenizer = EIGHT_TOKENS

    def rejects(call: object) -> bool:
        try:
            call(texts)  # type: ignore[operator]
        except TemplatesError:
            return True
        return False

    too_long = any(len(tokenizer.tokenize.encode(text)) > 6 for text in texts)  # type: ignore[attr-defined]
    assert rejects(tokenizer) == too_long
    if rejects(tokenizer.find_long):
        assert too_long


class HfTokenizer:
    """A Hugging Face tokenizer as open_clip wraps it, with `end` and `pad` tokens."""

    def __init__(self, *, pad: int, end: int) -> None:
        self.tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=end, sep_token_id=None)
        self.pad, self.end = pad, end

    def __call__(self, texts: list[str], context_length: int) -> torch.Tensor:
        rows = [[9] * min(len(text), context_length - 1) + [self.end] for text in texts]
        return torch.tensor([row + [self.pad] * (context_length - len(row)) for row in rows])


@pytest.mark.parametrize(("pad", "end"), [(0, 2), (1, 1), (0, 0)])
def test_long_prompts_are_found_if_end_of_text_is_also_padding(pad: int, end: int) -> None:
    tokenizer = prompt_tokenizer(HfTokenizer(pad=pad, end=end), 6)
    assert tokenizer(["x" * 5, "x"]).shape == (2, 6)
    with pytest.raises(TemplatesError, match="1 prompt longer than the 6 tokens"):
        tokenizer(["x" * 6])
    with pytest.raises(TemplatesError, match="2 prompts longer than the 6 tokens"):
        tokenizer(["x" * 7, "x" * 20, "x"])


def test_length_of_text_that_contains_the_padding_id_is_right() -> None:
    """Id 0 is padding, and also the token of an exclamation mark outside any merge."""
    assert EIGHT_TOKENS.tokenize.encode("!^") == [0, 317]  # type: ignore[attr-defined]
    assert EIGHT_TOKENS(["!^ !^ !^"])[0, 1:7].tolist() == [0, 317] * 3
    with pytest.raises(TemplatesError, match="1 prompt longer than the 8 tokens"):
        EIGHT_TOKENS(["!^ !^ !^ !^"])


def test_unsupported_tokenizer_mode_is_rejected(source: ModelSource) -> None:
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


def test_missing_merges_are_reported(source: ModelSource, vit_folder: Path) -> None:
    merges = vit_folder.resolve() / "bpe.txt.gz"
    merges.unlink()
    with pytest.raises(ModelError) as caught:
        load_tokenizer(source)
    assert caught.value.message == (
        f"{merges}: not found, but bpe_path in the model's config names it"
    )


@pytest.mark.parametrize("bpe_path", ["../bpe.txt.gz", "/etc/hostname", 7, ["a"]])
def test_merges_outside_the_model_folder_are_an_error(
    source: ModelSource, bpe_path: object
) -> None:
    config = copy.deepcopy(dict(source.config))
    config["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": bpe_path}
    with pytest.raises(ModelError, match="expected the name of a file inside the model folder"):
        load_tokenizer(replace(source, config=config))


def test_vocabulary_of_another_size_is_an_error(source: ModelSource) -> None:
    config = copy.deepcopy(dict(source.config))
    config["text_cfg"]["vocab_size"] = 49408
    with pytest.raises(ModelError) as caught:
        load_tokenizer(replace(source, config=config))
    assert caught.value.message == (
        f"the tokenizer of tiny-vit has {VOCAB_SIZE} tokens, but its text tower has 49408"
    )


def test_hf_tokenizer_without_transformers_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    source = find_model("ViT-B-16-SigLIP", pretrained=None, random_weights=True)
    with pytest.raises(MissingDependencyError) as caught:
        load_tokenizer(source)
    assert caught.value.message.startswith("tokenizer of ViT-B-16-SigLIP: needs ")
    assert caught.value.hint == "pip install 'wiseft-cli[hf]'"

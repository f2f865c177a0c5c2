"""The head equals open_clip's and the formula, for any batch size."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from tests.model.conftest import CONTEXT_LENGTH, FAMILIES, random_clip
from wiseft_cli.errors import ModelError, TemplatesError
from wiseft_cli.model import zeroshot_head
from wiseft_cli.model.text_encoder import TextEncoder
from wiseft_cli.model.tokenizer import PromptTokenizer, prompt_tokenizer
from wiseft_cli.model.zeroshot_head import build_zeroshot_head, encode_prompts
from wiseft_cli.prompts.templates import fill_template

NAMES = ["cat", "a rather long dog", "x", "tree house", "owl"]
TEMPLATES = ["a photo of a {}.", "{}", "art of the {}", "a bad {}."]


@pytest.fixture
def tokenizer(simple_tokenizer: open_clip.SimpleTokenizer) -> PromptTokenizer:
    return prompt_tokenizer(simple_tokenizer, CONTEXT_LENGTH)


def class_prompts(names: list[str], templates: list[str]) -> Iterator[tuple[int, str]]:
    for index, name in enumerate(names):
        for template in templates:
            yield index, fill_template(template, name)


def head_of(
    model: Any, tokenizer: PromptTokenizer, names: list[str], templates: list[str], **options: Any
) -> torch.nn.Linear:
    features = encode_prompts(
        model, tokenizer, class_prompts(names, templates), class_count=len(names), **options
    )
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias.detach())
    return build_zeroshot_head(
        features, scale=float(model.logit_scale.detach().exp()), bias=bias, class_ids=names
    )


def assert_close_relative(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max()
    assert difference <= 1e-5 * expected.double().abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_head_equals_open_clips_classifier_times_the_scale(
    family: str, tokenizer: PromptTokenizer
) -> None:
    model = random_clip(family)
    expected = open_clip.build_zero_shot_classifier(model, tokenizer.tokenize, NAMES, TEMPLATES)
    head = head_of(model, tokenizer, NAMES, TEMPLATES, batch_size=3)
    with torch.no_grad():
        assert_close_relative(head.weight, expected.T * model.logit_scale.exp())


def test_head_equals_the_formula_in_float64(tokenizer: PromptTokenizer) -> None:
    model = random_clip("vit").double()
    rows = []
    with torch.no_grad():
        for name in NAMES:
            prompts = [template.replace("{}", name) for template in TEMPLATES]
            features = model.encode_text(tokenizer.tokenize(prompts)).numpy()
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            mean = features.mean(axis=0)
            rows.append(mean / np.linalg.norm(mean))
    expected = np.exp(model.logit_scale.detach().item()) * np.stack(rows)
    head = head_of(random_clip("vit"), tokenizer, NAMES, TEMPLATES)
    assert_close_relative(head.weight, torch.from_numpy(expected))


@pytest.mark.parametrize("names", [["cat"], ["cat", "dog"]])
def test_heads_of_one_and_two_classes_work(names: list[str], tokenizer: PromptTokenizer) -> None:
    model = random_clip("vit")
    head = head_of(model, tokenizer, names, TEMPLATES)
    assert head.weight.shape == (len(names), 24)
    assert head.bias.shape == (len(names),)
    norms = head.weight.norm(dim=1)
    torch.testing.assert_close(norms, model.logit_scale.exp().expand(len(names)))


def test_bias_is_the_logit_bias_of_the_model_or_zero(tokenizer: PromptTokenizer) -> None:
    siglip = random_clip("siglip")
    head = head_of(siglip, tokenizer, NAMES, TEMPLATES)
    assert torch.equal(head.bias, siglip.logit_bias.detach().expand(len(NAMES)))
    assert not head_of(random_clip("vit"), tokenizer, NAMES, TEMPLATES).bias.any()


def test_siglip_logits_equal_those_of_the_full_model(tokenizer: PromptTokenizer) -> None:
    model = random_clip("siglip")
    head = head_of(model, tokenizer, NAMES, ["{}"])
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, _ = model.get_logits(images, tokenizer(NAMES))
        found = head(model.encode_image(images, normalize=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "window_batches"), [(1, 1), (7, 1), (2, 3), (256, 64)])
def test_head_does_not_depend_on_batch_and_window_sizes(
    batch_size: int,
    window_batches: int,
    tokenizer: PromptTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_clip("vit")
    expected = head_of(model, tokenizer, NAMES, TEMPLATES)
    monkeypatch.setattr(zeroshot_head, "WINDOW_BATCHES", window_batches)
    found = head_of(model, tokenizer, NAMES, TEMPLATES, batch_size=batch_size)
    assert_close_relative(found.weight, expected.weight)


def test_batches_contain_no_padding(tokenizer: PromptTokenizer) -> None:
    """The number of computed positions is the number of tokens in the prompts."""
    model = random_clip("vit")
    positions: list[int] = []
    model.transformer.register_forward_pre_hook(
        lambda _module, inputs: positions.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    prompts = [(0, text) for text in ("a photo of a cat.", "a") * 8]
    encode_prompts(model, tokenizer, prompts, class_count=1, batch_size=6)
    lengths = [int((tokenizer([text]) != 0).sum()) for text in ("a photo of a cat.", "a")]
    assert sum(positions) == 8 * sum(lengths)


def test_prompts_are_read_one_window_at_a_time(
    tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeroshot_head, "WINDOW_BATCHES", 2)
    read_when_encoded: list[int] = []
    read = 0

    def prompts() -> Iterator[tuple[int, str]]:
        nonlocal read
        for index in range(40):
            read += 1
            yield index % 4, "x"

    encode_prompts(
        random_clip("vit"),
        tokenizer,
        prompts(),
        class_count=4,
        batch_size=5,
        on_progress=lambda _count: read_when_encoded.append(read),
    )
    assert read_when_encoded == [10, 10, 20, 20, 30, 30, 40, 40]


class PeakRows:
    """Record the largest number of rows of all tensors that are alive at once."""

    def __init__(self) -> None:
        self.alive: list[tuple[weakref.ref[torch.Tensor], int]] = []
        self.peak = 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        self.alive.append((weakref.ref(tensor), len(tensor)))
        self.peak = max(self.peak, sum(rows for ref, rows in self.alive if ref() is not None))
        return tensor


def test_memory_of_tokens_and_features_is_bounded(
    tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most two windows of tokens and two batches of features are alive."""
    batch_size, window = 5, 10
    tokens, features = PeakRows(), PeakRows()
    encode = TextEncoder.__call__
    monkeypatch.setattr(zeroshot_head, "WINDOW_BATCHES", window // batch_size)
    monkeypatch.setattr(
        TextEncoder, "__call__", lambda self, batch: features.add(encode(self, batch))
    )
    recording = replace(
        tokenizer, tokenize=lambda *args, **kw: tokens.add(tokenizer.tokenize(*args, **kw))
    )
    prompts = ((index // 9, f"x {index}") for index in range(900))
    encode_prompts(random_clip("vit"), recording, prompts, class_count=100, batch_size=batch_size)
    assert 0 < tokens.peak <= 2 * window
    assert 0 < features.peak <= 2 * batch_size


def test_classes_can_have_different_numbers_of_prompts(tokenizer: PromptTokenizer) -> None:
    model = random_clip("vit")
    prompts = [(1, "a cat"), (0, "x"), (1, "the cat"), (1, "cat")]
    found = encode_prompts(model, tokenizer, prompts, class_count=2)
    alone = encode_prompts(
        model, tokenizer, [(0, text) for index, text in prompts if index == 1], class_count=1
    )
    torch.testing.assert_close(found[1], alone[0], rtol=1e-5, atol=1e-6)


def test_progress_counts_each_prompt_once(tokenizer: PromptTokenizer) -> None:
    counts: list[int] = []
    encode_prompts(
        random_clip("vit"),
        tokenizer,
        class_prompts(NAMES, TEMPLATES),
        class_count=5,
        batch_size=8,
        on_progress=counts.append,
    )
    assert sum(counts) == 20
    assert max(counts) <= 8


def test_class_with_cancelling_features_is_an_error() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ModelError) as caught:
        build_zeroshot_head(features, scale=1.0, class_ids=["cat", "dog"])
    assert caught.value.message == "the text features of 1 class cancel out:\n  dog"


def test_class_without_a_prompt_is_an_error(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(ModelError, match=r"^1 class without a prompt$"):
        encode_prompts(random_clip("vit"), tokenizer, [(0, "x")], class_count=2)


def test_non_finite_features_name_the_prompt(tokenizer: PromptTokenizer) -> None:
    model = random_clip("vit")
    with torch.no_grad():
        model.text_projection[0, 0] = float("nan")
    with pytest.raises(ModelError) as caught:
        encode_prompts(model, tokenizer, [(0, "a cat")], class_count=1)
    assert caught.value.message == "the text feature of 'a cat' is not finite"


def test_prompts_that_exceed_the_context_are_an_error(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(TemplatesError, match="1 prompt longer than the 20 tokens"):
        encode_prompts(random_clip("vit"), tokenizer, [(0, "zq " * 40)], class_count=1)

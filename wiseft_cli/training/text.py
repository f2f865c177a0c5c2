"""Text features that methods compare images with: CAR-FT's contexts, Lipsum-FT's random texts.

A checkpoint has no text tower, so it comes from the CLIP model that the checkpoint was made from.
The tower is frozen: the contexts are encoded once, and the random texts, which are drawn anew for
each step, take 80 short prompts per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.errors import ModelError
from wiseft_cli.model.full_clip import FullClip, load_full_clip
from wiseft_cli.model.model_source import find_model
from wiseft_cli.model.text_encoder import TextEncoder
from wiseft_cli.model.zeroshot_head import encode_prompts
from wiseft_cli.prompts.templates import PLACEHOLDER
from wiseft_cli.training.batches import Purpose, derive_seed
from wiseft_cli.training.kept import TextSource
from wiseft_cli.training.recipe import ResolvedRecipe

N_RANDOM_TEXTS = 80
N_RANDOM_TOKENS = 8
"""Of each random text, as in the paper; fewer if the model's context is shorter."""


class Vocabulary(NamedTuple):
    """The tokens of a text tower: start and end of text, and the number of those below both."""

    start: int
    end: int
    n_tokens: int
    length: int


@dataclass(frozen=True)
class TextGuide:
    """The text side of a CLIP model.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights; None if they are random.
        scale: exp(logit_scale), the factor on cosine similarities.
        contexts: L2-normalized features of the class-free prompts, shape (K, D); None if unused.
        encoder: The text tower, for random texts; None if unused.
        vocabulary: The tokens of random texts; None if unused.
        notes: Remarks about the model for the user.
    """

    name: str
    digest: str | None
    scale: float
    contexts: Tensor | None = None
    encoder: TextEncoder | None = None
    vocabulary: Vocabulary | None = None
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device) -> TextGuide:
        """Return the guide on a device."""
        if self.encoder is not None:
            self.encoder.to(device)
        contexts = None if self.contexts is None else self.contexts.to(device)
        return replace(self, contexts=contexts)

    @torch.no_grad()
    def random_features(self, seed: int, step: int) -> Tensor:
        """Return the L2-normalized features of the random texts of a step, shape (K, D)."""
        assert self.encoder is not None
        assert self.vocabulary is not None
        start, end, n_tokens, length = self.vocabulary
        generator = torch.Generator()
        generator.manual_seed(derive_seed(seed, Purpose.RANDOM_TEXTS, step))
        shape = (N_RANDOM_TEXTS, length)
        words = torch.randint(n_tokens, shape, generator=generator)
        ends = torch.full((2, N_RANDOM_TEXTS, 1), start)
        ends[1] = end
        tokens = torch.cat([ends[0], words, ends[1]], dim=1)
        return self.encoder(tokens.to(self.encoder.device))


def load_text_guide(
    source: TextSource, parent: Path, card: Card, recipe: ResolvedRecipe
) -> TextGuide:
    """Load the text tower that a recipe needs.

    Args:
        source: The CLIP model that `parent` was made from.
        parent: The checkpoint that the run starts from.
        card: Its card, with the templates of the head.
        recipe: A recipe with CAR-FT or Lipsum-FT.
    Raises:
        ModelError: The model cannot be loaded, is not that of the parent, or does not fit a
            method.
    """
    found = find_model(
        source.model, pretrained=source.pretrained, random_weights=source.random_weights
    )
    full = load_full_clip(found, image_encoder=parent)
    scale = card.logit_scale or full.logit_scale
    guide = TextGuide(full.name, full.weights_digest, scale, notes=full.notes)
    if recipe.car_ft:
        guide = replace(guide, contexts=_encode_contexts(full, card))
    if recipe.lipsum_ft:
        encoder = TextEncoder(full.model.requires_grad_(False))
        guide = replace(guide, encoder=encoder, vocabulary=_vocabulary_of(full, encoder))
    return guide


def class_free_prompts(templates: Sequence[str]) -> list[str]:
    """Return templates without the class name, each once: `a photo of a .`."""
    prompts = (" ".join(at.replace(PLACEHOLDER, " ").split()) for at in templates)
    return [prompt for prompt in dict.fromkeys(prompts) if prompt]


def _encode_contexts(full: FullClip, card: Card) -> Tensor:
    prompts = class_free_prompts([at for at in card.templates if PLACEHOLDER in at])
    if len(prompts) < 2:
        raise ModelError(
            f"car_ft needs at least two templates in the head's card, found {len(prompts)}:"
            " the distribution over a single context is constant",
            hint="build the head with several templates: wiseft zeroshot-head --templates openai",
        )
    pairs = list(enumerate(prompts))
    features = encode_prompts(full.model, full.tokenizer, pairs, class_count=len(prompts))
    return features.float()


def _vocabulary_of(full: FullClip, encoder: TextEncoder) -> Vocabulary:
    tokens = full.tokenizer([""])[0]
    if not encoder.ignores_padding or int(encoder.lengths(tokens[None])[0]) != 2:
        raise ModelError(
            f"lipsum_ft needs a text tower that begins and ends texts as CLIP does; that of"
            f" {full.name} does not",
            hint="train without it; --car-ft works with every text tower",
        )
    start, end = tokens[:2].tolist()
    length = min(N_RANDOM_TOKENS, full.tokenizer.context_length - 2)
    return Vocabulary(start, end, min(start, end), length)

"""From a CLIP model, class names and templates to a zero-shot checkpoint.

The whole of `wiseft zeroshot-head` below its options. The text tower is let go before the
checkpoint is written, and the image encoder is written from where it lies.
It does not parse options and does not print.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wiseft_cli import __version__
from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.checkpoint.card import (
    Card,
    HistoryEntry,
    HistoryInput,
    ModelSpec,
    join_histories,
)
from wiseft_cli.checkpoint.digest import canonical_json, sha256_of
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import brief, list_some
from wiseft_cli.model.classifier import ImageClassifier, state_arrays
from wiseft_cli.model.encoder_checkpoint import load_encoder, put_encoder
from wiseft_cli.model.full_clip import FullClip, load_full_clip
from wiseft_cli.model.model_source import ModelSource, find_model
from wiseft_cli.model.text_encoder import Precision
from wiseft_cli.model.zeroshot_head import build_zeroshot_head, encode_prompts, logit_scale_of
from wiseft_cli.prompts.class_names import ClassList


@dataclass(frozen=True)
class ZeroshotRequest:
    """What is to be made.

    Attributes:
        model: open_clip name, `hf-hub:org/repo`, or `local-dir:path`.
        pretrained: Tag or weights file; None for the last two kinds, and for random weights.
        classes: In the order of the head's rows.
        templates: Each holds `{}`; of no use to classes with prompts of their own.
        random_weights: Whether weights are drawn at random instead of loaded.
        quick_gelu: The activation, where it is not to be what the weights say.
        truncate: Whether prompts longer than the model's context are cut.
        image_encoder: Checkpoint whose image encoder is taken instead of the model's own.
        precision: In what the text tower computes; features are averaged in float64 always.
    """

    model: str
    pretrained: str | None
    classes: ClassList
    templates: tuple[str, ...]
    random_weights: bool = False
    quick_gelu: bool | None = None
    truncate: bool = False
    image_encoder: Path | None = None
    precision: Precision = "fp32"

    @property
    def prompts(self) -> Iterator[tuple[int, str]]:
        """Class index and prompt, class after class; a new iterator each time."""
        return self.classes.prompts(self.templates)


def _ignore(_text: str) -> None:
    """Hear and say nothing."""


def write_zeroshot_checkpoint(
    output: Path,
    request: ZeroshotRequest,
    *,
    device: torch.device,
    batch_size: int = 256,
    force: bool = False,
    on_model: Callable[[str], object] = _ignore,
    on_note: Callable[[str], object] = _ignore,
    on_progress: Callable[[int], object] | None = None,
) -> str:
    """Build the zero-shot classifier and write it.

    Args:
        output: The checkpoint.
        device: Where prompts are encoded.
        batch_size: Prompts a forward pass.
        force: Whether an existing output may be overwritten.
        on_model: Told which model was built from which weights, in one line.
        on_note: Told what the person should know of it, a line at a time.
        on_progress: Told the number of prompts after each batch.
    Returns:
        The content digest.
    Raises:
        ModelError: The model cannot be built, or its weights not be had, or it is not the one
            that the image encoder was made from.
        CheckpointError: The image encoder's checkpoint holds no classifier.
        TemplatesError: Prompts longer than the model's context, unless they are to be cut.
        OutputError: The output cannot be written, or is a file the model is read from.
    """
    source = find_model(
        request.model, pretrained=request.pretrained, random_weights=request.random_weights
    )
    own_encoder = [] if request.image_encoder is None else [request.image_encoder]
    check_output(output, force=force, inputs=[*source.files, *own_encoder])
    full, encoder = _load_model(request, source, device)
    on_model(full.description)
    long_prompts = full.tokenizer.check(text for _, text in request.prompts)
    for note in (*full.notes, *_cut_notes(long_prompts, full.tokenizer.context_length)):
        on_note(note)
    head = _build_head(full, request, batch_size=batch_size, on_progress=on_progress)
    card = _card(full, request, were_cut=bool(long_prompts))
    if encoder is not None:
        card = _with_encoder(card, encoder)
    model: Any = full.model
    classifier = ImageClassifier(model.visual, head)
    del full, model
    return write_checkpoint(output, state_arrays(classifier), card, force=force)


def _load_model(
    request: ZeroshotRequest, source: ModelSource, device: torch.device
) -> tuple[FullClip, Card | None]:
    """The model to work with, and the card of the checkpoint its image encoder is from, if any."""
    encoder = None if request.image_encoder is None else load_encoder(request.image_encoder)
    full = load_full_clip(source, device=device, quick_gelu=request.quick_gelu)
    full = replace(full, tokenizer=replace(full.tokenizer, truncates=request.truncate))
    if encoder is None:
        return full, None
    return replace(full, notes=full.notes + put_encoder(full, encoder)), encoder.card


def _build_head(
    full: FullClip,
    request: ZeroshotRequest,
    *,
    batch_size: int,
    on_progress: Callable[[int], object] | None,
) -> nn.Linear:
    class_features = encode_prompts(
        full.model,
        full.tokenizer,
        request.prompts,
        class_count=len(request.classes.entries),
        batch_size=batch_size,
        precision=request.precision,
        on_progress=on_progress,
    )
    model: Any = full.model
    return build_zeroshot_head(
        class_features,
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
        class_ids=[entry.id for entry in request.classes.entries],
    )


def _cut_notes(prompts: Sequence[str], context_length: int) -> tuple[str, ...]:
    if not prompts:
        return ()
    count = "1 prompt is" if len(prompts) == 1 else f"{len(prompts)} prompts are"
    shown = ", ".join(list_some([repr(brief(text)) for text in prompts], limit=3))
    return (f"{count} cut to {context_length} tokens, the end-of-text token included: {shown}",)


def _card(full: FullClip, request: ZeroshotRequest, *, were_cut: bool) -> Card:
    model: Any = full.model
    templates = _templates_or_digest(request)
    classes = [[entry.id, entry.name] for entry in request.classes.entries]
    options: dict[str, Any] = {
        "model": full.name,
        "pretrained": full.source,
        "weights": full.weights_digest,
        "classes": sha256_of(canonical_json(classes).encode()),
        "templates": templates["digest"]
        if isinstance(templates, dict)
        else sha256_of(canonical_json(templates).encode()),
    }
    # What was left alone is left out, so that a plain run's history stays as short as it was.
    if were_cut:
        options["truncate"] = True
    if request.quick_gelu is not None:
        options["quick_gelu"] = request.quick_gelu
    if request.precision != "fp32":
        options["precision"] = request.precision
    return Card(
        role="zeroshot",
        model=ModelSpec(full.name, full.source, full.encoder_config),
        preprocess=full.preprocess,
        classes=request.classes.entries,
        templates=templates,
        logit_scale=logit_scale_of(model.logit_scale),
        history=(HistoryEntry("zeroshot-head", __version__, options, inputs=()),),
    )


def _with_encoder(card: Card, encoder: Card) -> Card:
    """The card of a head on another checkpoint's encoder: made from both, fed as the encoder."""
    (step,) = card.history
    step = replace(step, inputs=(HistoryInput("image_encoder", str(encoder.digest)),))
    return replace(
        card,
        model=encoder.model,
        preprocess=encoder.preprocess,
        history=(*join_histories(encoder), step),
    )


def _templates_or_digest(request: ZeroshotRequest) -> tuple[str, ...] | dict[str, Any]:
    """The templates, or where prompts are not each name in each template, what they all were.

    The digest is of lines of canonical JSON, `[class id, prompt]`, in the order of the classes.
    """
    if not request.classes.has_own_wording:
        return request.templates
    digest = hashlib.sha256()
    count = 0
    for index, prompt in request.prompts:
        line = canonical_json([request.classes.entries[index].id, prompt])
        digest.update(f"{line}\n".encode())
        count += 1
    return {"digest": f"sha256:{digest.hexdigest()}", "count": count}

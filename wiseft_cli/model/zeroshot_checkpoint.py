"""From a CLIP model, class names and templates to a zero-shot checkpoint.

The whole of `wiseft zeroshot-head` below its options. The text tower is let go before the
checkpoint is written, and the image encoder is written from where it lies.
It does not parse options and does not print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wiseft_cli import __version__
from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.checkpoint.card import Card, ClassEntry, HistoryEntry, ModelSpec
from wiseft_cli.checkpoint.digest import canonical_json, sha256_of
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.model.classifier import ImageClassifier, state_arrays
from wiseft_cli.model.full_clip import FullClip, load_full_clip
from wiseft_cli.model.image_encoder import image_encoder_config
from wiseft_cli.model.model_source import find_model
from wiseft_cli.model.zeroshot_head import build_zeroshot_head, encode_prompts, logit_scale_of
from wiseft_cli.prompts.templates import class_prompts


@dataclass(frozen=True)
class ZeroshotRequest:
    """What is to be made.

    Attributes:
        model: open_clip name, `hf-hub:org/repo`, or `local-dir:path`.
        pretrained: Tag or weights file; None for the last two kinds, and for random weights.
        classes: In the order of the head's rows.
        templates: Each holds `{}`.
        random_weights: Whether weights are drawn at random instead of loaded.
    """

    model: str
    pretrained: str | None
    classes: tuple[ClassEntry, ...]
    templates: tuple[str, ...]
    random_weights: bool = False

    @property
    def prompts(self) -> Iterator[tuple[int, str]]:
        """Class index and prompt, class after class; a new iterator each time."""
        return class_prompts([entry.name for entry in self.classes], self.templates)


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
        ModelError: The model cannot be built, or its weights not be had.
        TemplatesError: Prompts longer than the model's context.
        OutputError: The output cannot be written, or is a file the model is read from.
    """
    source = find_model(
        request.model, pretrained=request.pretrained, random_weights=request.random_weights
    )
    check_output(output, force=force, inputs=source.files)
    full = load_full_clip(source, device=device)
    on_model(_describe(full))
    for note in full.notes:
        on_note(note)
    full.tokenizer.check(text for _, text in request.prompts)
    class_features = encode_prompts(
        full.model,
        full.tokenizer,
        request.prompts,
        class_count=len(request.classes),
        batch_size=batch_size,
        on_progress=on_progress,
    )
    model: Any = full.model
    head = build_zeroshot_head(
        class_features,
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
        class_ids=[entry.id for entry in request.classes],
    )
    card = _card(full, request)
    classifier = ImageClassifier(model.visual, head)
    del full, model
    return write_checkpoint(output, state_arrays(classifier), card, force=force)


def _describe(full: FullClip) -> str:
    activation = "QuickGELU" if full.config["quick_gelu"] else "GELU"
    size = full.preprocess["size"]
    pixels = f"{size}" if isinstance(size, int) else "x".join(map(str, size))
    source = full.source or "random"
    weights = f"{source[:19]}..." if source.startswith("sha256:") else source
    return f"{full.name}, weights {weights}, {activation}, {pixels} px"


def _card(full: FullClip, request: ZeroshotRequest) -> Card:
    model: Any = full.model
    config = image_encoder_config(full.config)
    config["vision_cfg"]["image_size"] = full.preprocess["size"]
    classes = [[entry.id, entry.name] for entry in request.classes]
    options = {
        "model": full.name,
        "pretrained": full.source,
        "weights": full.weights_digest,
        "classes": sha256_of(canonical_json(classes).encode()),
        "templates": sha256_of(canonical_json(request.templates).encode()),
    }
    return Card(
        role="zeroshot",
        model=ModelSpec(full.name, full.source, config),
        preprocess=full.preprocess,
        classes=request.classes,
        templates=request.templates,
        logit_scale=logit_scale_of(model.logit_scale),
        history=(HistoryEntry("zeroshot-head", __version__, options, inputs=()),),
    )

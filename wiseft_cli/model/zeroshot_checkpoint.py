"""Build a zero-shot checkpoint from a CLIP model, class names and templates.

The text tower is freed before the checkpoint is written, and the image encoder is written without
a copy. Importing this module does not import torch, so wrong classes or templates are reported
without delay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from wiseft_cli.errors import UsageError, brief, counted, list_some
from wiseft_cli.model.zeroshot_prompts import ClassPrompts, resolve_prompts

if TYPE_CHECKING:
    from wiseft_cli.model.full_clip import FullClip

_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class ZeroshotCheckpoint:
    """A checkpoint that `build_zeroshot_checkpoint` wrote.

    Attributes:
        path: The file.
        digest: Its content digest.
        notes: Remarks and warnings for the user.
    """

    path: Path
    digest: str
    notes: tuple[str, ...]


def build_zeroshot_checkpoint(
    output: str | Path,
    *,
    model: str,
    classes: str | Path | Sequence[str] | Mapping[str, str],
    templates: str | Path | Sequence[str] = (),
    pretrained: str | Path | None = None,
    image_encoder: str | Path | None = None,
    template_sources: Sequence[str | Path] = (),
    truncate: bool = False,
    quick_gelu: bool | None = None,
    precision: str = "fp32",
    batch_size: int = 256,
    device: str = "auto",
    random_weights: bool = False,
    force: bool = False,
    on_message: Callable[[str], object] = lambda text: None,
    on_progress: Callable[[int, int], object] = lambda total, n: None,
) -> ZeroshotCheckpoint:
    """Build a zero-shot checkpoint from a CLIP model, class names and templates.

    Args:
        output: The checkpoint to write.
        model: open_clip name, `hf-hub:org/repo`, or `local-dir:path`.
        classes: Class names, as a list or as a mapping of ids to names; or a file or folder, a
            built-in set (`imagenet`), or a data set card.
        templates: Templates with `{}` for the class name; or a file, a built-in set (`openai`,
            `simple`), or a data set card. Default: `a photo of a {}.`
        pretrained: Tag or local weights file of an open_clip name.
        image_encoder: A checkpoint whose image encoder replaces the model's own.
        template_sources: More files, sets or cards, whose templates precede `templates`.
        truncate: Whether prompts that exceed the model's context are cut.
        quick_gelu: Overrides the activation of the weights.
        precision: Precision of the text tower, `fp32` or `bf16`; the file is always float32.
        batch_size: Prompts per forward pass.
        device: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto` for CUDA if available.
        random_weights: Whether weights are random, from a fixed seed, for trials.
        force: Whether an existing output is overwritten.
        on_message: Called with each line for the user, before the prompts are encoded.
        on_progress: Called with the number of prompts and the number just encoded.
    Raises:
        ClassNamesError: The classes are not valid.
        TemplatesError: The templates are not valid, or prompts exceed the model's context.
        ModelError: The model cannot be loaded, or `image_encoder` was made from another model.
        CheckpointError: `image_encoder` is not a classifier.
        OutputError: The output cannot be written, or is also an input.
        UsageError: Arguments contradict each other.
    """
    if precision not in _PRECISIONS:
        raise UsageError(f"precision {precision}: expected {' or '.join(_PRECISIONS)}")
    output = Path(output)
    given = [classes, templates, pretrained, image_encoder, *template_sources]
    inputs = [Path(value) for value in given if isinstance(value, (str, Path))]
    check_output(output, force=force, inputs=inputs)
    prompts, lines = resolve_prompts(classes, templates, template_sources)
    for line in lines:
        on_message(line)

    # lazy: torch and open_clip cost seconds
    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.model.classifier import ImageClassifier, state_arrays
    from wiseft_cli.model.full_clip import load_full_clip, note_line
    from wiseft_cli.model.model_source import find_model
    from wiseft_cli.model.zeroshot_head import build_zeroshot_head, encode_prompts

    torch_device = resolve_device(device)
    weights = None if pretrained is None else str(pretrained)
    source = find_model(model, pretrained=weights, random_weights=random_weights)
    check_output(output, force=force, inputs=[*inputs, *source.files])
    full = load_full_clip(
        source,
        device=torch_device,
        quick_gelu=quick_gelu,
        truncate=truncate,
        image_encoder=None if image_encoder is None else Path(image_encoder),
    )
    on_message(f"model: {full.description}")
    long_prompts = full.tokenizer.find_long(text for _, text in prompts)
    notes = (*full.notes, *_truncation_notes(long_prompts, full.tokenizer.context_length))
    for note in notes:
        on_message(note_line(note))
    class_features = encode_prompts(
        full.model,
        full.tokenizer,
        prompts,
        class_count=len(prompts.classes.entries),
        batch_size=batch_size,
        precision=precision,
        on_progress=partial(on_progress, prompts.count),
    )
    class_ids = [entry.id for entry in prompts.classes.entries]
    head = build_zeroshot_head(
        class_features, scale=full.logit_scale, bias=full.logit_bias, class_ids=class_ids
    )
    # Options at their defaults are omitted from the history.
    options: dict[str, Any] = {"truncate": True} if long_prompts else {}
    options |= {} if quick_gelu is None else {"quick_gelu": quick_gelu}
    options |= {} if precision == "fp32" else {"precision": precision}
    card = _card(full, prompts, options)
    visual: Any = full.model.visual
    arrays = state_arrays(ImageClassifier(visual, head))
    del full  # frees the text tower
    digest = write_checkpoint(output, arrays, card, force=force)
    return ZeroshotCheckpoint(output, digest, (*prompts.classes.notes, *notes))


def _truncation_notes(prompts: Sequence[str], context_length: int) -> tuple[str, ...]:
    if not prompts:
        return ()
    shown = ", ".join(list_some([repr(brief(text)) for text in prompts], limit=3))
    return (
        f"{counted(len(prompts), 'prompt')} cut to {context_length} tokens, including the "
        f"end-of-text token: {shown}",
    )


def _card(full: FullClip, prompts: ClassPrompts, options: Mapping[str, Any]) -> Card:
    """Return the card; the history continues from that of another encoder's."""
    encoder = full.encoder_card
    classes = [[entry.id, entry.name] for entry in prompts.classes.entries]
    templates = prompts.templates_or_digest()
    step = HistoryEntry(
        "zeroshot-head",
        __version__,
        {
            "model": full.name,
            "pretrained": full.source,
            "weights": full.weights_digest,
            "classes": sha256_of(canonical_json(classes).encode()),
            "templates": templates["digest"]
            if isinstance(templates, dict)
            else sha256_of(canonical_json(templates).encode()),
            **options,
        },
        inputs=() if encoder is None else (HistoryInput("image_encoder", str(encoder.digest)),),
    )
    card = Card(
        role="zeroshot",
        model=ModelSpec(full.name, full.source, full.encoder_config),
        preprocess=full.preprocess,
        classes=prompts.classes.entries,
        templates=templates,
        logit_scale=full.logit_scale,
        history=(step,),
    )
    if encoder is None:
        return card
    history = (*join_histories(encoder), step)
    return replace(card, model=encoder.model, preprocess=encoder.preprocess, history=history)

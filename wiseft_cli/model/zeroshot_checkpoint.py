"""Build a zero-shot checkpoint from a CLIP model, class names and templates.

The text tower is freed before the checkpoint is written, and the image encoder is written without
a copy. Importing this module does not import torch, so wrong classes or templates are reported
without delay.
"""

from __future__ import annotations

import unicodedata
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli import __version__
from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.checkpoint.card import (
    APPLY_ORIENTATION,
    EXIF_ORIENTATION,
    EXIF_ORIENTATIONS,
    IGNORE_ORIENTATION,
    Card,
    ClassEntry,
    HistoryEntry,
    HistoryInput,
    ModelSpec,
    join_histories,
)
from wiseft_cli.checkpoint.digest import sha256_of_json
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import ClassNamesError, UsageError, brief, counted, list_some
from wiseft_cli.model.zeroshot_prompts import ClassPrompts, resolve_prompts

if TYPE_CHECKING:
    import numpy as np

    from wiseft_cli.model.full_clip import FullClip
    from wiseft_cli.model.tokenizer import PromptTokenizer

_PRECISIONS = ("fp32", "bf16")
_TOKENIZED_AT_ONCE = 4096


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
    exif_orientation: str | None = None,
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
        image_encoder: A checkpoint whose image encoder replaces the model's own, or a file of
            image encoder weights without a card.
        template_sources: More files, sets or cards, whose templates precede `templates`.
        truncate: Whether prompts that exceed the model's context are cut.
        quick_gelu: Overrides the activation of the weights.
        exif_orientation: `apply` if images are to be turned upright by their EXIF orientation,
            `ignore` if not. Default: `apply`, or with `image_encoder` what its card states.
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
        CheckpointError: `image_encoder` has a card, but is not a classifier.
        OutputError: The output cannot be written, or is also an input.
        UsageError: Arguments contradict each other.
    """
    if precision not in _PRECISIONS:
        raise UsageError(f"precision {precision}: expected {' or '.join(_PRECISIONS)}")
    if exif_orientation not in (None, *EXIF_ORIENTATIONS):
        raise UsageError(
            f"exif_orientation {exif_orientation}: expected {' or '.join(EXIF_ORIENTATIONS)}"
        )
    output = Path(output)
    given = [classes, templates, pretrained, image_encoder, *template_sources]
    inputs = [Path(value) for value in given if isinstance(value, (str, Path))]
    check_output(output, force=force, inputs=inputs)
    origin = str(classes) if isinstance(classes, (str, Path)) else "class names"
    prompts, lines = resolve_prompts(classes, templates, template_sources)
    for line in lines:
        on_message(line)

    # lazy: torch and open_clip cost seconds
    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.model.classifier import ImageClassifier, state_arrays
    from wiseft_cli.model.full_clip import ModelWarning, load_full_clip, note_line
    from wiseft_cli.model.model_source import find_model
    from wiseft_cli.model.weights_file import check_finite
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
    visual: Any = full.model.visual
    if image_encoder is not None:
        tensors = {f"visual.{name}": tensor for name, tensor in visual.state_dict().items()}
        check_finite(Path(image_encoder), tensors)
    on_message(f"model: {full.description}")
    long_prompts = full.tokenizer.find_long(text for _, text in prompts)
    notes = (
        *full.notes,
        *_truncation_notes(long_prompts, full.tokenizer.context_length),
        *map(ModelWarning, _check_distinct_tokens(origin, prompts, full.tokenizer)),
    )
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
    _check_distinct_rows(origin, prompts.classes.entries, state_arrays(head)["weight"])
    # Options at their defaults are omitted from the history.
    options: dict[str, Any] = {"truncate": True} if long_prompts else {}
    options |= {} if quick_gelu is None else {"quick_gelu": quick_gelu}
    options |= {} if precision == "fp32" else {"precision": precision}
    card = _card(full, prompts, options, exif_orientation)
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


def _check_distinct_tokens(
    origin: str, prompts: ClassPrompts, tokenizer: PromptTokenizer
) -> list[str]:
    """Reject classes whose prompts all have the same tokens, and return warnings.

    Such classes get equal rows: a tokenizer may ignore case, punctuation or Unicode form. Classes
    that have equal names in the class list only cause a warning.
    """
    entries = prompts.classes.entries
    groups = _alike(_tokens(prompts.first_prompts(), tokenizer))
    members = set().union(*groups)
    tokens = _tokens(((i, text) for i, text in prompts if i in members), tokenizer)
    same_names, same_prompts, some_prompts = [], [], []
    for group in groups:
        shown = " and ".join(_shown(entries[index]) for index in group)
        if len({tuple(tokens[index]) for index in group}) > 1:
            some_prompts.append(shown)
        elif len({entries[index].name for index in group}) > 1:
            same_prompts.append(shown)
        else:
            same_names.append(shown)
    if same_prompts:
        raise _not_distinct(origin, "their prompts have the same tokens", same_prompts)
    warnings = []
    for reason, found in (
        ("have the same name, so the model cannot distinguish them", same_names),
        ("share prompts that have the same tokens", some_prompts),
    ):
        if found:
            warnings.append(f"{origin}: classes {reason}: {'; '.join(list_some(found))}")
    return warnings


def _alike(tokens: Mapping[int, Sequence[bytes]]) -> list[tuple[int, ...]]:
    """Return the groups of classes that share the tokens of a prompt."""
    groups: dict[bytes, list[int]] = {}
    for index, rows in tokens.items():
        for row in dict.fromkeys(rows):
            groups.setdefault(row, []).append(index)
    return list(dict.fromkeys(tuple(group) for group in groups.values() if len(group) > 1))


def _tokens(
    prompts: Iterable[tuple[int, str]], tokenizer: PromptTokenizer
) -> dict[int, list[bytes]]:
    """Return the sorted tokens of the prompts of each class."""
    tokens: dict[int, list[bytes]] = {}
    stream = iter(prompts)
    while window := list(islice(stream, _TOKENIZED_AT_ONCE)):
        rows = tokenizer([text for _, text in window]).numpy()
        for (index, _), row in zip(window, rows, strict=True):
            insort(tokens.setdefault(index, []), row.tobytes())
    return tokens


def _check_distinct_rows(origin: str, entries: Sequence[ClassEntry], weight: np.ndarray) -> None:
    """Reject rows of the head that are equal to the bit, if their classes have other names."""
    rows: dict[bytes, list[ClassEntry]] = {}
    for entry, row in zip(entries, weight, strict=True):
        rows.setdefault(row.tobytes(), []).append(entry)
    faults = [
        " and ".join(map(_shown, found))
        for found in rows.values()
        if len({entry.name for entry in found}) > 1
    ]
    if faults:
        raise _not_distinct(origin, "their rows of the head are equal", faults)


def _not_distinct(origin: str, reason: str, faults: Sequence[str]) -> ClassNamesError:
    return ClassNamesError(
        f"{origin}: the model cannot distinguish these classes, because {reason}",
        faults=faults,
        hint="give each class a name that differs in more than case, accents or punctuation, or "
        "prompts of its own in a YAML file",
    )


def _shown(entry: ClassEntry) -> str:
    """Return name and id; a name that is not in Unicode form NFC is written with escapes."""
    is_composed = unicodedata.is_normalized("NFC", entry.name)
    name = repr(entry.name) if is_composed else ascii(entry.name)
    return name if entry.id == entry.name else f"{name} ({entry.id})"


def _card(
    full: FullClip,
    prompts: ClassPrompts,
    options: Mapping[str, Any],
    exif_orientation: str | None,
) -> Card:
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
            "classes": sha256_of_json(classes),
            "templates": templates["digest"]
            if isinstance(templates, dict)
            else sha256_of_json(templates),
            **options,
        },
        inputs=()
        if full.encoder_digest is None
        else (HistoryInput("image_encoder", full.encoder_digest),),
    )
    orientation = {EXIF_ORIENTATION: exif_orientation or APPLY_ORIENTATION}
    card = Card(
        role="zeroshot",
        model=ModelSpec(full.name, full.source, full.encoder_config),
        preprocess={**full.preprocess, **orientation},
        classes=prompts.classes.entries,
        templates=templates,
        logit_scale=full.logit_scale,
        history=(step,),
    )
    if encoder is None:
        return card
    own = {EXIF_ORIENTATION: IGNORE_ORIENTATION, **(encoder.preprocess or {})}
    return replace(
        card,
        model=encoder.model,
        preprocess={**own, **(orientation if exif_orientation else {})},
        history=(*join_histories(encoder), step),
    )

"""The card: a JSON document in a checkpoint's metadata that describes the checkpoint.

It contains everything a later command needs to use the file without options: the model's
config, the preprocessing, the classes, and the steps that created the file. Top-level fields
that this version does not know are kept and written back. This module does not read or write
files; `docs/checkpoint-format.md` describes the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.digest import UNKNOWN_DIGEST, canonical_json
from wiseft_cli.errors import CheckpointError

SCHEMA = 2
"""Written; 1 is read too. Its digests are SHA-256."""
_READABLE = (1, SCHEMA)
METADATA_KEY = "wiseft"
ROLES = ("zeroshot", "finetuned", "merged")
NO_MODEL_HINT = (
    "it is a merge of files from other programs; if these are whole CLIP models, `wiseft "
    "zeroshot-head --model NAME --pretrained FILE` makes a classifier of it"
)
"""Remedy for a card without a model, where a classifier is expected."""
EXIF_ORIENTATION = "exif_orientation"
"""The preprocessing field, beside open_clip's, that states whether images are turned upright."""
IGNORE_ORIENTATION, APPLY_ORIENTATION = EXIF_ORIENTATIONS = ("ignore", "apply")
"""Its values; cards without the field mean `ignore`, as open_clip does."""

_OBJECT, _NUMBER = (dict, type(None)), (int, float, type(None))
_TEXT, _INTEGER = (str, type(None)), (int, type(None))


@dataclass(frozen=True)
class ClassEntry:
    """One class: the id that joins data sets, and the name that prompts use."""

    id: str
    name: str


@dataclass(frozen=True)
class ModelSpec:
    """The model that an image encoder belongs to.

    Attributes:
        name: open_clip's model name, or the base name of a local folder.
        source: Pretrained tag, `hf-hub:...`, `sha256:...` of a local weights file, or None for
            random weights.
        config: open_clip's model config as resolved for these weights, `quick_gelu` included.
    """

    name: str
    source: str | None
    config: Mapping[str, Any]


@dataclass(frozen=True)
class HistoryInput:
    """One input of a step: its role and its content digest."""

    role: str
    digest: str


@dataclass(frozen=True)
class HistoryEntry:
    """One step that led to a checkpoint.

    Attributes:
        options: The options that affect the result.
        output: Content digest of the step's output; None for the last step of the file itself.
    """

    command: str
    version: str
    options: Mapping[str, Any]
    inputs: tuple[HistoryInput, ...]
    output: str | None = None


@dataclass(frozen=True)
class Card:
    """Description of a checkpoint.

    Attributes:
        role: `zeroshot`, `finetuned` or `merged`.
        model: None for a merge of files without a card.
        preprocess: open_clip's preprocessing fields, and `exif_orientation`.
        classes: In the order of the rows of the classification head.
        templates: The prompt templates, or their digest and count if every class has its own.
        logit_scale: exp of the stored log value; already included in the classification head.
        alpha: Weight of the fine-tuned models, an exact decimal; merged checkpoints only, and
            None if the method has no alpha.
        method: Merge method; None for (1 - alpha) * theta_0 + alpha * theta_1.
        method_options: Value of each option of the method, by name.
        weights: Weight of each fine-tuned input, in the order of the last entry of the history.
        digest: Content digest of the file's tensors; None until it is known.
        extra: Fields that this version does not know.
    """

    role: str
    model: ModelSpec | None = None
    preprocess: Mapping[str, Any] | None = None
    classes: tuple[ClassEntry, ...] = ()
    templates: tuple[str, ...] | Mapping[str, Any] = ()
    logit_scale: float | None = None
    alpha: str | None = None
    method: str | None = None
    method_options: Mapping[str, Any] | None = None
    weights: tuple[str, ...] | None = None
    recipe: Mapping[str, Any] | None = None
    seed: int | None = None
    history: tuple[HistoryEntry, ...] = ()
    digest: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def render_card(card: Card) -> str:
    """Return the card as canonical JSON; an unknown digest becomes a placeholder as wide."""
    return canonical_json(card_document(card))


def card_document(card: Card) -> dict[str, Any]:
    """Return the card as the JSON object that is stored in the file."""
    document: dict[str, Any] = {
        **card.extra,
        "schema": SCHEMA,
        "role": card.role,
        "model": None if card.model is None else vars(card.model),
        "preprocess": card.preprocess,
        "classes": [vars(entry) for entry in card.classes],
        "templates": card.templates,
        "history": [
            {**vars(entry), "inputs": [vars(item) for item in entry.inputs]}
            for entry in card.history
        ],
        "digest": card.digest or UNKNOWN_DIGEST,
    }
    for name in ("logit_scale", "alpha", "method", "method_options", "weights", "recipe", "seed"):
        if getattr(card, name) is not None:
            document[name] = getattr(card, name)
    if card.method is not None:
        document.setdefault("alpha", None)
    return document


def parse_card(text: str, path: Path) -> Card:
    """Parse a card from its JSON text; `path` is for messages.

    Raises:
        CheckpointError: The text is not JSON, was written by a newer version, or has a field of
            the wrong type.
    """
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("expected a JSON object")
        schema = document.pop("schema", None)
        if isinstance(schema, int) and schema > SCHEMA:
            raise CheckpointError(
                f"{path}: its card has schema {schema}, this version reads up to {SCHEMA}",
                hint="update wiseft-cli",
            )
        if schema not in _READABLE or isinstance(schema, bool):
            raise TypeError(f"schema is {schema!r:.60}, expected {_READABLE[0]} to {SCHEMA}")
        # The card must be writable again: finite numbers, no unpaired surrogates.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        return _parse_document(document)
    except KeyError as error:
        fault = f"field {error} is missing"
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        fault = str(error)
    raise CheckpointError(
        f"{path}: damaged card (metadata key {METADATA_KEY!r}): {fault}",
        hint="write the file again with the command that made it",
    )


def _parse_document(document: dict[str, Any]) -> Card:
    role = _expect(document.pop("role"), str, "role")
    if role not in ROLES:
        raise ValueError(f"role is {role!r}, expected one of {', '.join(ROLES)}")
    templates = document.pop("templates", [])
    if not isinstance(templates, dict):
        templates = tuple(
            _expect(text, str, "templates") for text in _expect(templates, list, "templates")
        )
    logit_scale = _expect(document.pop("logit_scale", None), _NUMBER, "logit_scale")
    return Card(
        role=role,
        model=_parse_model(document.pop("model", None)),
        preprocess=_expect(document.pop("preprocess", None), _OBJECT, "preprocess"),
        classes=tuple(
            ClassEntry(_expect(entry["id"], str, "class id"), _expect(entry["name"], str, "name"))
            for entry in _expect(document.pop("classes", []), list, "classes")
        ),
        templates=templates,
        logit_scale=None if logit_scale is None else float(logit_scale),
        alpha=_expect(document.pop("alpha", None), _TEXT, "alpha"),
        method=_expect(document.pop("method", None), _TEXT, "method"),
        method_options=_expect(document.pop("method_options", None), _OBJECT, "method_options"),
        weights=_parse_weights(document.pop("weights", None)),
        recipe=_expect(document.pop("recipe", None), _OBJECT, "recipe"),
        seed=_expect(document.pop("seed", None), _INTEGER, "seed"),
        history=tuple(
            _parse_entry(entry) for entry in _expect(document.pop("history", []), list, "history")
        ),
        digest=_expect(document.pop("digest"), str, "digest"),
        extra=document,
    )


def _parse_model(model: Any) -> ModelSpec | None:
    if model is None:
        return None
    return ModelSpec(
        name=_expect(model["name"], str, "model name"),
        source=_expect(model["source"], _TEXT, "model source"),
        config=_expect(model["config"], dict, "model config"),
    )


def _parse_weights(weights: Any) -> tuple[str, ...] | None:
    if weights is None:
        return None
    return tuple(_expect(text, str, "weights") for text in _expect(weights, list, "weights"))


def _parse_entry(entry: Any) -> HistoryEntry:
    return HistoryEntry(
        command=_expect(entry["command"], str, "history command"),
        version=_expect(entry["version"], str, "history version"),
        options=_expect(entry["options"], dict, "history options"),
        inputs=tuple(
            HistoryInput(_expect(i["role"], str, "role"), _expect(i["digest"], str, "digest"))
            for i in _expect(entry["inputs"], list, "history inputs")
        ),
        output=_expect(entry["output"], _TEXT, "history output"),
    )


def _expect(value: Any, kinds: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{what} is {value!r:.60}")
    return value


def canonical_preprocess(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Return preprocessing in a form that is equal if images are treated equally.

    The field `exif_orientation` is omitted if it has the value that cards without it mean.
    """
    canonical = dict(preprocess)
    if canonical.get(EXIF_ORIENTATION) == IGNORE_ORIENTATION:
        del canonical[EXIF_ORIENTATION]
    return canonical


def describe_ignored_orientation(n_rotated: int, n_images: int, *, noun: str = "images") -> str:
    """Return a warning that images carry an EXIF orientation which the preprocessing ignores."""
    return (
        f"{n_rotated:,} of {n_images:,} {noun} carry an EXIF orientation that is not applied"
        f" ({EXIF_ORIENTATION}: {IGNORE_ORIENTATION} in the checkpoint), so the model sees them"
        " rotated or mirrored"
    )


def closed_history(card: Card) -> tuple[HistoryEntry, ...]:
    """Return the card's history with the last step's output set to the card's own digest.

    The card of a file made from this one contains the history in this form.
    """
    if not card.history:
        return ()
    return (*card.history[:-1], replace(card.history[-1], output=card.digest))


def join_histories(*cards: Card) -> tuple[HistoryEntry, ...]:
    """Return the closed histories of several cards as one, each output once, parents first.

    Every history is in topological order, so their concatenation without repeats is too.
    """
    joined: dict[str | None, HistoryEntry] = {}
    for card in cards:
        for entry in closed_history(card):
            joined.setdefault(entry.output, entry)
    return tuple(joined.values())

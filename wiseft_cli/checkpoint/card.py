"""The card: what a checkpoint says of itself, one JSON document in the file's metadata.

It holds everything a later command needs to use the file without a flag: the model's
config, the preprocessing, the classes, and how the file came to be. Top-level fields
this version does not know are kept and written back.
It does not read or write files; `docs/checkpoint-format.md` describes the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.digest import UNKNOWN_DIGEST, canonical_json
from wiseft_cli.errors import CheckpointError

SCHEMA = 1
METADATA_KEY = "wiseft"
ROLES = ("zeroshot", "finetuned", "merged")


@dataclass(frozen=True)
class ClassEntry:
    """One class: the id that data sets are joined by, and the name that prompts use."""

    id: str
    name: str


@dataclass(frozen=True)
class ModelSpec:
    """The model an image encoder belongs to.

    Attributes:
        name: open_clip's name, or the base name of a local folder.
        source: Pretrained tag, `hf-hub:...`, `sha256:...` of a local weights file, or None
            for random weights.
        config: open_clip's model config as resolved for these weights, `quick_gelu` included.
    """

    name: str
    source: str | None
    config: Mapping[str, Any]


@dataclass(frozen=True)
class HistoryInput:
    """One input of a step: the part it played and its content digest."""

    role: str
    digest: str


@dataclass(frozen=True)
class HistoryEntry:
    """One step in a checkpoint's making.

    Attributes:
        options: Those that affect the result, and nothing else.
        output: Content digest of what the step wrote; None for the file's own last step.
    """

    command: str
    version: str
    options: Mapping[str, Any]
    inputs: tuple[HistoryInput, ...]
    output: str | None = None


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself.

    Attributes:
        role: `zeroshot`, `finetuned` or `merged`.
        model: None for a merge of files that are not wiseft's own.
        preprocess: open_clip's preprocessing fields.
        classes: In the order of the classification head's rows.
        templates: The prompt templates, or their digest and count where each class has its own.
        logit_scale: exp of the stored log value; already inside the classification head.
        alpha: Exact decimal, weight of the fine-tuned side; merged checkpoints only.
        digest: Content digest of the file's tensors; None until it is known.
        extra: Fields this version does not know.
    """

    role: str
    model: ModelSpec | None = None
    preprocess: Mapping[str, Any] | None = None
    classes: tuple[ClassEntry, ...] = ()
    templates: tuple[str, ...] | Mapping[str, Any] = ()
    logit_scale: float | None = None
    alpha: str | None = None
    recipe: Mapping[str, Any] | None = None
    seed: int | None = None
    history: tuple[HistoryEntry, ...] = ()
    digest: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def render_card(card: Card) -> str:
    """Return the card as canonical JSON; an unknown digest takes a slot of the same width."""
    return canonical_json(card_document(card))


def card_document(card: Card) -> dict[str, Any]:
    """Return the card as the JSON object that stands in the file."""
    document: dict[str, Any] = {
        **card.extra,
        "schema": SCHEMA,
        "role": card.role,
        "model": None if card.model is None else vars(card.model),
        "preprocess": card.preprocess,
        "classes": [vars(entry) for entry in card.classes],
        "templates": card.templates,
        "history": [_render_entry(entry) for entry in card.history],
        "digest": card.digest or UNKNOWN_DIGEST,
    }
    for name in ("logit_scale", "alpha", "recipe", "seed"):
        if getattr(card, name) is not None:
            document[name] = getattr(card, name)
    return document


def _render_entry(entry: HistoryEntry) -> dict[str, Any]:
    return {**vars(entry), "inputs": [vars(item) for item in entry.inputs]}


def parse_card(text: str, path: Path) -> Card:
    """Read a card from its JSON text; `path` is for messages.

    Raises:
        CheckpointError: Not JSON, written by a newer version, or a field of the wrong kind.
    """
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("expected a JSON object")
        schema = document.pop("schema", None)
        if isinstance(schema, int) and schema > SCHEMA:
            raise CheckpointError(
                f"{path}: its card has schema {schema}, this version reads {SCHEMA}",
                hint="update wiseft-cli",
            )
        if schema != SCHEMA or isinstance(schema, bool):
            raise TypeError(f"schema is {schema!r:.60}, expected {SCHEMA}")
        # It must be possible to write it back: no infinity, no NaN, no half of a character.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        return _parse_document(document)
    except KeyError as error:
        raise _damaged(path, f"field {error} is missing") from None
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged card (metadata key {METADATA_KEY!r}): {what}",
        hint="write the file again with the command that made it",
    )


def _parse_document(document: dict[str, Any]) -> Card:
    role = _expect(document.pop("role"), str, "role")
    if role not in ROLES:
        raise ValueError(f"role is {role!r}, expected one of {', '.join(ROLES)}")
    templates = document.pop("templates", [])
    logit_scale = _expect(
        document.pop("logit_scale", None), (int, float, type(None)), "logit_scale"
    )
    return Card(
        role=role,
        model=_parse_model(document.pop("model", None)),
        preprocess=_expect(document.pop("preprocess", None), (dict, type(None)), "preprocess"),
        classes=tuple(
            ClassEntry(_expect(entry["id"], str, "class id"), _expect(entry["name"], str, "name"))
            for entry in _expect(document.pop("classes", []), list, "classes")
        ),
        templates=templates if isinstance(templates, dict) else _strings(templates, "templates"),
        logit_scale=None if logit_scale is None else float(logit_scale),
        alpha=_expect(document.pop("alpha", None), (str, type(None)), "alpha"),
        recipe=_expect(document.pop("recipe", None), (dict, type(None)), "recipe"),
        seed=_expect(document.pop("seed", None), (int, type(None)), "seed"),
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
        source=_expect(model["source"], (str, type(None)), "model source"),
        config=_expect(model["config"], dict, "model config"),
    )


def _parse_entry(entry: Any) -> HistoryEntry:
    return HistoryEntry(
        command=_expect(entry["command"], str, "history command"),
        version=_expect(entry["version"], str, "history version"),
        options=_expect(entry["options"], dict, "history options"),
        inputs=tuple(
            HistoryInput(_expect(i["role"], str, "role"), _expect(i["digest"], str, "digest"))
            for i in _expect(entry["inputs"], list, "history inputs")
        ),
        output=_expect(entry["output"], (str, type(None)), "history output"),
    )


def _expect(value: Any, kinds: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise TypeError(f"{what} is {value!r:.60}")
    return value


def _strings(values: Any, what: str) -> tuple[str, ...]:
    return tuple(_expect(value, str, what) for value in _expect(values, list, what))


def closed_history(card: Card) -> tuple[HistoryEntry, ...]:
    """Return the card's history with its last output filled in by the card's own digest.

    This is the form in which a history is carried into the card of a file made from this one.
    """
    if not card.history:
        return ()
    return (*card.history[:-1], replace(card.history[-1], output=card.digest))


def join_histories(*cards: Card) -> tuple[HistoryEntry, ...]:
    """Return the closed histories of several cards as one, each output once, in order.

    Each history is in topological order, so their concatenation without repeats is too.
    """
    joined: dict[str | None, HistoryEntry] = {}
    for card in cards:
        for entry in closed_history(card):
            joined.setdefault(entry.output, entry)
    return tuple(joined.values())

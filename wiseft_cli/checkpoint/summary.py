"""Summarize a checkpoint from its headers: tensor counts, dtypes, size and history.

Tensor data is not read here; `read_content` does that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from wiseft_cli.checkpoint.card import Card, HistoryEntry, HistoryInput, closed_history
from wiseft_cli.checkpoint.digest import is_digest, shorten
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.errors import brief

_MAX_CHARACTERS = 63
_ROLE_NAMES = {"zeroshot": "zero-shot", "finetuned": "fine-tuned", "merged": "merged"}


@dataclass(frozen=True)
class Summary:
    """Counts over the tensors of a checkpoint.

    Attributes:
        n_parameters: Number of elements in all tensors.
        size_bytes: Size of the files on disk, headers and index included.
        dtypes: Number of tensors per safetensors dtype, the most frequent first.
    """

    n_tensors: int
    n_parameters: int
    size_bytes: int
    dtypes: Mapping[str, int]


def summarize(reader: CheckpointReader) -> Summary:
    """Count the tensors of a checkpoint."""
    infos = reader.tensors.values()
    return Summary(
        n_tensors=len(infos),
        n_parameters=sum(prod(info.shape) for info in infos),
        size_bytes=sum(path.stat().st_size for path in reader.files),
        dtypes=dict(Counter(info.dtype for info in infos).most_common()),
    )


def describe_role(card: Card) -> str:
    """Return the role of a checkpoint, and of a merge how it was made, as one sentence."""
    if card.method is None or not card.history:
        return f"{card.role}, alpha {card.alpha}" if card.alpha else card.role
    inputs = [item for item in card.history[-1].inputs if item.role in _ROLE_NAMES]
    kinds = [
        f"{count} {_ROLE_NAMES[role]}" if count > 1 else f"a {_ROLE_NAMES[role]}"
        for role, count in Counter(item.role for item in inputs).items()
    ]
    noun = "checkpoints" if kinds and not kinds[-1].startswith("a ") else "checkpoint"
    text = f"{card.role} by {card.method}"
    if card.alpha is not None:
        text += f" at alpha {card.alpha}"
    text += f" from {' and '.join(kinds)} {noun}{_describe_weights(card, inputs)}"
    options = [_describe_option(*item) for item in (card.method_options or {}).items()]
    return text + (f" ({', '.join(options)})" if options else "")


def _describe_weights(card: Card, inputs: Sequence[HistoryInput]) -> str:
    weights = card.weights or ()
    if len(set(weights)) <= 1:
        return " with equal weights" if weights else ""
    weighted = inputs[-len(weights) :]
    pairs = zip(weights, weighted, strict=False)
    return " with weights " + ", ".join(f"{w} ({shorten(item.digest)})" for w, item in pairs)


def _describe_option(name: str, value: Any) -> str:
    if name == "layer_alpha" and isinstance(value, list):
        return ", ".join(f"layer_alpha {row[0]}={row[1]}" for row in value if len(row) == 2)
    return f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def draw_history(card: Card) -> list[str]:
    """Return the history as the lines of a tree, one step per line, the last step at the root.

    A step that appears again is shown by its digest only.
    """
    history = closed_history(card)
    # Of steps with equal outputs the earliest created the tensors: a merge at alpha 0 or 1 only
    # copies one of its inputs.
    made_by = {entry.output: entry for entry in (*history[-1:], *history[:-1])}
    lines: list[str] = []
    drawn: set[int] = set()
    # Each item: the text before its line, the indentation below it, its digest and its step.
    # An explicit stack, because a hostile card may be deeper than Python's own.
    pending: list[tuple[str, str, str | None, HistoryEntry | None]] = []
    if history:
        pending.append(("", "", card.digest, history[-1]))
    while pending:
        lead, margin, digest, entry = pending.pop()
        if entry is None or id(entry) in drawn:
            lines.append(lead + shorten(digest) + (" (above)" if entry else ""))
            continue
        drawn.add(id(entry))
        lines.append(f"{lead}{shorten(digest)} {entry.command} {_options(entry)}".rstrip())
        for item in reversed(entry.inputs):
            is_last = item is entry.inputs[-1]
            branch, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            parent = made_by.get(item.digest)
            pending.append((f"{margin}{branch}{item.role}: ", margin + below, item.digest, parent))
    return lines


def _options(entry: HistoryEntry) -> str:
    texts = []
    for name, value in sorted(entry.options.items()):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        shown = shorten(text) if is_digest(text) else brief(text, limit=_MAX_CHARACTERS)
        texts.append(f"{name}={shown}")
    return " ".join(texts)

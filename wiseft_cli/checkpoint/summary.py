"""What can be said of a checkpoint from its headers alone: counts, types, size, its making.

It reads no tensor; `checkpoint/verify.py` does. It prints nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from wiseft_cli.checkpoint.card import Card, HistoryEntry, closed_history
from wiseft_cli.checkpoint.source import CheckpointSource

_DIGITS_SHOWN = 12
_LETTERS_SHOWN = 60


@dataclass(frozen=True)
class Summary:
    """Counts over a checkpoint's tensors.

    Attributes:
        n_parameters: Numbers in all tensors together.
        size_bytes: Bytes of the files on disk, headers and index included.
        dtypes: Tensors of each safetensors dtype, the most frequent first.
    """

    n_tensors: int
    n_parameters: int
    size_bytes: int
    dtypes: Mapping[str, int]


def summarize(source: CheckpointSource) -> Summary:
    """Count a checkpoint's tensors."""
    infos = source.tensors.values()
    return Summary(
        n_tensors=len(infos),
        n_parameters=sum(prod(info.shape) for info in infos),
        size_bytes=sum(path.stat().st_size for path in source.files),
        dtypes=dict(Counter(info.dtype for info in infos).most_common()),
    )


def draw_history(card: Card) -> list[str]:
    """Return a card's history as a tree, one step a line, the last step at the root.

    A step that was drawn already is named again by its digest only.
    """
    history = closed_history(card)
    # Where outputs are equal the earlier step made the tensors: a merge at alpha 0 or 1 only gave
    # them back.
    made_by = {entry.output: entry for entry in (*history[-1:], *history[:-1])}
    lines: list[str] = []
    drawn: set[int] = set()
    # What stands before a line, and before the lines below it. A stack of its own: a hostile
    # card may hold a chain longer than Python's.
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
        if text.startswith("sha256:"):
            text = shorten(text)
        elif len(text) > _LETTERS_SHOWN:
            text = text[:_LETTERS_SHOWN] + "..."
        texts.append(f"{name}={text}")
    return " ".join(texts)


def shorten(digest: str | None) -> str:
    """Return the first digits of a digest, enough to tell a few files apart."""
    return (digest or "unknown").removeprefix("sha256:")[:_DIGITS_SHOWN]

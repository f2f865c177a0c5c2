"""Finds the classes of a head that texts name, by id, by name, or by the name's normal form.

It says which texts fit no class or several; whether that is allowed is `label_space.py`'s.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import DatasetError, list_some

MatchKind = Literal["id", "name", "normalized-name"]

MAX_UNKNOWN_SHOWN = 1000
"""Texts without a class that a message lists; more are counted."""


@dataclass(frozen=True)
class Match:
    """What one way of comparing finds.

    Attributes:
        kind: What was compared.
        found: Each text and the positions of the classes it fits.
    """

    kind: MatchKind
    found: Mapping[str, Sequence[int]]

    @property
    def is_single(self) -> bool:
        """Whether each text fits exactly one class."""
        return all(len(indices) == 1 for indices in self.found.values())

    @property
    def is_injective(self) -> bool:
        """Whether no two texts fit the same class."""
        flat = [index for indices in self.found.values() for index in indices]
        return len(set(flat)) == len(flat)

    @property
    def index(self) -> dict[str, int]:
        """Each text and its class, where it fits exactly one."""
        return {text: indices[0] for text, indices in self.found.items()}

    def narrowed_to(self, needed: Collection[str]) -> Match:
        """Return the same of these texts, and of those others that fit exactly one class."""
        found = {text: at for text, at in self.found.items() if text in needed or len(at) == 1}
        return Match(self.kind, found)

    @property
    def unknown(self) -> list[str]:
        """The texts that fit no class, sorted."""
        return sorted(text for text, indices in self.found.items() if not indices)


def normalize_name(name: str) -> str:
    """Return the normal form of a name: case, `_`, `-` and runs of space make no difference.

    Unicode is brought to NFKC, since some file systems store accents decomposed.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_-]+", " ", folded).strip()


def match_classes(texts: Sequence[str], classes: Sequence[ClassEntry]) -> tuple[Match, ...]:
    """Compare texts with a head's classes in each way, the strictest first."""
    ways: tuple[tuple[MatchKind, Sequence[str], Callable[[str], str]], ...] = (
        ("id", [entry.id for entry in classes], str),
        ("name", [entry.name for entry in classes], str),
        ("normalized-name", [normalize_name(entry.name) for entry in classes], normalize_name),
    )
    matches = []
    for kind, keys, key_of in ways:
        positions: dict[str, list[int]] = {}
        for position, key in enumerate(keys):
            positions.setdefault(key, []).append(position)
        matches.append(Match(kind, {text: positions.get(key_of(text), []) for text in texts}))
    return tuple(matches)


def nearest_match(matches: Sequence[Match]) -> Match:
    """Return the way of comparing that leaves the fewest texts without a class."""
    return min(matches, key=lambda match: len(match.unknown))


def no_match(
    matches: Sequence[Match], classes: Sequence[ClassEntry], *, subject: str, noun: str, hint: str
) -> DatasetError:
    """Describe the comparison that came nearest: first what is unknown, else what is in doubt.

    Args:
        subject: What the texts belong to, as the message begins.
        noun: What the texts are, in the plural.
        hint: The remedy.
    """
    nearest = nearest_match(matches)
    if nearest.unknown:
        message = (
            f"{subject}: {len(nearest.unknown)} of {len(nearest.found)} {noun} are no class"
            f" of the head ({len(classes)} classes, the first {classes[0].id!r}):"
        )
        # All of them: whoever renames folders needs the whole list.
        lines = list_some([f"  {text!r}" for text in nearest.unknown], limit=MAX_UNKNOWN_SHOWN)
    else:
        message = f"{subject}: the {noun} do not name one class each:"
        lines = list_some(_doubts(nearest.found, classes))
    return DatasetError("\n".join([message, *lines]), hint=hint)


def _doubts(found: Mapping[str, Sequence[int]], classes: Sequence[ClassEntry]) -> list[str]:
    """List texts that fit several classes, and classes that several texts fit."""
    lines = [
        f"  {text!r} fits the classes with ids {', '.join(repr(classes[i].id) for i in indices)}"
        for text, indices in sorted(found.items())
        if len(indices) > 1
    ]
    by_class: dict[int, list[str]] = {}
    for text, indices in sorted(found.items()):
        for index in indices:
            by_class.setdefault(index, []).append(text)
    lines += [
        f"  {', '.join(map(repr, texts))} all fit the class {classes[index].name!r}"
        for index, texts in sorted(by_class.items())
        if len(texts) > 1
    ]
    return lines

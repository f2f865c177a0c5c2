"""Predictions as text: aligned columns, JSON lines and CSV.

Probabilities are per cent for people and fractions elsewhere.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from wiseft_cli.checkpoint.digest import canonical_json


@dataclass(frozen=True)
class RankedClass:
    """A class of the head, and its probability for one image.

    Attributes:
        id: Id of the class.
        name: Name of the class.
        probability: Softmax over all classes of the head, a fraction.
        is_ambiguous: Whether another class of the head has the same name.
    """

    id: str
    name: str
    probability: float
    is_ambiguous: bool = False

    @property
    def label(self) -> str:
        """The name, with the id if another class has the same name."""
        return f"{self.name} ({self.id})" if self.is_ambiguous else self.name


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        path: The path as it was given.
        top: Classes by falling probability; empty for an image that could not be read.
        error: Why there is no prediction; None for an image that was read.
        is_rotated: Whether the image has an EXIF orientation that the checkpoint ignores.
    """

    path: str
    top: tuple[RankedClass, ...]
    error: str | None = None
    is_rotated: bool = False


Render = Callable[[Sequence[Prediction]], list[str]]
"""From predictions to lines of text."""

CSV_HEADER = "path,rank,id,name,probability,error"


def as_text(predictions: Sequence[Prediction]) -> list[str]:
    """Return one line per image, in aligned columns."""
    rows = [
        [printable(item.path)]
        + [f"{100 * entry.probability:6.2f} % {printable(entry.label)}" for entry in item.top]
        + ["  -.-- % (unreadable)"] * (item.error is not None)
        for item in predictions
    ]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]


def as_json_lines(predictions: Sequence[Prediction]) -> list[str]:
    """Return one JSON object per image, with `top`, or `error` if unreadable."""
    documents: list[dict[str, object]] = [
        {"path": item.path, "error": item.error}
        if item.error is not None
        else {
            "path": item.path,
            "top": [
                {"id": at.id, "name": at.name, "probability": float(_digits(at.probability))}
                for at in item.top
            ],
        }
        for item in predictions
    ]
    return [canonical_json(document) for document in documents]


def as_csv_rows(predictions: Sequence[Prediction]) -> list[str]:
    """Return one row per class and image, to follow `CSV_HEADER`; rank 1 is the best."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for item in predictions:
        path = _encodable(item.path)
        if item.error is not None:
            writer.writerow([path, "", "", "", "", _encodable(item.error)])
        for rank, entry in enumerate(item.top, start=1):
            writer.writerow([path, rank, entry.id, entry.name, _digits(entry.probability), ""])
    return text.getvalue().removesuffix("\n").split("\n") if predictions else []


def printable(text: str) -> str:
    """Return a text on one line, with escapes for characters that cannot be printed."""
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def _digits(probability: float) -> str:
    """Write six significant digits, the precision of float32 logits."""
    return f"{probability:.6g}"


def _encodable(text: str) -> str:
    """Escape the bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

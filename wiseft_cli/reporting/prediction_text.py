"""Predictions as text: aligned lines for people, JSON lines and CSV for programs.

Probabilities are per cent for people and fractions elsewhere. It predicts nothing.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.digest import canonical_json


@dataclass(frozen=True)
class RankedClass:
    """A class of the head, and its probability for one image."""

    id: str
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What became of one image.

    Attributes:
        path: As it was named.
        top: The most probable classes, by falling probability.
        error: Why there is no prediction.
    """

    path: str
    top: tuple[RankedClass, ...]
    error: str | None = None


Render = Callable[[Sequence[Prediction]], Sequence[str]]
"""From the predictions of a batch to lines of text."""

CSV_HEADER = "path,rank,id,name,probability,error"


def as_json_lines(predictions: Sequence[Prediction]) -> list[str]:
    """Return a JSON object an image: `path`, and `top`, or `error` where it could not be read."""
    return [
        canonical_json(
            {"path": prediction.path, "error": prediction.error}
            if prediction.error is not None
            else {
                "path": prediction.path,
                "top": [
                    {
                        "id": entry.id,
                        "name": entry.name,
                        "probability": float(_digits(entry.probability)),
                    }
                    for entry in prediction.top
                ],
            }
        )
        for prediction in predictions
    ]


def as_csv_rows(predictions: Sequence[Prediction]) -> list[str]:
    """Return a row for each class of each image, after `CSV_HEADER`; rank 1 is the best."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for prediction in predictions:
        path = _encodable(prediction.path)
        if prediction.error is not None:
            writer.writerow([path, "", "", "", "", _encodable(prediction.error)])
        for rank, entry in enumerate(prediction.top, start=1):
            writer.writerow([path, rank, entry.id, entry.name, _digits(entry.probability), ""])
    return text.getvalue().removesuffix("\n").split("\n") if predictions else []


def text_renderer(classes: Iterable[ClassEntry]) -> Render:
    """Return what makes lines for people, the columns of a batch below each other.

    A name that several classes have is shown with the id.
    """
    counts = Counter(entry.name for entry in classes)
    repeated = {name for name, count in counts.items() if count > 1}

    def render(predictions: Sequence[Prediction]) -> list[str]:
        rows = [
            [
                printable(prediction.path),
                *(
                    f"{100 * entry.probability:6.2f} % {_name(entry, repeated)}"
                    for entry in prediction.top
                ),
            ]
            if prediction.error is None
            else [printable(prediction.path), "  -.-- % (unreadable)"]
            for prediction in predictions
        ]
        n_columns = max(map(len, rows), default=0)
        widths = [
            max((len(row[at]) for row in rows if at < len(row)), default=0)
            for at in range(n_columns)
        ]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
            for row in rows
        ]

    return render


def printable(text: str) -> str:
    """Return the text on one line, with an escape for each character that does not print."""
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def _name(entry: RankedClass, repeated: set[str]) -> str:
    return printable(f"{entry.name} ({entry.id})" if entry.name in repeated else entry.name)


def _digits(probability: float) -> str:
    """Write six digits: the logits are float32, which has no more to tell."""
    return f"{probability:.6g}"


def _encodable(text: str) -> str:
    """Escape what is no character: the bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

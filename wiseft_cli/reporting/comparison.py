"""Compare rows of an evaluation image by image, from their saved predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wiseft_cli.reporting.alpha_selection import DEFAULT_ALPHA, selected_alpha
from wiseft_cli.reporting.paired import PairedCounts, PairedDifference, paired_difference
from wiseft_cli.reporting.predictions import (
    Predictions,
    pair_predictions,
    predictions_path,
    read_predictions,
)
from wiseft_cli.reporting.results import ResultLine, WeightsKey

MEAN_SHIFT = "mean shift"
"""Stands for the mean over the distribution shifts in comparisons."""

Row = Mapping[str, ResultLine]
"""The lines of one weight set by set name."""


@dataclass
class PredictionFolder:
    """The predictions of results lines in one folder, each file read once.

    Attributes:
        path: Folder of the files; None if no predictions are at hand.
    """

    path: Path | None
    _read: dict[Path, Predictions] = field(default_factory=dict)

    def of(self, line: ResultLine) -> Predictions | None:
        """Return the predictions of a line; None if it has none.

        Raises:
            ResultsError: The file cannot be read, or is not that of the line.
        """
        path = None if self.path is None else predictions_path(self.path, line)
        if path is None:
            return None
        if path not in self._read:
            self._read[path] = read_predictions(path, line)
        return self._read[path]

    def pair(self, line: ResultLine, against: ResultLine) -> PairedCounts | None:
        """Count the images on which two lines differ; None if one has no predictions.

        Raises:
            ResultsError: A file cannot be read, or the two are about different images.
        """
        if line.data_fingerprint != against.data_fingerprint:
            return None
        first, second = self.of(line), self.of(against)
        return None if first is None or second is None else pair_predictions(first, second)


@dataclass(frozen=True)
class Comparison:
    """Paired differences of one row from another.

    Attributes:
        name: Display name of the row.
        against: Display name of the other row.
        differences: By set name, and for `MEAN_SHIFT` if there are several shifts.
        key: Identity of the row's weights.
    """

    name: str
    against: str
    differences: Mapping[str, PairedDifference]
    key: WeightsKey

    def sentences(self) -> list[str]:
        """Return one sentence per set."""
        return [
            f"{self.name} against {self.against} on {name}: {of_set} ({of_set.n_gained} images"
            f" gained, {of_set.n_lost} lost)"
            for name, of_set in self.differences.items()
        ]


def compare_rows(row: Row, against: Row, folder: PredictionFolder) -> Comparison | None:
    """Compare two rows on every set for which both have predictions; None if there is none.

    Raises:
        ResultsError: A file of predictions cannot be used.
    """
    counts = {
        name: pair
        for name, line in row.items()
        if name in against and (pair := folder.pair(line, against[name])) is not None
    }
    if not counts:
        return None
    differences = {name: paired_difference([pair]) for name, pair in counts.items()}
    shifts = [name for name, line in row.items() if line.role == "shift"]
    if len(shifts) > 1 and all(name in counts for name in shifts):
        differences[MEAN_SHIFT] = paired_difference([counts[name] for name in shifts])
    first, other = next(iter(row.values())), next(iter(against.values()))
    is_same_curve = first.checkpoints == other.checkpoints and other.alpha is not None
    against_name = f"alpha {other.alpha}" if is_same_curve else other.weights_name
    return Comparison(first.weights_name, against_name, differences, first.weights_key)


def compared_pairs(rows: Sequence[Row], baseline: Row | None = None) -> list[tuple[Row, Row]]:
    """Choose the rows of one evaluation that are compared, and with which ones.

    A point between two checkpoints is compared with the end points of its curve, at the alpha that
    the validation set chooses, else at 0.5, else at each alpha. Other rows are compared with the
    first row. With a baseline, all are compared with it instead.
    """
    lines = [line for row in rows for line in row.values()]
    wanted = _notable_alphas(lines)
    pairs = []
    for row in rows:
        line = next(iter(row.values()))
        if line.alpha is not None and line.alpha not in wanted:
            continue
        others = [baseline] if baseline is not None else _others(line, rows)
        pairs += [(row, other) for other in others if other is not row]
    return pairs


def _notable_alphas(lines: Sequence[ResultLine]) -> set[str]:
    alphas = {line.alpha for line in lines if line.alpha is not None}
    best = selected_alpha(lines)
    if best is not None:
        return {best}
    return {DEFAULT_ALPHA} if DEFAULT_ALPHA in alphas else alphas


def _others(line: ResultLine, rows: Sequence[Row]) -> list[Row]:
    """Return the end points of a point's curve; for a row without alpha, the first row."""
    if line.alpha is None:
        return [rows[0]]
    key = line.weights_key
    ends = [(key._replace(alpha="0"), WeightsKey(key.digests[:1], None))]
    ends += [(key._replace(alpha="1"), WeightsKey(key.digests[-1:], None))]
    found = (
        next((row for row in rows if next(iter(row.values())).weights_key in keys), None)
        for keys in ends
    )
    return [row for row in found if row is not None]


def comparison_documents(comparisons: Sequence[Comparison], line: ResultLine) -> dict[str, Any]:
    """Return the field `paired` of a results line in JSON output; empty without comparisons."""
    found = [
        {"against": comparison.against, **comparison.differences[line.set_name].document()}
        for comparison in comparisons
        if comparison.key == line.weights_key and line.set_name in comparison.differences
    ]
    return {"paired": found} if found else {}

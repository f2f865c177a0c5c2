"""Statistics of accuracies: confidence intervals, logits, effective robustness.

Intervals are exact binomial (Clopper and Pearson 1934, Biometrika 26(4)), as in arXiv:2109.01903,
section 2. Effective robustness follows Taori et al., arXiv:2007.00644, section 2: a line is
fitted to baseline models on logit-scaled axes, and the effective robustness of a model is its
accuracy under shift minus that of the line.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from wiseft_cli.errors import ResultsError, did_you_mean_path

CONFIDENCE = 0.95
"""The level of every interval that wiseft reports."""

MIN_ACCURACY = 0.0005
"""An accuracy of 0 has this value on a logit scale if the number of images is unknown."""

MODEL_COLUMN = "model"
"""The column of a baseline file that names the models."""


def clopper_pearson(
    n_correct: int, n_images: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the exact confidence interval of a proportion, both ends in [0, 1].

    It contains the true value with at least this probability. Images are assumed independent.

    Args:
        n_correct: Successes, 0 to `n_images`.
        n_images: Trials, at least 1.
        confidence: Coverage, in (0, 1).
    Raises:
        ValueError: The counts are not those of a proportion.
    """
    if not 0 <= n_correct <= n_images or n_images < 1:
        raise ValueError(f"{n_correct} of {n_images} is not a proportion")
    return _beta_interval(n_correct, n_images, confidence)


def stratified_interval(
    counts: Sequence[tuple[int, int]], *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return a confidence interval of the unweighted mean of several proportions.

    With p the mean and V its estimated variance, the sum of p_c (1 - p_c) / n_c divided by K^2,
    this is the Clopper-Pearson interval of p for p (1 - p) / V images, at most their number
    (Korn and Graubard 1998, Survey Methodology 24(2)).

    Args:
        counts: Successes and trials of each of the K proportions, trials at least 1.
        confidence: Coverage, in (0, 1); approximate, as V is estimated.
    Raises:
        ValueError: The counts are not those of proportions.
    """
    if not counts or any(not 0 <= n_correct <= n_images for n_correct, n_images in counts):
        raise ValueError(f"{counts!r:.60} are not proportions")
    shares = [(n_correct / n_images, n_images) for n_correct, n_images in counts]
    mean = fmean(share for share, _ in shares)
    variance = sum(share * (1 - share) / n_images for share, n_images in shares) / len(shares) ** 2
    n_effective: float = sum(n_images for _, n_images in shares)
    if variance > 0:
        n_effective = min(n_effective, mean * (1 - mean) / variance)
    return _beta_interval(mean * n_effective, n_effective, confidence)


def _beta_interval(n_correct: float, n_images: float, confidence: float) -> tuple[float, float]:
    """Return the Clopper-Pearson interval; the counts need not be whole numbers."""
    from scipy.special import betaincinv  # lazy: scipy takes a tenth of a second

    tail = (1 - confidence) / 2
    n_wrong = n_images - n_correct
    low = betaincinv(n_correct, n_wrong + 1, tail) if n_correct else 0.0
    high = betaincinv(n_correct + 1, n_wrong, 1 - tail) if n_wrong else 1.0
    return float(low), float(high)


def logit(value: float, *, half_image: float = MIN_ACCURACY) -> float:
    """Return log(p / (1 - p)) of an accuracy, kept half an image from 0 and 1.

    Args:
        value: A fraction in [0, 1].
        half_image: Half of the share of one image in the set.
    """
    half_image = min(half_image, 0.25)
    inside = min(max(value, half_image), 1.0 - half_image)
    return math.log(inside / (1.0 - inside))


def from_logit(value: float) -> float:
    """Return the fraction that has this logit."""
    return 1.0 / (1.0 + math.exp(-value))


@dataclass(frozen=True)
class LogitFit:
    """The line logit(shift) = slope * logit(reference) + intercept."""

    slope: float
    intercept: float
    n_models: int

    def predict(self, reference: float) -> float:
        """Return the accuracy under shift that baselines have at a reference accuracy."""
        return from_logit(self.slope * logit(reference) + self.intercept)

    def effective_robustness(self, reference: float, shift: float) -> float:
        """Return accuracy under shift minus that of the baselines, as a fraction."""
        return shift - self.predict(reference)


def fit_on_logits(models: Sequence[tuple[float, float]]) -> LogitFit | None:
    """Fit a line to (reference, shift) accuracies by least squares on logits.

    Returns:
        None if there are fewer than two different reference accuracies.
    """
    import numpy as np  # lazy: numpy takes a tenth of a second

    if not models:
        return None
    x, y = np.array([[logit(value) for value in model] for model in models]).T
    centred = x - x.mean()
    spread = float(centred @ centred)
    if spread < 1e-12:
        return None
    slope = float(centred @ (y - y.mean())) / spread
    return LogitFit(slope, float(y.mean() - slope * x.mean()), len(models))


@dataclass(frozen=True)
class BaselineModel:
    """A model to compare with, and its accuracies by image set, fractions in [0, 1]."""

    name: str
    accuracies: Mapping[str, float]


def read_baselines(path: Path, set_names: Sequence[str]) -> tuple[BaselineModel, ...]:
    """Read baseline models from a CSV file with one row per model.

    The header names the column `model` and image sets. Columns of other sets are ignored; an
    empty cell is an unknown accuracy.

    Args:
        set_names: The image sets of the figure, the reference first.
    Raises:
        ResultsError: The file cannot be read, lacks the column `model`, the reference or all
            shifts, holds no model, or has cells that are not fractions.
    """
    rows = csv.reader(io.StringIO(_read_text(path)), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        numbered = [(rows.line_num, row) for row in rows if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ResultsError(f"{path}, line {rows.line_num}: not valid CSV: {error}") from None
    _check_header(path, header, set_names)
    faults: list[str] = []
    models = []
    for number, row in numbered:
        if len(row) != len(header):
            faults.append(f"line {number}: {len(row)} cells, expected {len(header)}")
            continue
        cells = dict(zip(header, row, strict=True))
        models.append(_read_model(cells, set_names, number, faults))
    if faults:
        raise ResultsError(
            f"{path}: {len(faults)} cells or lines are wrong",
            faults=faults,
            hint="accuracies are fractions: 0.77, not 77 or 77%",
        )
    if not models:
        raise ResultsError(f"{path}: holds no model", hint="write one line per model")
    return tuple(models)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ResultsError(f"{path}: is not text; expected a CSV file") from None
    except OSError as error:
        raise ResultsError(
            f"{path}: cannot be read: {error.strerror}", hint=did_you_mean_path(path)
        ) from None


def _check_header(path: Path, header: Sequence[str], set_names: Sequence[str]) -> None:
    reference, *shifts = set_names
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ResultsError(f"{path}: columns with the same name: {', '.join(repeated)}")
    missing = [name for name in (MODEL_COLUMN, reference) if name not in header]
    if not any(name in header for name in shifts):
        missing.append(" or ".join(shifts))
    if missing:
        raise ResultsError(
            f"{path}: its header lacks {', '.join(missing)}; it has {', '.join(header) or 'none'}",
            hint=f"the first line names the columns: {','.join((MODEL_COLUMN, *set_names))}",
        )


def _read_model(
    cells: Mapping[str, str], set_names: Sequence[str], number: int, faults: list[str]
) -> BaselineModel:
    accuracies = {}
    for name in set_names:
        text = cells.get(name, "").strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if 0 <= value <= 1:  # false for NaN too
            accuracies[name] = value
        else:
            faults.append(f"line {number}, column {name}: {text!r}, expected a number in [0, 1]")
    return BaselineModel(cells[MODEL_COLUMN].strip(), accuracies)

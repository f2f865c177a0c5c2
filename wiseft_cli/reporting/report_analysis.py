"""What saved predictions tell beyond accuracy: classes, confusions, changed images, calibration."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.reporting.predictions import Predictions

N_CLASSES_SHOWN = 10
N_CONFUSIONS_SHOWN = 15
N_IMAGES_SHOWN = 6
N_BINS = 15
THUMBNAIL_PIXELS = 96
MAX_THUMBNAIL_BYTES = 2_000_000
"""Limit of all thumbnails of a report together."""


@dataclass(frozen=True)
class ClassChange:
    """Accuracy of the images of one label in two or three rows, as fractions.

    Attributes:
        label: The label, with the name of its class if that is another text.
        n_images: Images with this label.
        before: Accuracy of the zero-shot row.
        finetuned: Accuracy of the fine-tuned row; None if it has no predictions.
        after: Accuracy of the row that the report is about.
    """

    label: str
    n_images: int
    before: float
    finetuned: float | None
    after: float

    @property
    def change(self) -> float:
        """Accuracy after minus before."""
        return self.after - self.before


@dataclass(frozen=True)
class Confusion:
    """A wrong class that images of a label are taken for, with the counts in two rows."""

    label: str
    predicted: str
    n_images: int
    n_before: int


@dataclass(frozen=True)
class Sample:
    """An image whose prediction changed.

    Attributes:
        path: Path within the set.
        label: Its label.
        before: Name of the class that the zero-shot row predicts.
        after: Name of the class that the other row predicts.
        thumbnail: The image as a `data:` address; None without images.
    """

    path: str
    label: str
    before: str
    after: str
    thumbnail: str | None = None


@dataclass(frozen=True)
class Bin:
    """Images whose probability lies in one interval."""

    n_images: int
    probability: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How well probabilities agree with accuracy.

    Attributes:
        error: Expected calibration error over `N_BINS` bins of equal width, a fraction (Guo et
            al. 2017, arXiv:1706.04599, equation 3).
        bins: Those with images, by rising probability.
    """

    error: float
    bins: tuple[Bin, ...]


def label_names(predictions: Sequence[Predictions]) -> dict[str, str]:
    """Return how labels are shown: with the name of a class that is right for them."""
    names: dict[str, str] = {}
    for of_row in predictions:
        for image in of_row.images:
            if image["right"] and image["label"] not in names:
                label, name = image["label"], image["name"]
                names[label] = str(label) if name == label else f"{label} ({name})"
    return names


def class_changes(
    before: Predictions, after: Predictions, finetuned: Predictions | None, names: Mapping[str, str]
) -> list[ClassChange]:
    """Return the accuracy of each label, the most improved first."""
    rows = (before, after, finetuned)
    counts = Counter(image["label"] for image in before.images)
    right = [
        Counter(image["label"] for image in row.images if image["right"]) if row else None
        for row in rows
    ]
    old, new, tuned = right
    assert old is not None
    assert new is not None
    changes = [
        ClassChange(
            label=names.get(label, str(label)),
            n_images=count,
            before=old[label] / count,
            finetuned=None if tuned is None else tuned[label] / count,
            after=new[label] / count,
        )
        for label, count in counts.items()
    ]
    return sorted(changes, key=lambda change: (-change.change, change.label))


def extreme_changes(
    changes: Sequence[ClassChange],
) -> tuple[list[ClassChange], list[ClassChange]]:
    """Return the most improved and the most harmed classes, the most extreme first."""
    improved = [at for at in changes if at.change > 0][:N_CLASSES_SHOWN]
    harmed = [at for at in reversed(changes) if at.change < 0][:N_CLASSES_SHOWN]
    return improved, harmed


def confusions(
    before: Predictions, after: Predictions, names: Mapping[str, str]
) -> list[Confusion]:
    """Return the most frequent confusions of the second row, with their number in the first."""
    new, old = _count_confusions(after), _count_confusions(before)
    common = sorted(new.items(), key=lambda item: (-item[1], item[0]))[:N_CONFUSIONS_SHOWN]
    return [
        Confusion(names.get(label, label), predicted, count, old[label, predicted])
        for (label, predicted), count in common
    ]


def _count_confusions(predictions: Predictions) -> Counter[tuple[str, str]]:
    return Counter(
        (str(image["label"]), str(image["name"]))
        for image in predictions.images
        if not image["right"]
    )


def changed_images(
    before: Predictions, after: Predictions, names: Mapping[str, str]
) -> tuple[list[Sample], list[Sample]]:
    """Return the images that became right, and those that became wrong, in the order of the set.

    The two rows must be about the same images; of each label the first changed image comes
    first, so that a few samples show many classes.
    """
    others = dict(zip(before.keys, before.images, strict=True))
    gained: list[tuple[int, Sample]] = []
    lost: list[tuple[int, Sample]] = []
    seen: Counter[tuple[str | None, bool]] = Counter()
    for key, image in zip(after.keys, after.images, strict=True):
        other = others.get(key)
        if other is None or other["right"] == image["right"]:
            continue
        label = names.get(image["label"], str(image["label"]))
        sample = Sample(image["path"], label, other["name"], image["name"])
        (gained if image["right"] else lost).append((seen[image["label"], image["right"]], sample))
        seen[image["label"], image["right"]] += 1
    gained.sort(key=lambda item: item[0])
    lost.sort(key=lambda item: item[0])
    return [sample for _, sample in gained], [sample for _, sample in lost]


def calibrate(predictions: Predictions) -> Calibration:
    """Return the expected calibration error and the bins of a reliability diagram."""
    import numpy as np  # lazy: numpy takes a tenth of a second

    shares = np.array([image["probability"] for image in predictions.images], np.float64)
    right = predictions.right
    at_bin = np.clip(np.ceil(shares * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)
    counts = np.bincount(at_bin, minlength=N_BINS)
    sums = np.bincount(at_bin, weights=shares, minlength=N_BINS)
    hits = np.bincount(at_bin, weights=right, minlength=N_BINS)
    used = np.flatnonzero(counts)
    bins = tuple(
        Bin(int(counts[at]), float(sums[at] / counts[at]), float(hits[at] / counts[at]))
        for at in used
    )
    error = float(np.abs(hits - sums).sum() / max(1, len(shares)))
    return Calibration(error, bins)


class Thumbnails:
    """Thumbnails of images, until a limit on their size is reached.

    Attributes:
        n_missing: Images that could not be found or decoded, or were over the limit.
    """

    def __init__(self) -> None:
        self.n_missing = 0
        self._n_bytes = 0

    def of(self, folder: Path, path: str) -> str | None:
        """Return an image as a `data:` address; None if it cannot be shown.

        Only files inside the folder are read.
        """
        root = folder.resolve()
        try:
            target = (root / path).resolve()
            is_inside = target.is_relative_to(root) and target.is_file()
        except (ValueError, OSError):  # a name that no file can have
            is_inside = False
        data = _thumbnail(target) if is_inside else None
        if data is None or self._n_bytes + len(data) > MAX_THUMBNAIL_BYTES:
            self.n_missing += 1
            return None
        self._n_bytes += len(data)
        return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"


def _thumbnail(path: Path) -> bytes | None:
    from PIL import Image, ImageOps  # lazy: only a page with images needs it

    try:
        with Image.open(path) as image:
            image.draft("RGB", (4 * THUMBNAIL_PIXELS, 4 * THUMBNAIL_PIXELS))
            upright: Any = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        output = io.BytesIO()
        upright.save(output, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return output.getvalue()

"""Read the predictions per image that `wiseft eval --save-predictions` wrote.

A results line names its file of predictions in the field `predictions`. A file belongs to a line
if it has as many images and right predictions; another file is rejected, so that a folder that
was overwritten by another evaluation never gives numbers of the wrong weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.paired import PairedCounts
from wiseft_cli.reporting.results import PREDICTIONS, ResultLine

if TYPE_CHECKING:
    import numpy as np

_HINT = "evaluate again with --save-predictions, and name its folder"


@dataclass(frozen=True)
class Predictions:
    """The predictions of one weight set on one image set.

    Attributes:
        path: The file; the first of them if several processes wrote it.
        images: The JSON objects of the readable images, in the order of the file.
    """

    path: Path
    images: Sequence[Mapping[str, Any]]

    @cached_property
    def keys(self) -> tuple[tuple[str, str | None], ...]:
        """Path and label of each image; a manifest may list an image under several labels."""
        return tuple((image["path"], image["label"]) for image in self.images)

    @cached_property
    def right(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each prediction is correct, shape (N,)."""
        import numpy as np  # lazy: numpy takes a tenth of a second

        return np.fromiter((image["right"] for image in self.images), bool, len(self.images))


def predictions_path(folder: Path, line: ResultLine) -> Path | None:
    """Return the path of the predictions of a line; None if the line names no file.

    Raises:
        ResultsError: The name is not that of a file in the folder.
    """
    name = line.extra.get(PREDICTIONS)
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith(".jsonl") or Path(name).name != name:
        raise ResultsError(f"{PREDICTIONS} is {name!r:.80}, expected the name of a .jsonl file")
    return folder / name


def read_predictions(path: Path, line: ResultLine) -> Predictions:
    """Read the predictions of a results line.

    Args:
        path: The file; if several processes wrote it, the name without their parts.
        line: The results line that names it.
    Raises:
        ResultsError: The file cannot be read, has a line of something else, or is not the one
            that the results line was computed with.
    """
    files = [path] if path.exists() else _parts(path)
    images = [image for file in files for image in _read_file(file)]
    readable = [image for image in images if "error" not in image]
    n_right = sum(image["right"] for image in readable)
    top1 = line.metrics.get("top1")
    expected = None if top1 is None else round(top1.value * line.n_images)
    if len(readable) != line.n_images or expected not in (None, n_right):
        raise ResultsError(
            f"{path}: has {n_right} right predictions of {len(readable)} images, but the results"
            f" line of {line.weights_name} on {line.set_name!r} has {expected} of {line.n_images}",
            hint="the folder was written by another evaluation; " + _HINT,
        )
    return Predictions(files[0], readable)


def _parts(path: Path) -> list[Path]:
    """Return the files that the processes of one run wrote, in the order of their ranks."""
    for first in path.parent.glob(f"{_escape(path.stem)}.part-0-of-*{path.suffix}"):
        count = first.stem.rpartition("-")[2]
        if count.isdigit():
            names = (
                f"{path.stem}.part-{rank}-of-{count}{path.suffix}" for rank in range(int(count))
            )
            return [path.parent / name for name in names]
    return [path]


def _escape(name: str) -> str:
    from glob import escape  # lazy: only runs on several processes have parts

    return escape(name)


def _read_file(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ResultsError(f"{path}: is not text; expected JSON lines", hint=_HINT) from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}", hint=_HINT) from None
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        # One call of the parser for all lines takes half the time of one per line.
        images: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")
    except (ValueError, RecursionError):
        images = []
    if len(images) != len(lines) or not all(map(_is_prediction, images)):
        raise ResultsError(f"{path}, line {_first_fault(lines)}: not a prediction", hint=_HINT)
    return images


def _is_prediction(image: Any) -> bool:
    return (
        isinstance(image, dict)
        and isinstance(image.get("path"), str)
        and "\0" not in image["path"]
        and "label" in image
        and isinstance(image["label"], str | None)
        and (
            "error" in image
            or (
                isinstance(image.get("right"), bool)
                and isinstance(image.get("id"), str)
                and isinstance(image.get("name"), str)
                and isinstance(image.get("probability"), float | int)
                and 0 <= image["probability"] <= 1  # false for NaN too
            )
        )
    )


def _first_fault(lines: Sequence[str]) -> int:
    for number, line in enumerate(lines, start=1):
        try:
            if not _is_prediction(json.loads(line)):
                return number
        except (ValueError, RecursionError):
            return number
    return len(lines)


def pair_predictions(first: Predictions, second: Predictions) -> PairedCounts:
    """Count the images that one of two weight sets predicts correctly and the other does not.

    Raises:
        ResultsError: The two files are about different images.
    """
    ours, theirs = first.right, second.right
    if first.keys != second.keys:
        # Runs on several processes write the images in another order.
        if sorted(map(repr, first.keys)) != sorted(map(repr, second.keys)):
            raise ResultsError(
                f"{first.path} and {second.path} are about different images",
                hint="paired differences need the same images; evaluate both in one run",
            )
        ours, theirs = ours[_order(first)], theirs[_order(second)]
    return PairedCounts(
        n_images=len(ours),
        n_gained=int((ours & ~theirs).sum()),
        n_lost=int((theirs & ~ours).sum()),
    )


def _order(predictions: Predictions) -> list[int]:
    return sorted(range(len(predictions.keys)), key=lambda at: repr(predictions.keys[at]))

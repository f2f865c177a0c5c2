"""Write the prediction for each image of an evaluation as a file of JSON lines.

There is one line per image, in the order of the set:
    {"group": null, "id": "n01440764", "label": "tench", "name": "tench", "path": "tench/1.jpg",
     "probability": 0.93, "right": true}
`id` and `name` are the predicted class; the probability is the softmax over the classes that
competed. An image that could not be read has `"error"` instead. A video frame has `"anchors"`, the
paths of the anchor frames whose neighbourhoods it is in. A file appears once its set is done, and
memory does not grow with the number of images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli.checkpoint.atomic import AtomicFile, check_output
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import OutputError

if TYPE_CHECKING:
    import torch

    from wiseft_cli.compute.process_group import ProcessGroup
    from wiseft_cli.data.loading import ImageBatch
    from wiseft_cli.evaluation.plan import Job
    from wiseft_cli.evaluation.scoring import LabelColumns


def plan_prediction_files(
    folder: Path, jobs: Sequence[Job], *, n_processes: int = 1, force: bool
) -> dict[Job, Path]:
    """Return the file of each job, `SET.WEIGHTS.jsonl`, and check that it may be written.

    Args:
        folder: Folder of the files; it is created if it does not exist.
        n_processes: Number of processes that share the images. Each writes its own file, with
            `.part-RANK-of-N` before the suffix; concatenated they are the whole.
        force: Whether existing files may be overwritten.
    Raises:
        OutputError: A file exists already, or the folder cannot be created or written.
    """
    files: dict[Job, Path] = {}
    taken: set[str] = set()
    for job in jobs:
        stem = name = f"{_file_name(job.image_set.name)}.{_file_name(_weights_name(job))}"
        count = 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name.casefold())
        files[job] = folder / f"{name}.jsonl"
    if not folder.exists():
        check_output(folder, force=force)
        return files
    if not folder.is_dir():
        raise OutputError(
            f"--save-predictions {folder} is a file, expected a folder",
            hint="name a folder; it is created if it does not exist",
        )
    check_output(folder / "x.jsonl", force=True)
    for path in files.values():
        for rank in range(n_processes):
            check_output(_part(path, rank, n_processes), force=force)
    return files


def _weights_name(job: Job) -> str:
    if job.weights.is_ensemble:
        return "output-ensemble"
    return f"alpha-{job.line.alpha}" if job.line.alpha else job.weights.name


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text).strip(".") or "_"


def _part(path: Path, rank: int, count: int) -> Path:
    return path if count == 1 else path.with_suffix(f".part-{rank}-of-{count}{path.suffix}")


def _anchors_of_frames(image_set: ImageSet) -> dict[str, list[str]]:
    """Return for each video frame the anchors whose neighbourhoods it is in, sorted."""
    anchors: dict[str, list[str]] = {}
    for anchor, around in sorted(image_set.neighbourhoods.items()):
        for path in (anchor, *around):
            anchors.setdefault(path, []).append(anchor)
    return anchors


class PredictionFile:
    """The predictions of one job while they are written; a context manager.

    Args:
        path: From `plan_prediction_files`.
        job: The job.
        columns: The label join of the job.
        processes: The processes that share the images; each writes its own file.
        force: Whether an existing file may be overwritten.
    Raises:
        OutputError: The folder cannot be created.
    """

    def __init__(
        self, path: Path, job: Job, columns: LabelColumns, processes: ProcessGroup, *, force: bool
    ) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{path.parent}: cannot be created: {error.strerror}",
                hint="choose another folder with --save-predictions",
            ) from None
        self._job, self._columns = job, columns
        self._anchors = _anchors_of_frames(job.image_set)
        self._file = AtomicFile(_part(path, processes.rank, processes.world_size), force=force)
        self._end = 0

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.__exit__(*exception)

    def commit(self) -> None:
        """Rename the finished file to its path."""
        self._file.commit()

    def add(self, batch: ImageBatch, logits: torch.Tensor) -> None:
        """Append the lines of a batch.

        Args:
            logits: Of the readable images, shape (B, C).
        """
        lines: dict[int, dict[str, Any]] = {
            at: {"error": reason} for at, reason in batch.unreadable.items()
        }
        if len(batch.indices):
            lines |= self._predictions(batch, logits)
        text = "".join(
            canonical_json({**self._image(at), **lines[at]}) + "\n" for at in sorted(lines)
        ).encode("ascii")
        self._file.write_at(self._end, text)
        self._end += len(text)

    def _image(self, at: int) -> dict[str, Any]:
        record = self._job.image_set.records[at]
        image = {"path": record.path, "label": record.label, "group": record.group}
        return {**image, "anchors": self._anchors[record.path]} if self._anchors else image

    def _predictions(self, batch: ImageBatch, logits: torch.Tensor) -> dict[int, dict[str, Any]]:
        scores = self._columns.scores(logits)
        winners = scores.argmax(dim=1)
        shares = scores.softmax(dim=1).gather(1, winners[:, None])[:, 0]
        is_right = self._columns.ranks(scores, batch.targets) == 0
        classes = self._columns.winning_classes(logits, winners)
        entries = [self._job.weights.classes[index] for index in classes.tolist()]
        return {
            at: {"id": entry.id, "name": entry.name, "probability": share, "right": right}
            for at, entry, share, right in zip(
                batch.indices.tolist(), entries, shares.tolist(), is_right.tolist(), strict=True
            )
        }

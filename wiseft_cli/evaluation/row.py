"""One weight set on one image set while it is evaluated: its counts, and its predictions' file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wiseft_cli.compute.process_group import ProcessGroup
from wiseft_cli.errors import ModelError
from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.evaluation.neighbourhoods import FrameTally
from wiseft_cli.evaluation.plan import Job
from wiseft_cli.evaluation.predictions import PredictionFile
from wiseft_cli.evaluation.tally import Columns, Tally


@dataclass(frozen=True, eq=False)
class DeviceBatch:
    """A batch of one image set on the device that evaluates it.

    Attributes:
        images: The readable images, shape (B, 3, H, W).
        targets: Position of each one's label among the set's, int64, shape (B,).
        groups: Position of each one's group, -1 for none, int64 (B,); None for no groups.
        indices: Position of each in the set, int64, shape (B,), on the CPU.
        unreadable: Position and reason of each image that could not be read.
    """

    images: torch.Tensor
    targets: torch.Tensor
    groups: torch.Tensor | None
    indices: torch.Tensor
    unreadable: tuple[tuple[int, str], ...]


class Row:
    """Counts what one job got right; use it as a context manager.

    The logits of an ensemble's two parts come one after the other, in any order of batches; the
    first ones wait for the second.

    Args:
        job: What is evaluated.
        processes: The processes that share the images; logits are on their device.
        predictions: File to write the predictions to, where wanted.
        force: Whether that file may be overwritten.
    """

    def __init__(
        self,
        job: Job,
        processes: ProcessGroup,
        predictions: Path | None,
        *,
        force: bool,
    ) -> None:
        device, self._processes = processes.device, processes
        self.job = job
        columns = Columns(job.join, job.image_set.labels, device)
        self._tally = Tally(columns, job.image_set.groups, device)
        self._frames = FrameTally(job.image_set, device)
        self._file: PredictionFile | None = None
        if predictions is not None:
            self._file = PredictionFile(predictions, job, columns, processes, force=force)
        self._waiting: dict[int, torch.Tensor] = {}

    def __enter__(self) -> Row:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._file is not None:
            self._file.__exit__(*exception)

    def add(
        self,
        batch: DeviceBatch,
        head: Callable[[torch.Tensor], torch.Tensor],
        features: torch.Tensor,
    ) -> bool:
        """Count one batch, once all parts of the row have its logits.

        Args:
            head: From image features (B, D) to logits (B, C).
            features: Shape (B, D), float32; not looked at where no image was readable.
        Returns:
            Whether the row is done with the batch.
        Raises:
            ModelError: The logits are not finite.
        """
        logits = head(features).float() if len(batch.targets) else features
        if self.job.weights.is_ensemble:
            first = self._waiting.pop(id(batch), None)
            if first is None:
                self._waiting[id(batch)] = logits
                return False
            logits = (first + logits) / 2
        if len(batch.targets):
            with self._naming_errors():
                is_right = self._tally.add(logits, batch.targets, batch.groups)
            self._frames.add(batch.indices, is_right)
        if self._file is not None:
            self._file.add(batch.indices, logits, batch.targets, batch.unreadable)
        return True

    def finish(self, *, n_unreadable: int) -> SetAccuracy:
        """Return the counts of all processes, and give the predictions their name.

        Raises:
            DatasetError: No anchor frame of a set of video frames was readable.
            ModelError: The logits were not finite.
        """
        with self._naming_errors():
            accuracy = self._tally.finish(self._processes, n_unreadable=n_unreadable)
        accuracy = replace(accuracy, anchors=self._frames.finish(self._processes))
        if self._file is not None:
            self._file.commit()
        return accuracy

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except ModelError as error:
            where = f"{self.job.weights.name} on {self.job.image_set.name!r}"
            raise ModelError(f"{where}: {error.message}", hint=error.hint) from None

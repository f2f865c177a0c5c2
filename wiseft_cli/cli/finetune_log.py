"""The log of `wiseft finetune --log`: a JSON line per step, epoch and warning, for programs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli.cli.console import warn
from wiseft_cli.errors import OutputError
from wiseft_cli.training.plan import FinetunePlan

if TYPE_CHECKING:
    from wiseft_cli.training.callbacks import EpochReport, StepReport


class RunLog:
    """A log file, a context that closes it; each line is written to the file at once.

    Args:
        path: The file; None logs nothing.
        plan: The run; `plan.force` allows to replace an existing file.
        appends: Whether lines follow those of an earlier part of the run.
    Raises:
        OutputError: The file cannot be opened, or exists.
    """

    def __init__(self, path: Path | None, plan: FinetunePlan, *, appends: bool) -> None:
        self._began = time.monotonic()
        self._path = path
        self._plan = plan
        self._file = None
        if path is None:
            return
        mode = "a" if appends else "w" if plan.force else "x"
        try:
            self._file = open(path, mode, encoding="utf-8", buffering=1)  # noqa: SIM115
        except FileExistsError:
            raise OutputError(
                f"{path}: exists already",
                hint="name another --log, overwrite with --force, or continue with --resume",
            ) from None
        except OSError as error:
            raise OutputError(f"{path}: the log cannot be opened: {error.strerror}") from None

    def __enter__(self) -> RunLog:
        self._log_plan()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _log_plan(self) -> None:
        plan = self._plan
        record = dict(plan.train_record)
        if "selection" in record:
            record["images"] = [image.path for image in plan.train.images.records]
        self._log(
            "plan",
            parent=str(plan.parent),
            output=str(plan.output),
            recipe=dict(plan.recipe.as_mapping()),
            train=record,
            val={labelled.images.name: len(labelled.images.records) for labelled in plan.val},
            warnings=list(plan.warnings),
        )

    def log_step(self, step: StepReport) -> None:
        """Log one optimizer step; steps and epochs are counted from 1."""
        self._log(
            "step",
            step=step.step + 1,
            epoch=step.epoch + 1,
            n_images=step.n_images,
            loss=step.loss,
            lr=step.lr,
            grad_norm=step.grad_norm,
            skipped=step.is_skipped,
        )

    def log_epoch(self, report: EpochReport) -> None:
        """Log the loss and the accuracies of an epoch."""
        accuracies = {
            labelled.images.name: {
                "top1": accuracy.top1,
                "n_correct": accuracy.n_correct["top1"],
                "n_images": accuracy.n_images,
            }
            for labelled, accuracy in zip(self._plan.val, report.accuracies, strict=True)
        }
        self._log("epoch", epochs_done=report.epochs_done, loss=report.mean_loss, val=accuracies)

    def log_warning(self, text: str) -> None:
        """Log a warning."""
        self._log("warning", text=text)

    def log_end(self, *, path: str | None, **fields: Any) -> None:
        """Log the end of the run; `path` is None if it was stopped."""
        self._log("end", path=path, **fields)

    def _log(self, event: str, **fields: Any) -> None:
        if self._file is None:
            return
        seconds = round(time.monotonic() - self._began, 3)
        document = {"event": event, "seconds": seconds, **fields}
        try:
            self._file.write(json.dumps(document, sort_keys=True) + "\n")
        except OSError as error:
            warn(
                f"{self._path}: the log cannot be written: {error.strerror};"
                " the run continues without it"
            )
            self._file = None

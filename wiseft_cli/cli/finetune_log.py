"""The log of `wiseft finetune --log`: a JSON line for each step, epoch and warning, for machines.

Other programs read it while the run goes; it has no part in the result.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli.cli.console import warn
from wiseft_cli.errors import OutputError

if TYPE_CHECKING:
    from wiseft_cli.training.listener import EpochReport
    from wiseft_cli.training.optimization import StepReport
    from wiseft_cli.training.plan import FinetunePlan


class RunLog:
    """A log file; a line is in the file as soon as it is written.

    Args:
        path: The file; without one nothing is logged.
        appends: Whether lines go after those of an earlier part of the run.
        force: Whether an existing file may be replaced.
    Raises:
        OutputError: The file cannot be opened, or exists.
    """

    def __init__(self, path: Path | None, *, appends: bool, force: bool) -> None:
        self._began = time.monotonic()
        self._path = path
        self._file = None
        if path is None:
            return
        mode = "a" if appends else "w" if force else "x"
        try:
            self._file = open(path, mode, encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by `end`
        except FileExistsError:
            raise OutputError(
                f"{path}: exists already",
                hint="name another --log, overwrite with --force, or go on with --resume",
            ) from None
        except OSError as error:
            raise OutputError(f"{path}: the log cannot be opened: {error.strerror}") from None

    def log_plan(self, plan: FinetunePlan) -> None:
        """Log what is about to be trained; with `--shots`, on which images."""
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

    def count_step(self, step: StepReport) -> None:
        """Log one optimizer step; steps and epochs are counted from 1."""
        self._log(
            "step",
            step=step.step + 1,
            epoch=step.epoch + 1,
            n_images=step.n_images,
            loss=step.loss,
            lr=step.lr,
            grad_norm=step.grad_norm,
            skipped=step.skipped,
        )

    def tell_epoch(self, plan: FinetunePlan, report: EpochReport) -> None:
        """Log the epoch's loss and accuracies."""
        accuracies = {
            labelled.images.name: {
                "top1": accuracy.top1,
                "n_correct": accuracy.n_correct["top1"],
                "n_images": accuracy.n_images,
            }
            for labelled, accuracy in zip(plan.val, report.accuracies, strict=True)
        }
        self._log("epoch", epochs_done=report.epochs_done, loss=report.mean_loss, val=accuracies)

    def add_warning(self, text: str) -> None:
        """Log a warning."""
        self._log("warning", text=text)

    def end(self, **fields: Any) -> None:
        """Log how the run ended, and close the file."""
        self._log("end", **fields)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _log(self, event: str, **fields: Any) -> None:
        if self._file is None:
            return
        seconds = round(time.monotonic() - self._began, 3)
        document = {"event": event, "seconds": seconds, **fields}
        try:
            self._file.write(json.dumps(document, sort_keys=True) + "\n")
        except OSError as error:
            warn(f"{self._path}: the log cannot be written: {error.strerror}; the run goes on")
            self._file = None

"""Saves the state of a run while it goes, and clears away what is no longer needed.

A state that cannot be saved, such as on a full disk, is a warning: the run itself is sound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from wiseft_cli.errors import OutputError
from wiseft_cli.training.finetuned_card import finetuned_card
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.save_interval import SaveSchedule, Saving
from wiseft_cli.training.starting import torch_version
from wiseft_cli.training.state import Run, state_bytes, write_state
from wiseft_cli.training.state_folder import (
    list_states,
    remove_old_states,
    remove_states,
    state_folder,
    state_path,
    sweep_states,
)
from wiseft_cli.training.state_record import StateRecord


class StateSaver:
    """The states of one run; of several processes the first one has it.

    Args:
        plan: The run.
        saving: What the person wants.
        run: From which the size of a state is known.
        world_size: Processes of the run.
        on_warning: Told when a state cannot be saved.
    """

    def __init__(
        self,
        plan: FinetunePlan,
        saving: Saving,
        run: Run,
        *,
        world_size: int = 1,
        on_warning: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._saving = saving
        self._world_size = world_size
        self._on_warning = on_warning
        self._saved_step = -1
        self._schedule = SaveSchedule(
            saving.interval, state_bytes=state_bytes(run), now=time.monotonic()
        )

    def save_if_due(self, run: Run, *, ends_epoch: bool) -> None:
        """Save the state where the interval is over."""
        now = time.monotonic()
        if self._schedule.is_due(run.steps_done, ends_epoch=ends_epoch, now=now):
            self.save(run)

    def save(self, run: Run) -> None:
        """Save the state now; a failure is a warning."""
        if self._saving.interval.is_never or self._saved_step == run.steps_done:
            return
        output, began = self._plan.output, time.monotonic()
        path = state_path(output, run.steps_done)
        try:
            _make_folder(state_folder(output))
            sweep_states(output)
            write_state(path, run, finetuned_card(self._plan), self._record(run))
            remove_old_states(output)
            self._saved_step = run.steps_done
        except OutputError as error:
            self._on_warning(f"{error.message}; training goes on, and this state is missing")
        self._schedule.note_saved(began=began, ended=time.monotonic())

    @property
    def newest(self) -> Path | None:
        """The newest state on disk."""
        return next(iter(list_states(self._plan.output)), None)

    def finish(self) -> None:
        """Remove the states of a run that has written its output."""
        if not self._saving.keep:
            remove_states(self._plan.output)

    def _record(self, run: Run) -> StateRecord:
        return StateRecord(
            steps_done=run.steps_done,
            loss_sum=run.loss_sum,
            n_images=run.n_images,
            scaler=run.scaler.state_dict(),
            threads=torch.get_num_threads(),
            world_size=self._world_size,
            torch_version=torch_version(),
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from None

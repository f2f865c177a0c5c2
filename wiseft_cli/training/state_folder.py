"""The states of a run on disk: where they lie, which one is to be trusted, which ones go.

    OUT.state/step-00000120.safetensors

A state is whole or not there (`checkpoint/atomic.py`); whether it was damaged later is told by
its content digest. What stands in one is `state.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.checkpoint.atomic import remove_abandoned_files
from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.reader import open_checkpoint, read_content
from wiseft_cli.compute.disk import free_bytes
from wiseft_cli.errors import CheckpointError, OutputError
from wiseft_cli.training.state_record import StateRecord, read_record

KEPT_STATES = 2
"""States on disk between two saves; the older one is for the case that the newer is damaged."""

_NAME = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class FoundState:
    """A state whose content is what was written."""

    path: Path
    card: Card
    record: StateRecord


def state_folder(output: Path) -> Path:
    """Return the folder that holds the states of the run that writes an output."""
    return output.with_name(output.name + ".state")


def state_path(output: Path, steps_done: int) -> Path:
    """Return where a state lies."""
    return state_folder(output) / f"step-{steps_done:08}.safetensors"


def list_states(output: Path) -> list[Path]:
    """Return the states of a run, the newest first; none where there is no folder.

    Raises:
        OutputError: The folder's name is taken, or it cannot be listed.
    """
    folder = state_folder(output)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot hold the state of the run: {error.strerror}",
            hint="name another output with -o",
        ) from None
    steps = {int(match[1]): name for name in names if (match := _NAME.fullmatch(name))}
    return [folder / steps[step] for step in sorted(steps, reverse=True)]


def find_newest_intact(output: Path, on_damaged: Callable[[str], None]) -> FoundState | None:
    """Return the newest state whose content digest is right, or None where there is none.

    Args:
        output: The output of the run.
        on_damaged: Called with a sentence for each newer state that cannot be used.
    """
    for path in list_states(output):
        try:
            return _open_intact(path)
        except CheckpointError as error:
            on_damaged(f"{error.message}; this state is skipped")
    return None


def _open_intact(path: Path) -> FoundState:
    with open_checkpoint(path) as source:
        card, digest = source.card, read_content(source).digest
    if card is None or card.digest != digest:
        raise CheckpointError(f"{path}: is damaged, its content is not what was written")
    with open_checkpoint(path) as reader:
        return FoundState(path, card, read_record(reader))


def remove_old_states(output: Path) -> None:
    """Remove all states but the newest ones."""
    _remove(list_states(output)[KEPT_STATES:])


def remove_newer_states(state: FoundState) -> None:
    """Remove the states after the one that a run goes on from: they are damaged."""
    paths = list_states(state.path.parent.with_suffix(""))
    _remove(paths[: paths.index(state.path)])


def remove_states(output: Path) -> None:
    """Remove all states and their folder, unless there are other files in it."""
    _remove(list_states(output))
    sweep_states(output)
    with contextlib.suppress(OSError):
        state_folder(output).rmdir()


def sweep_states(output: Path) -> None:
    """Remove what a process that was killed while it saved left in the folder."""
    remove_abandoned_files(state_folder(output))


def check_room(output: Path, *, state_bytes: int, output_bytes: int) -> None:
    """Refuse a run whose states and output the disk cannot hold, before it begins.

    Args:
        output: Where the output goes; the states lie beside it.
        state_bytes: Size of one state; 0 where none is saved. One more than are kept must fit.
        output_bytes: Size of the output.
    Raises:
        OutputError: The disk has less room.
    """
    existing = sum(path.stat().st_size for path in list_states(output))
    needed = (KEPT_STATES + 1) * state_bytes + output_bytes - min(existing, state_bytes * 3)
    free = free_bytes(output.parent)
    if free >= needed:
        return
    states = f" and {KEPT_STATES + 1} states of {state_bytes:,}" if state_bytes else ""
    raise OutputError(
        f"{output}: the run needs {needed:,} bytes (a checkpoint of {output_bytes:,}{states}),"
        f" and {free:,} are free",
        hint=f"free space in {output.parent}, or name another place with -o"
        + ("; --save-every never needs none for states" if state_bytes else ""),
    )


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

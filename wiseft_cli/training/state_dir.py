"""The states of a run on disk, which is all that a killed run leaves behind.

    OUT.state/step-00000120.safetensors      the last two states of the run that writes OUT
    OUT.state/.step-*.wiseft-tmp-*           a state that was being written; the next save or
                                             `--resume` removes it
    .OUT.wiseft-tmp-*                        the output, if the run was being finished

A state file is complete or absent (`checkpoint/atomic.py`), and its content digest shows later
damage. `resume.py` decides where a run continues; `state.py` holds the tensors of a state. No
torch is needed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_cli.checkpoint.atomic import remove_abandoned_files
from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.reader import (
    RECORD_TENSOR,
    CheckpointReader,
    open_checkpoint,
    read_content,
)
from wiseft_cli.compute.disk import free_bytes
from wiseft_cli.errors import CheckpointError, OutputError

KEPT_STATES = 2
"""States that are kept; the older one is used if the newer one is damaged."""

_NAME = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class StateRecord:
    """The progress of a run, and the conditions under which it was made.

    Attributes:
        steps_done: Optimizer steps taken; also the position in the data.
        loss_sum: Sum of the loss over the images of the epoch so far.
        n_images: Number of these images.
        scaler: State of fp16's gradient scaler; empty for other precisions.
        threads: CPU threads of torch.
        world_size: Processes that shared each step.
        torch_version: Version of the installed package.
        unreadable: Positions of the training images that could not be read so far.
        selection: Epoch and accuracy of the best weights so far; empty if there are none.
    """

    steps_done: int
    loss_sum: float
    n_images: int
    scaler: Mapping[str, Any]
    threads: int
    world_size: int
    torch_version: str
    unreadable: Sequence[int] = ()
    selection: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedState:
    """An undamaged state on disk."""

    path: Path
    card: Card
    record: StateRecord


_OPTIONAL = {"unreadable", "selection"}


def encode_record(record: StateRecord) -> np.ndarray:
    """Return a record as bytes, uint8; floats keep their exact values.

    Optional fields are left out at their defaults, so that older versions read the record.
    """
    document = {
        name: value for name, value in asdict(record).items() if value or name not in _OPTIONAL
    }
    return np.frombuffer(canonical_json(document).encode(), np.uint8)


def _read_record(reader: CheckpointReader) -> StateRecord:
    if RECORD_TENSOR not in reader.tensors:
        raise CheckpointError(f"{reader.path}: is not the state of a run")
    try:
        document = json.loads(reader.read_array(RECORD_TENSOR).tobytes())
        known = {at.name for at in fields(StateRecord)}
        if not known - _OPTIONAL <= document.keys() <= known:
            raise ValueError("unexpected fields")
        return StateRecord(**document)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{reader.path}: its record cannot be used ({error})",
            hint="it was written by another version of wiseft; start again with --force",
        ) from None


def state_folder(output: Path) -> Path:
    """Return the folder with the states of the run that writes an output."""
    return output.with_name(output.name + ".state")


def state_path(output: Path, steps_done: int) -> Path:
    """Return the path of a state."""
    return state_folder(output) / f"step-{steps_done:08}.safetensors"


def list_states(output: Path) -> list[Path]:
    """Return the states of a run, newest first; empty if the folder does not exist.

    Raises:
        OutputError: The folder cannot be listed, or something else has its name.
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


def find_newest_intact(output: Path) -> tuple[SavedState | None, tuple[str, ...]]:
    """Return the newest undamaged state, and a warning for each newer one.

    Damage is found by the content digest.
    """
    warnings: list[str] = []
    for path in list_states(output):
        try:
            return _open_intact(path), tuple(warnings)
        except CheckpointError as error:
            warnings.append(f"{error.message}; this state is skipped")
    return None, tuple(warnings)


def _open_intact(path: Path) -> SavedState:
    with open_checkpoint(path) as reader:
        card = reader.card
        if card is None or card.digest != read_content(reader).digest:
            raise CheckpointError(f"{path}: is damaged, its digest does not match its content")
        return SavedState(path, card, _read_record(reader))


def remove_old_states(output: Path) -> None:
    """Remove all states except the newest ones."""
    _remove(list_states(output)[KEPT_STATES:])


def remove_newer_states(output: Path, state: SavedState) -> None:
    """Remove the states after the one that a run resumes from: they are damaged."""
    paths = list_states(output)
    _remove(paths[: paths.index(state.path)])


def remove_states(output: Path) -> None:
    """Remove all states, and their folder unless it holds other files."""
    _remove(list_states(output))
    remove_unfinished_states(output)
    with contextlib.suppress(OSError):
        state_folder(output).rmdir()


def remove_unfinished_states(output: Path) -> None:
    """Remove the files of a process that was killed while it saved a state."""
    remove_abandoned_files(state_folder(output))


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def require_space_for_run(output: Path, *, state_bytes: int, output_bytes: int) -> None:
    """Reject a run whose states and output do not fit on the disk.

    Args:
        output: Path of the output; the states are beside it.
        state_bytes: Size of one state; 0 if none is saved. One more state than is kept must fit.
        output_bytes: Size of the output.
    Raises:
        OutputError: The disk has less free space.
    """
    n_states = KEPT_STATES + 1
    existing = sum(path.stat().st_size for path in list_states(output))
    needed = n_states * state_bytes + output_bytes - min(existing, state_bytes * n_states)
    free = free_bytes(output.parent)
    if free >= needed:
        return
    states = f" and {n_states} states of {state_bytes:,}" if state_bytes else ""
    raise OutputError(
        f"{output}: the run needs {needed:,} bytes (a checkpoint of {output_bytes:,}{states}),"
        f" and {free:,} are free",
        hint=f"free space in {output.parent}, or name another place with -o"
        + ("; --save-every never needs no space for states" if state_bytes else ""),
    )

"""The errors that a user can cause, and the exit code of each.

    WiseftError                      1  the input or the environment is wrong
    ├── UsageError                   2  options that contradict each other
    ├── CheckpointError                 a checkpoint cannot be used
    │   ├── NotACheckpointError         the file is not a checkpoint, or has no card
    │   └── IncompatibleCheckpointsError   two checkpoints do not belong together
    ├── OutputError                     an output exists, is an input, or cannot be written
    ├── DatasetError                    an image set cannot be read or its labels do not fit
    │   └── CommonDatasetError          the same, raised in every process of a run
    ├── ClassNamesError                 a class list is wrong
    ├── TemplatesError                  a prompt template is wrong
    ├── ModelError                      a model cannot be built, or its weights cannot be loaded
    ├── RecipeError                     a fine-tuning option is out of range
    ├── MergePlanError                  a plan file of a merge is wrong
    ├── ResultsError                    a results file is wrong
    ├── RemoteError                     a remote file cannot be fetched
    ├── LostProcessError                a run on several processes lost one of them
    ├── MissingDependencyError          an optional package is not installed
    └── GateFailedError                3  an evaluation gate was not met

Anything else that escapes is a defect of this program and keeps its traceback.
This module does not print and does not exit; `cli/app.py` does, in one place.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence

_CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff"
    "\\U000e0000-\\U000e007f]"
)

_CUTOFF = 0.7
"""Least similarity, of 1, of a name that is suggested."""
_MOST_NAMES = 20_000
"""Names of a folder that are compared; comparing a million takes ten seconds."""


class WiseftError(Exception):
    """A fault of the input or the environment, reported without a traceback.

    Args:
        message: What failed, where, what was expected and what was found.
        faults: Details, one per line below the message; after ten, the rest is counted.
        hint: The remedy, printed on a line of its own.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, faults: Sequence[str] = (), hint: str | None = None
    ) -> None:
        lines = message.split("\n  ")
        if faults:
            lines = [*lines[:-1], f"{lines[-1]}:", *list_some(faults)]
        self.message = "\n  ".join(map(escape_controls, lines))
        super().__init__(self.message)
        self.hint = hint and escape_controls(hint)


class UsageError(WiseftError):
    """Options are missing, unknown or contradict each other."""

    exit_code = 2


class CheckpointError(WiseftError):
    """A checkpoint is damaged or does not fit its role."""


class NotACheckpointError(CheckpointError):
    """The file is not a safetensors checkpoint, or lacks a required card."""


class IncompatibleCheckpointsError(CheckpointError):
    """Two checkpoints differ where they must agree."""


class OutputError(WiseftError):
    """An output exists already, is also an input, or cannot be written."""


class DatasetError(WiseftError):
    """An image set cannot be read, or its labels do not fit the classifier."""


class CommonDatasetError(DatasetError):
    """A dataset error that every process of a run raises, so that process 0 alone prints it."""


class ClassNamesError(WiseftError):
    """A class list is empty, ambiguous or malformed."""


class TemplatesError(WiseftError):
    """A prompt template is empty or lacks its placeholder."""


class ModelError(WiseftError):
    """A model cannot be built, or its weights cannot be found or loaded."""


class RecipeError(WiseftError):
    """A fine-tuning option is out of its range."""


class MergePlanError(WiseftError):
    """A plan file of a merge is malformed, or has unknown or wrong keys."""


class ResultsError(WiseftError):
    """A results file is malformed."""


class RemoteError(WiseftError):
    """A remote file cannot be found, reached or fetched."""


class LostProcessError(WiseftError):
    """A run on several processes lost one of them, or never found it."""


class MissingDependencyError(WiseftError):
    """An optional package that this step needs is not installed."""


class GateFailedError(WiseftError):
    """An evaluation finished, and a gate on its numbers was not met."""

    exit_code = 3


def escape_controls(text: str) -> str:
    """Return a text in which no character can forge a line or change the terminal.

    Line ends, escape sequences, bidirectional controls, tags and halves of surrogate pairs become
    the escapes of JSON, such as `\\n` and `\\u001b`.
    """
    return _CONTROLS.sub(lambda match: json.dumps(match[0])[1:-1], text)


def list_some(lines: Sequence[str], *, limit: int = 10) -> list[str]:
    """Return the first `limit` lines, and a line that counts the others."""
    if len(lines) <= limit:
        return list(lines)
    return [*lines[:limit], f"... and {len(lines) - limit} more"]


def counted(number: int, noun: str, *, plural: str | None = None) -> str:
    """Return a number with what it counts: `1 folder`, `2,000 folders`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def brief(text: str, *, limit: int = 100) -> str:
    """Shorten a text to at most `limit` characters, ending in `...`."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3) -> str | None:
    """Return a question with the known names that resemble a wrong one, or None."""
    by_lower = {text.lower(): text for text in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=_CUTOFF)
    return f"did you mean {' or '.join(by_lower[match] for match in close)}?" if close else None


def did_you_mean_path(path: str | os.PathLike[str]) -> str | None:
    """Return a question with the existing paths that resemble a missing one, or None.

    The first part of the path that does not exist is compared with the names in its folder, by
    spelling or without their suffix. Names with other numbers are never suggested.
    """
    text = os.fspath(path).rstrip("/")
    if os.path.lexists(text):
        return None
    folder, name = os.path.split(text)
    while folder not in ("", "/") and not os.path.lexists(folder):
        folder, name = os.path.split(folder)
    rest = text[len(os.path.join(folder, name)) :]
    found = [os.path.join(folder, near) + rest for near in _near_names(folder or ".", name)]
    found = [near for near in found if os.path.exists(near)]
    return f"did you mean {' or '.join(found)}?" if found else None


def _near_names(folder: str, name: str) -> list[str]:
    """Return up to three names in a folder that resemble another, the most similar one first."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in itertools.islice(entries, _MOST_NAMES))
    except (OSError, ValueError):  # ValueError: a NUL byte
        return []
    if same_stem := [known for known in names if os.path.splitext(known)[0] == name]:
        return same_stem[:3]
    numbers = re.findall(r"\d+", name)
    by_lower = {
        known.lower(): known
        for known in names
        if known != name and re.findall(r"\d+", known) == numbers
    }
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=_CUTOFF)
    return [by_lower[near] for near in close]

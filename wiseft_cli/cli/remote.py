"""Inputs of the commands that are remote: fetched before a command runs, in one place for all."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from wiseft_cli.cli.console import Advance, print_message, progress
from wiseft_cli.errors import UsageError

CHECKPOINTS = frozenset(
    {"checkpoint", "checkpoints", "zeroshot", "finetuned", "file", "a", "b", "source", "base"}
    | {"fisher", "image_encoder", "pretrained"}
)
IMAGE_SETS = frozenset({"data", "train", "val", "select_on"})
"""Parameters of the commands that may be remote, by what they name."""

_URL = re.compile(r"(?:[^=/?:]+=)?(?:hf|s3|gs|gcs|https?):/")
_SPEC = re.compile(r"((?:[^=/?:]+=)?)([a-z0-9]+:/[^?]*)(\?.*)?", re.DOTALL)


def with_remote_inputs(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that fetches its remote inputs, and gets local paths in their place."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        remote = [name for name, value in arguments.items() if _names_remote(value)]
        if remote:
            _require_inputs(arguments, remote)
            arguments = {name: _local(name, value) for name, value in arguments.items()}
        command(**arguments)

    return run


def _names_remote(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(at, str | Path) and _URL.match(str(at)) is not None for at in values)


def _local(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_local(name, at) for at in value)
    if not _names_remote(value):
        return value
    if name in IMAGE_SETS:
        return _local_image_set(str(value))
    if name in CHECKPOINTS:
        return type(value)(_fetch_checkpoint(str(value)))
    return value


def _require_inputs(arguments: Mapping[str, Any], remote: Sequence[str]) -> None:
    """Reject a remote file in the place of a local one, before anything is fetched."""
    for name in remote:
        values = arguments[name] if isinstance(arguments[name], list) else [arguments[name]]
        is_path = name == "output" or any(isinstance(value, Path) for value in values)
        if is_path and name not in CHECKPOINTS | IMAGE_SETS:
            option = f"--{name.replace('_', '-')} {normalize(str(values[0]))}"
            raise UsageError(
                f"{option}: expected a local path; only checkpoints and image sets that are read "
                "may be remote"
            )


def normalize(text: str) -> str:
    """Return a URL as it was given: `Path` makes one slash of two."""
    return re.sub(r"(?<=[a-z0-9]:)/+", "//", text, count=1)


def _fetch_checkpoint(text: str) -> str:
    # lazy: numpy takes a tenth of a second, and few commands read remote files
    from wiseft_cli.convert.remote import REMOTE, Callbacks, fetch

    match = REMOTE.match(text)
    assert match is not None
    with _Report() as report:
        path = fetch(match[2], Callbacks(report.start, report.advance))
    return f"{match[1]}{path}"


def _local_image_set(text: str) -> str:
    # lazy: as above
    from wiseft_cli.convert.remote import Callbacks, fetch_image_set

    match = _SPEC.fullmatch(text)
    assert match is not None
    split = re.search(r"[?,]split=([^,]*)", match[3] or "")
    with _Report() as report:
        path = fetch_image_set(
            match[2], split and split[1], Callbacks(report.start, report.advance)
        )
    return f"{match[1]}{path}{match[3] or ''}"


class _Report:
    """Messages about a download: its size first, then its progress in MiB."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._advance: Advance | None = None
        self._rest = 0

    def __enter__(self) -> _Report:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, url: str, n_files: int, size_bytes: int | None) -> None:
        size = "size unknown" if size_bytes is None else f"{size_bytes / 2**20:,.1f} MiB"
        files = "" if n_files == 1 else f"{n_files} files, "
        print_message(f"fetching {url} ({files}{size})")
        self._stack.close()
        if size_bytes is not None:
            self._advance = self._stack.enter_context(progress(size_bytes >> 20, "fetching (MiB)"))

    def advance(self, n_bytes: int) -> None:
        steps, self._rest = divmod(self._rest + n_bytes, 1 << 20)
        if steps and self._advance is not None:
            self._advance(steps)

"""Write a folder completely or not at all, and replace only folders written this way.

A temporary folder beside the output is filled, flushed to disk and renamed. If the process fails
or is killed, the output's name still refers to what it referred to before. A manifest in the
folder lists its files, so a folder to which somebody added files is recognized and kept.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.atomic import (
    UNFINISHED,
    cannot_write,
    check_parent,
    flush_folder,
    remove_abandoned_versions,
    resolve_output,
    temporary_sibling,
    try_lock,
)
from wiseft_cli.errors import OutputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_output_folder(
    path: Path,
    *,
    manifest: str,
    force: bool,
    inputs: Sequence[Path] = (),
    creates_parents: bool = False,
) -> None:
    """Reject an output folder that must not be written, before any work is done.

    Args:
        path: Path of the output folder.
        manifest: Name of the file in it that lists its files.
        force: Whether a folder written this way may be replaced.
        inputs: Files that the command reads; none may lie in the folder.
        creates_parents: Whether missing folders of the path are created before it is written.
    Raises:
        OutputError: An input lies in the folder; the folder exists without `force`, is a file,
            or contains files that its manifest does not list; or its parent is missing or not
            writable.
    """
    target = resolve_output(path)
    for source in inputs:
        if target in (resolve_output(source), *resolve_output(source).parents):
            raise OutputError(
                f"{path}: contains an input ({source})",
                hint="name another folder with -o; an input is never overwritten",
            )
    if os.path.lexists(path):
        if not target.is_dir():
            raise OutputError(f"{path}: is a file, expected the name of a folder")
        if not force:
            raise OutputError(
                f"{path}: exists already",
                hint="name another folder with -o, or replace it with --force",
            )
        _reject_foreign_files(path, manifest)
    check_parent(path, target.parent, creates_parents=creates_parents)


def _reject_foreign_files(folder: Path, manifest: str) -> None:
    known = {manifest, *_read_manifest(folder / manifest)}
    foreign = [name for name in _files_in(folder) if name not in known]
    if foreign:
        raise OutputError(
            f"{folder}: contains files that this command did not write",
            faults=foreign,
            hint="name another folder with -o, or move these files elsewhere",
        )


def _files_in(folder: Path) -> list[str]:
    """Return the relative paths of everything below a folder except folders, sorted."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path.relative_to(folder)) for path in found)


def _read_manifest(manifest: Path) -> list[str]:
    """Return the files that a manifest lists; none if it is missing or damaged."""
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    files = document.get("files") if isinstance(document, dict) else None
    return [name for name in files if isinstance(name, str)] if isinstance(files, list) else []


class AtomicFolder:
    """A folder that is being written; `commit` gives it its final name.

    Use it as a context manager: leaving it without `commit` removes the temporary folder, and
    errors of writing in it name the output. Creating it removes temporary folders that killed
    processes left beside the same output.

    Args:
        path: Path of the output folder.
        manifest: Name of the file that `commit` adds.
        force: Whether a folder written this way may be replaced.
        inputs: Files of which none may lie in the folder.

    Attributes:
        temporary: The folder to write into.

    Raises:
        OutputError: See `check_output_folder`; also a full disk or any other failure to write.
    """

    def __init__(
        self, path: Path, *, manifest: str, force: bool = False, inputs: Sequence[Path] = ()
    ) -> None:
        check_output_folder(path, manifest=manifest, force=force, inputs=inputs)
        self.path = path
        self._manifest = manifest
        self._force = force
        self._target = resolve_output(path)
        remove_abandoned_versions(path)
        self.temporary = temporary_sibling(self._target)
        UNFINISHED.add(self.temporary)
        try:
            os.mkdir(self.temporary)
            self._lock = os.open(self.temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_write(path, error) from None
        try_lock(self._lock)

    def __enter__(self) -> AtomicFolder:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        UNFINISHED.discard(self.temporary)
        os.close(self._lock)
        if isinstance(error, OutputError):
            message = error.message.replace(str(self.temporary), str(self.path))
            hint = error.hint and error.hint.replace(str(self.temporary), str(self._target.parent))
            raise OutputError(message, hint=hint) from None
        if isinstance(error, OSError):
            raise cannot_write(self.path, error) from None

    def commit(self, facts: Mapping[str, Any]) -> None:
        """Add the manifest, flush everything to disk, and rename the folder to its final name.

        A folder that is replaced is exchanged with the new one in one step if the system can do
        that, and then removed; otherwise its name is free for a moment.

        Args:
            facts: Other entries of the manifest; JSON.
        Raises:
            OutputError: The disk is full or failing, or the output was created meanwhile.
        """
        files = _files_in(self.temporary)
        text = json.dumps({**facts, "files": files}, indent=2, sort_keys=True)
        (self.temporary / self._manifest).write_text(text + "\n", encoding="utf-8")
        for name in (*files, self._manifest):
            _flush_file(self.temporary / name)
        flush_folder(self.temporary)
        if os.path.lexists(self._target):
            # Checked again as late as possible: it may have been created or extended meanwhile.
            check_output_folder(self.path, manifest=self._manifest, force=self._force)
            if not _exchange(self.temporary, self._target):
                self._replace()
        else:
            os.rename(self.temporary, self._target)
        flush_folder(self._target.parent)

    def _replace(self) -> None:
        old = temporary_sibling(self._target)
        os.rename(self._target, old)
        try:
            os.rename(self.temporary, self._target)
        except OSError:
            os.rename(old, self._target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return False if the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

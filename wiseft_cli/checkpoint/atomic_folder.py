"""Write a folder whole or not at all, and replace none but one that was written this way.

A sibling temporary folder is filled, flushed to disk and renamed. A process that fails or is
killed leaves the final name as it was. A manifest in the folder lists its files, so that a
folder which somebody has put files of their own into is known and left alone.
It knows nothing of what is written.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from wiseft_cli.errors import OutputError, list_some

_TEMPORARY_MARK = ".wiseft-tmp-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_output_folder(
    path: Path, *, manifest: str, force: bool, inputs: Sequence[Path] = ()
) -> None:
    """Refuse an output folder that must not be written, before any work is spent on it.

    Args:
        path: Where the folder is to be.
        manifest: Name of the file that lists what was written into it.
        force: Whether a folder that was written this way may be replaced.
        inputs: Files the command reads; none may lie in the folder.
    Raises:
        OutputError: An input lies in the folder; it exists without `force`; it is no folder, or
            holds files its manifest does not list; or its parent is missing or not writable.
    """
    target = _target(path)
    for source in inputs:
        if target in (_target(source), *_target(source).parents):
            raise OutputError(
                f"{path}: holds an input ({source})",
                hint="name another folder with -o; an input is never overwritten",
            )
    if os.path.lexists(path):
        if not target.is_dir():
            raise OutputError(f"{path}: is no folder, expected the name of a folder")
        if not force:
            raise OutputError(
                f"{path}: exists already",
                hint="name another folder with -o, or replace it with --force",
            )
        _refuse_foreign_files(path, manifest)
    if not target.parent.is_dir():
        raise OutputError(
            f"{path}: its folder {target.parent} does not exist", hint=f"mkdir -p {target.parent}"
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in the folder {target.parent}")


def _refuse_foreign_files(folder: Path, manifest: str) -> None:
    known = {manifest, *_listed(folder / manifest)}
    foreign = [name for name in _files_in(folder) if name not in known]
    if foreign:
        lines = "".join(f"\n  {name}" for name in list_some(foreign))
        raise OutputError(
            f"{folder}: holds what was not written by this command{lines}",
            hint="name another folder with -o, or move these files away",
        )


def _files_in(folder: Path) -> list[str]:
    """Everything below a folder that is not itself a folder, relative to it, sorted."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path.relative_to(folder)) for path in found)


def _listed(manifest: Path) -> list[str]:
    """The files a manifest lists; none where there is no manifest, or none that can be read."""
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    files = document.get("files") if isinstance(document, dict) else None
    return [name for name in files if isinstance(name, str)] if isinstance(files, list) else []


# As for files: a name is noted before there is a folder, and looked up at exit.
_UNFINISHED: set[Path] = set()
_OWNER = os.getpid()


@atexit.register
def _remove_unfinished() -> None:
    if os.getpid() != _OWNER:  # a forked child that leaves through exit
        return
    for temporary in _UNFINISHED:
        shutil.rmtree(temporary, ignore_errors=True)


class AtomicFolder:
    """A folder being written; it appears under its name only with `commit`.

    Use it as a context manager: leaving without `commit`, by an error or not, removes the
    temporary folder, and errors of writing in it speak of the final name. A temporary folder
    that a killed process left beside the same output is removed by the next one.

    Args:
        path: The final name.
        manifest: Name of the file that `commit` adds.
        force: Whether a folder that was written this way may be replaced.
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
        self._target = _target(path)
        # Cut by bytes, as file systems count them; a letter cut in two is left out.
        name = os.fsencode(self._target.name)[:120].decode("utf-8", "ignore")
        self._mark = f".{name}{_TEMPORARY_MARK}"
        self._remove_abandoned()
        self.temporary = self._sibling()
        _UNFINISHED.add(self.temporary)
        try:
            os.mkdir(self.temporary)
            self._lock = os.open(self.temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._cannot(error) from None
        # Held while this process lives, so that another can tell an abandoned folder by it.
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> AtomicFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        _UNFINISHED.discard(self.temporary)
        with contextlib.suppress(OSError):
            os.close(self._lock)
        if isinstance(error, OutputError):
            message = error.message.replace(str(self.temporary), str(self.path))
            hint = error.hint and error.hint.replace(str(self.temporary), str(self._target.parent))
            raise OutputError(message, hint=hint) from None
        if isinstance(error, OSError):
            raise self._cannot(error) from None

    def commit(self, facts: Mapping[str, Any]) -> None:
        """Add the manifest, flush everything to disk, and give the folder its final name.

        A folder that is replaced changes places with the new one at once, where the system can
        do that, and is then removed; elsewhere its name is free for a moment.

        Args:
            facts: What else the manifest says; JSON.
        Raises:
            OutputError: The disk is full or failing, or the name was taken meanwhile.
        """
        files = _files_in(self.temporary)
        text = json.dumps({**facts, "files": files}, indent=2, sort_keys=True)
        (self.temporary / self._manifest).write_text(text + "\n", encoding="utf-8")
        for name in (*files, self._manifest, "."):
            _flush(self.temporary / name)
        if os.path.lexists(self._target):
            # Again, as late as can be: it may have appeared, or been added to, meanwhile.
            check_output_folder(self.path, manifest=self._manifest, force=self._force)
            if not _exchange(self.temporary, self._target):
                self._replace()
        else:
            os.rename(self.temporary, self._target)
        _flush(self._target.parent)

    def _replace(self) -> None:
        old = self._sibling()
        os.rename(self._target, old)
        try:
            os.rename(self.temporary, self._target)
        except OSError:
            os.rename(old, self._target)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def _sibling(self) -> Path:
        return self._target.with_name(self._mark + secrets.token_hex(6))

    def _remove_abandoned(self) -> None:
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._target.parent):
                if entry.name.startswith(self._mark):
                    _remove_if_abandoned(Path(entry.path))

    def _cannot(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: cannot be written: {error.strerror}; nothing was kept")


def _target(path: Path) -> Path:
    # A link is written through, as a plain open for writing would.
    return Path(os.path.realpath(path))


def _exchange(first: Path, second: Path) -> bool:
    """Let two names change places in one step; False where the system or its disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems refuse to flush a folder
            raise
    finally:
        os.close(descriptor)


def _remove_if_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            # Refused while the process that writes it is alive.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)

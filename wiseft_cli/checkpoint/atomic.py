"""Write a file whole or not at all, and never over something that was not meant.

A sibling temporary file is written, flushed to disk and renamed. A process that fails or
is killed leaves the final name as it was. It knows nothing of what is written.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from wiseft_cli.checkpoint.page_cache import UncachedPages
from wiseft_cli.compute.disk import require_space
from wiseft_cli.errors import OutputError

_TEMPORARY_MARK = ".wiseft-tmp-"


def check_output(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output that must not be written, before any work is spent on it.

    Args:
        path: Where the output is to go.
        force: Whether an existing file may be overwritten.
        inputs: Files the command reads; the output may be none of them, whatever its name.
    Raises:
        OutputError: The output is an input (also through a link), exists without `force`, is
            no regular file, or its folder is missing or not writable.
    """
    for source in inputs:
        if path.exists() and source.exists() and os.path.samefile(path, source):
            raise OutputError(
                f"{path}: is also an input ({source})",
                hint="name another output with -o; an input is never overwritten",
            )
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file name for the output")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file, so it cannot be replaced as a whole")
    if os.path.lexists(path) and not force:
        raise OutputError(
            f"{path}: exists already", hint="name another output with -o, or overwrite with --force"
        )
    folder = _target(path).parent
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{path}: {folder} is a file, expected a folder")
    if not folder.is_dir():
        above = next(parent for parent in folder.parents if parent.exists())
        if not above.is_dir():
            raise OutputError(f"{path}: {above} is a file, expected a folder")
        raise OutputError(f"{path}: its folder {folder} does not exist", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in the folder {folder}")


# A signal may arrive between a temporary file's creation and the moment from which a `with` block
# would remove it. Its name is therefore noted before there is a file, and looked up at exit.
_UNFINISHED: set[Path] = set()
_OWNER = os.getpid()


@atexit.register
def _remove_unfinished() -> None:
    if os.getpid() != _OWNER:  # a forked child that leaves through exit
        return
    for temporary in _UNFINISHED:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    # A link is written through, as a plain open for writing would.
    return Path(os.path.realpath(path))


class AtomicFile:
    """A file being written; it appears under its name only with `commit`.

    Use it as a context manager: leaving without `commit`, by an error or not, removes the
    temporary file. A temporary file that a killed process left beside the same output is
    removed by the next one.

    Args:
        path: The final name.
        force: Whether an existing file may be replaced.
        inputs: Files that the output must not be.

    Raises:
        OutputError: See `check_output`; also a full disk or any other failure to write.
    """

    def __init__(self, path: Path, *, force: bool = False, inputs: Sequence[Path] = ()) -> None:
        check_output(path, force=force, inputs=inputs)
        self.path = path
        self._force = force
        self._target = _target(path)
        remove_abandoned_versions(path)
        self._committed = False
        self._uncached: UncachedPages | None = None
        with self._telling_errors():
            self._open_temporary()
            # Another process may have taken the file for abandoned before it was locked.
            while os.fstat(self._descriptor).st_nlink == 0:
                os.close(self._descriptor)
                _UNFINISHED.discard(self._temporary)
                self._open_temporary()

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._committed:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
        _UNFINISHED.discard(self._temporary)
        with contextlib.suppress(OSError):
            if self._uncached:
                self._uncached.close()
            os.close(self._descriptor)

    def bypass_page_cache(self) -> None:
        """Write whole pages straight to the disk from now on, where the file system can."""
        self._uncached = UncachedPages(self._temporary)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at a position; safe from several threads on ranges of their own."""
        view = memoryview(data).cast("B")
        with self._telling_errors():
            begin, end = self._uncached.write(offset, view) if self._uncached else (0, 0)
            self._write_cached(offset, view[:begin])
            self._write_cached(offset + end, view[end:])

    def _write_cached(self, offset: int, view: memoryview) -> None:
        while view.nbytes:
            count = os.pwrite(self._descriptor, view, offset)
            view = view[count:]
            offset += count

    def reserve(self, size_bytes: int) -> None:
        """Give the file its final size, so that a lack of room shows before any work is done.

        Raises:
            OutputError: The disk has less room, or the process may not write files so large.
        """
        with self._telling_errors():
            os.ftruncate(self._descriptor, size_bytes)
        require_space([(self.path, size_bytes)])

    def flush(self) -> None:
        """Wait until what was written so far is on the disk."""
        if self._uncached and not self._uncached.is_refused:
            return  # all but a few pages went there directly
        with self._telling_errors():
            # fdatasync where there is one: the file's times need not be on the disk yet.
            getattr(os, "fdatasync", os.fsync)(self._descriptor)

    def commit(self) -> None:
        """Flush to disk and give the file its final name.

        Raises:
            OutputError: The disk is full or failing, or the name was taken meanwhile.
        """
        with self._telling_errors():
            os.fsync(self._descriptor)
            if self._force:
                os.replace(self._temporary, self._target)
            else:
                self._rename_without_replacing()
            self._committed = True
            _flush_folder(self._target.parent)

    def _rename_without_replacing(self) -> None:
        try:
            # A link fails where the name exists, which a rename does not.
            os.link(self._temporary, self._target)
        except FileExistsError:
            raise OutputError(
                f"{self.path}: was created by another process meanwhile",
                hint="name another output with -o, or overwrite with --force",
            ) from None
        except OSError:
            # File systems without hard links: check as late as can be.
            if os.path.lexists(self._target):
                raise OutputError(f"{self.path}: exists already") from None
            os.replace(self._temporary, self._target)
        else:
            self._temporary.unlink()

    def _open_temporary(self) -> None:
        self._temporary = self._target.with_name(_mark_of(self._target) + os.urandom(6).hex())
        _UNFINISHED.add(self._temporary)
        # 0o666 less the umask, as for any new file; mkstemp would give 0o600.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, flags, 0o666)
        # Held while this process lives, so that another can tell an abandoned file by it.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def _room_hint(self) -> str:
        return f"free space in {self._target.parent}, or name another place with -o"

    @contextlib.contextmanager
    def _telling_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OutputError(
                    f"{self.path}: cannot be written: {error.strerror}; nothing was kept",
                    hint=self._room_hint,
                ) from None
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from None


def _mark_of(target: Path) -> str:
    # Cut by bytes, as file systems count them; a letter cut in two is left out.
    name = os.fsencode(target.name)[:120].decode("utf-8", "ignore")
    return f".{name}{_TEMPORARY_MARK}"


def remove_abandoned_versions(path: Path) -> None:
    """Remove the temporary files that killed processes left of one output."""
    target = _target(path)
    with contextlib.suppress(OSError):
        for entry in os.scandir(target.parent):
            if entry.name.startswith(_mark_of(target)):
                _remove_if_abandoned(entry.path)


def remove_abandoned_files(folder: Path) -> None:
    """Remove every temporary file that a killed process left in a folder.

    An `AtomicFile` removes only those of its own name. This is for a folder in which names
    follow one another, so that no later file would have the name.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(".") and _TEMPORARY_MARK in entry.name:
                _remove_if_abandoned(entry.path)


def _remove_if_abandoned(path: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # Refused while the process that writes it is alive.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; some file systems refuse to flush a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes_atomically(
    path: Path, data: bytes, *, force: bool = False, inputs: Sequence[Path] = ()
) -> None:
    """Write a small file whole or not at all.

    Raises:
        OutputError: See `AtomicFile`.
    """
    with AtomicFile(path, force=force, inputs=inputs) as file:
        file.write_at(0, data)
        file.commit()

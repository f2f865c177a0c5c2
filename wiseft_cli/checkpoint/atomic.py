"""Write a file completely or not at all, and never overwrite anything unintentionally.

A temporary file beside the output is written, flushed to disk and renamed. If the process fails
or is killed, the output's name still refers to what it referred to before.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from wiseft_cli.compute.disk import require_space
from wiseft_cli.errors import OutputError

_TEMPORARY_MARK = ".wiseft-tmp-"

# A signal can arrive after a temporary file is created and before a `with` block can remove it.
# Its name is therefore recorded before it is created, and removed at exit.
UNFINISHED: set[Path] = set()
"""Temporary files and folders of this process, to be removed at exit."""

_OWNER = os.getpid()

_PICKLED = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
"""Names of files of `torch.save`, which loaders read according to the name."""


@atexit.register
def _remove_unfinished() -> None:
    if os.getpid() == _OWNER:  # and not in a forked child
        for temporary in UNFINISHED:
            remove_file_or_folder(temporary)


def remove_file_or_folder(path: Path) -> None:
    """Remove a file or a folder with its content; errors are ignored."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def resolve_output(path: Path) -> Path:
    """Return the path that is replaced; a link is written through, as a plain open does."""
    return Path(os.path.realpath(path))


def temporary_sibling(target: Path) -> Path:
    """Return a new temporary name beside an output."""
    return target.with_name(_temporary_prefix(target) + os.urandom(6).hex())


def _temporary_prefix(target: Path) -> str:
    # File systems limit names in bytes; a character cut in two is dropped.
    name = os.fsencode(target.name)[:120].decode("utf-8", "ignore")
    return f".{name}{_TEMPORARY_MARK}"


def try_lock(descriptor: int) -> None:
    """Mark a temporary file or folder as in use until this process closes it or ends."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned_versions(path: Path) -> None:
    """Remove the temporary files and folders that killed processes left of one output."""
    target = resolve_output(path)
    _remove_abandoned(target.parent, _temporary_prefix(target))


def remove_abandoned_files(folder: Path) -> None:
    """Remove every temporary file that killed processes left in a folder.

    An `AtomicFile` removes only those of its own output. Use this for a folder whose file names
    change from one output to the next.
    """
    _remove_abandoned(folder, ".")


def _remove_abandoned(folder: Path, prefix: str) -> None:
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(prefix) and _TEMPORARY_MARK in entry.name:
                _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        access = os.O_RDONLY if path.is_dir() else os.O_RDWR
        descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # Raises while the process that writes it is alive.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_file_or_folder(path)
        finally:
            os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, if its file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(
    path: Path, *, force: bool, inputs: Sequence[Path] = (), creates_parents: bool = False
) -> None:
    """Reject an output that must not be written, before any work is done.

    Args:
        path: Path of the output.
        force: Whether an existing file may be replaced.
        inputs: Files that the command reads; the output must not be one of them under any name.
        creates_parents: Whether missing folders of the path are created before it is written.
    Raises:
        OutputError: The output is an input, also through a link; exists without `force`; is not
            a regular file; has the name of a format that wiseft never writes; or its folder is
            missing or not writable.
    """
    for source in inputs:
        if path.exists() and source.exists() and os.path.samefile(path, source):
            raise OutputError(
                f"{path}: is also an input ({source})",
                hint="name another output with -o; an input is never overwritten",
            )
    if path.suffix.lower() in _PICKLED:
        raise OutputError(
            f"{path}: weights are written as safetensors, and {path.suffix} names a pickle",
            hint=f"name the output {path.with_suffix('.safetensors')}",
        )
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file name for the output")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file, so it cannot be replaced as a whole")
    if os.path.lexists(path) and not force:
        raise OutputError(
            f"{path}: exists already", hint="name another output with -o, or overwrite with --force"
        )
    check_parent(path, resolve_output(path).parent, creates_parents=creates_parents)


def check_parent(path: Path, parent: Path, *, creates_parents: bool = False) -> None:
    """Reject an output whose parent folder is missing, unless it is created, or not writable.

    Raises:
        OutputError: It is.
    """
    nearest = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if not nearest.is_dir():
        raise OutputError(f"{path}: {nearest} is a file, expected a folder")
    if nearest != parent and not creates_parents:
        raise OutputError(f"{path}: its folder {parent} does not exist", hint=f"mkdir -p {parent}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in the folder {nearest}")


@contextlib.contextmanager
def created_parents(path: Path) -> Iterator[None]:
    """Create the missing folders of an output; remove them again if the block fails.

    Raises:
        OutputError: A folder cannot be created.
    """
    parent = resolve_output(path).parent
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that is in use stays, and its parents too
            for folder in missing:
                folder.rmdir()
        raise


def cannot_write(path: Path, error: OSError, *, hint: str | None = None) -> OutputError:
    """Return the error of a failed write; the hint applies to a lack of space."""
    lacks_space = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return OutputError(
        f"{path}: cannot be written: {error.strerror}; nothing was kept",
        hint=hint if lacks_space else None,
    )


class AtomicFile:
    """A file that is being written; `commit` gives it its final name.

    Use it as a context manager: leaving it without `commit` removes the temporary file. Creating
    it removes temporary files that killed processes left beside the same output.

    Args:
        path: Path of the output.
        force: Whether an existing file may be replaced.
        inputs: Files that the output must not overwrite.

    Raises:
        OutputError: See `check_output`; also a full disk or any other failure to write.
    """

    def __init__(self, path: Path, *, force: bool = False, inputs: Sequence[Path] = ()) -> None:
        check_output(path, force=force, inputs=inputs)
        self.path = path
        self._force = force
        self._target = resolve_output(path)
        remove_abandoned_versions(path)
        self._committed = False
        with self._converting_errors():
            self._open_temporary()
            # Another process may have removed the file as abandoned before it was locked.
            while os.fstat(self._descriptor).st_nlink == 0:
                os.close(self._descriptor)
                UNFINISHED.discard(self._temporary)
                self._open_temporary()

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed:
            remove_file_or_folder(self._temporary)
        UNFINISHED.discard(self._temporary)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset; threads may write disjoint ranges at the same time."""
        view = memoryview(data).cast("B")
        with self._converting_errors():
            while view.nbytes:
                count = os.pwrite(self._descriptor, view, offset)
                view = view[count:]
                offset += count

    def reserve(self, size_bytes: int) -> None:
        """Set the file's final size, so that a lack of space is found before any work is done.

        Raises:
            OutputError: The disk has less space, or the process may not write files that large.
        """
        with self._converting_errors():
            os.ftruncate(self._descriptor, size_bytes)
        require_space([(self.path, size_bytes)])

    def flush(self) -> None:
        """Wait until the bytes written so far are on the disk."""
        with self._converting_errors():
            # fdatasync where available: the file's times need not be on the disk yet.
            getattr(os, "fdatasync", os.fsync)(self._descriptor)

    def commit(self) -> None:
        """Flush to disk and rename the temporary file to its final name.

        Raises:
            OutputError: The disk is full or failing, or the output was created meanwhile.
        """
        with self._converting_errors():
            os.fsync(self._descriptor)
            if self._force:
                os.replace(self._temporary, self._target)
            else:
                self._rename_without_replacing()
            self._committed = True
            flush_folder(self._target.parent)

    def _rename_without_replacing(self) -> None:
        try:
            # A hard link fails if the name exists; a rename would replace it.
            os.link(self._temporary, self._target)
        except FileExistsError:
            raise OutputError(
                f"{self.path}: was created by another process meanwhile",
                hint="name another output with -o, or overwrite with --force",
            ) from None
        except OSError:
            # File systems without hard links: check as late as possible.
            if os.path.lexists(self._target):
                raise OutputError(f"{self.path}: exists already") from None
            os.replace(self._temporary, self._target)
        else:
            # The output is whole. A second name that cannot be removed is left to the next run.
            with contextlib.suppress(OSError):
                self._temporary.unlink()

    def _open_temporary(self) -> None:
        self._temporary = temporary_sibling(self._target)
        UNFINISHED.add(self._temporary)
        # 0o666 less the umask, as for any new file; mkstemp would use 0o600.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, flags, 0o666)
        try_lock(self._descriptor)

    @contextlib.contextmanager
    def _converting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            folder = self._target.parent
            hint = f"free space in {folder}, or name another place with -o"
            raise cannot_write(self.path, error, hint=hint) from None


def write_bytes_atomically(
    path: Path, data: bytes, *, force: bool = False, inputs: Sequence[Path] = ()
) -> None:
    """Write a small file completely or not at all.

    Raises:
        OutputError: See `AtomicFile`.
    """
    with AtomicFile(path, force=force, inputs=inputs) as file:
        file.write_at(0, data)
        file.commit()

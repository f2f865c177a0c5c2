"""Write whole pages of a large file directly to the disk, without the page cache.

Copying an output into the page cache costs more processor time than interpolating it, and fills
the cache with data that the same command does not read again. File systems that cannot write
directly (tmpfs of older kernels, systems without O_DIRECT) use the page cache; so do the bytes
before the first and after the last whole page of a piece. The bytes of the file are the same
either way.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

PAGE_BYTES = 4096
"""Alignment of positions, lengths and memory; a multiple of every common block size."""


class DirectPages:
    """A second descriptor of an open file, through which whole pages are written directly.

    Args:
        path: The file; it exists and keeps its name while this is open.

    Attributes:
        is_refused: Whether the file system has refused direct writes.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        flags = os.O_WRONLY | os.O_CLOEXEC
        if hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):
                self._descriptor = os.open(path, flags | os.O_DIRECT)
        self.is_refused = self._descriptor < 0

    def close(self) -> None:
        """Close the descriptor; the file's other descriptors stay open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self, position: int, view: memoryview) -> tuple[int, int]:
        """Write the whole pages of a piece and return the range that was written.

        Args:
            position: Offset of the piece in the file, in bytes.
            view: The piece. Direct writes need its address and `position` to have the same
                remainder modulo the page size.
        Returns:
            Start and end, within the piece, of the bytes written; equal if there are none.
        Raises:
            OSError: The disk is full or failing.
        """
        begin = -position % PAGE_BYTES
        end = view.nbytes - (position + view.nbytes) % PAGE_BYTES
        if self.is_refused or begin >= end:
            return 0, 0
        done = begin
        try:
            while done < end:
                done += os.pwrite(self._descriptor, view[done:end], position + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Refused for this memory or by this file system; earlier pages stay written.
            self.is_refused = done == begin
        return begin, done

"""Write whole pages of a large file straight to the disk, past the system's page cache.

Copying an output into the page cache, and finding pages for it, costs more processor time than
interpolating it, and the cache is filled with what the same command never reads again. Where the
file system cannot do without (tmpfs of older kernels, systems without O_DIRECT), everything goes
through the cache as usual, and so do always the bytes before the first and behind the last whole
page of a piece. Which way was taken never shows in the bytes. It decides neither what is written
nor when.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

PAGE_BYTES = 4096
"""What positions, lengths and memory are aligned to: enough for every common block size."""


class UncachedPages:
    """A second way into an open file, for its whole pages.

    Args:
        path: The file; it exists and stays in its place while this is open.

    Attributes:
        is_refused: Whether the file system has shown that it cannot do so.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        flags = os.O_WRONLY | os.O_CLOEXEC
        if hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):
                self._descriptor = os.open(path, flags | os.O_DIRECT)
        self.is_refused = self._descriptor < 0

    def close(self) -> None:
        """Close it; the file itself stays open where it was opened."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self, position: int, view: memoryview) -> tuple[int, int]:
        """Write the whole pages of a piece, and say which they were.

        Args:
            position: Where in the file the piece begins, in bytes.
            view: The piece. Its whole pages can go past the cache only where memory is aligned
                as the file is: address and position have the same remainder by a page.
        Returns:
            Begin and end, within the piece, of what has been written; equal where nothing was.
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
            # Not this memory, or not this file system after all. What went before stays written.
            self.is_refused = done == begin
        return begin, done

"""Write finished pieces from threads of their own, while others compute the next ones.

A piece lies in a buffer from a pool; the buffer goes back to its pool once it is written, so
that whoever computes waits only when the disk is behind by a whole pool. It knows no tensors.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.writer import CheckpointWriter

Buffer = npt.NDArray[np.uint8]


class BufferPool:
    """Buffers of one thread that computes, each beginning at a page.

    Args:
        count: How many there are.
        nbytes: Size of each.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._count = count
        self._free: SimpleQueue[Buffer] = SimpleQueue()
        for _ in range(count):
            # Memory of its own from the system begins at a page.
            self._free.put(np.frombuffer(mmap.mmap(-1, nbytes), np.uint8))

    def take(self) -> Buffer:
        """Return a free buffer; wait until there is one."""
        return self._free.get()

    def give_back(self, buffer: Buffer) -> None:
        """Return a buffer, from any thread."""
        self._free.put(buffer)

    def wait_for_all(self) -> None:
        """Wait until every buffer has been given back: everything taken is then written."""
        for buffer in [self._free.get() for _ in range(self._count)]:
            self._free.put(buffer)


@dataclass(frozen=True, slots=True)
class _Piece:
    writer: CheckpointWriter
    position: int
    data: npt.NDArray[Any]
    buffer: Buffer
    pool: BufferPool


class WriteBehind:
    """A few threads that write what they are handed.

    Args:
        threads: How many.
        stop: Once set, pieces are dropped instead of written.
        on_error: Called, from one of the threads, with what went wrong.
    """

    def __init__(
        self, threads: int, *, stop: threading.Event, on_error: Callable[[BaseException], None]
    ) -> None:
        self._stop = stop
        self._on_error = on_error
        self._pieces: SimpleQueue[_Piece | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Wait until everything handed over is written or dropped, and the threads have ended."""
        for _ in self._threads:
            self._pieces.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def write(
        self,
        writer: CheckpointWriter,
        position: int,
        data: npt.NDArray[Any],
        *,
        buffer: Buffer,
        pool: BufferPool,
    ) -> None:
        """Write `data`, a part of `buffer`, some time soon, and give the buffer back."""
        self._pieces.put(_Piece(writer, position, data, buffer, pool))

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                if not self._stop.is_set():
                    piece.writer.write_at(piece.position, piece.data.data)
            except BaseException as error:
                self._on_error(error)
            finally:
                piece.pool.give_back(piece.buffer)

"""Read one tensor in order, through one buffer, and hash it on the way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from wiseft_cli.checkpoint.format import TensorInfo, numpy_dtype
from wiseft_cli.checkpoint.reader import CheckpointReader

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Array = npt.NDArray[Any]


@dataclass(slots=True)
class TensorInput:
    """One tensor being read.

    Attributes:
        source: The checkpoint it is in.
        info: Which tensor.
        buffer: Where its bytes go, shape (n,), uint8; at least as large as any one read.
        position: Bytes read so far.
        sha256: The hash of those.
    """

    source: CheckpointReader
    info: TensorInfo
    buffer: Array
    position: int = 0
    sha256: Hash = field(default_factory=hashlib.sha256)

    @property
    def rest(self) -> int:
        """Bytes not read yet."""
        return self.info.nbytes - self.position

    @property
    def itemsize(self) -> int:
        """Bytes of one number; for types that numpy has."""
        return numpy_dtype(self.info.dtype).itemsize

    def next_bytes(self, limit: int) -> Array:
        """Return up to `limit` further bytes, valid until the next call.

        Raises:
            CheckpointError: The file ended, or could not be read.
        """
        data = self.buffer[: min(limit, self.rest)]
        self.source.read_into(self.info.name, data.data, self.position)
        self.sha256.update(data.data)
        self.position += data.nbytes
        return data

    def next_numbers(self, limit: int) -> Array:
        """Return up to `limit` further numbers, valid until the next call."""
        dtype = numpy_dtype(self.info.dtype)
        return self.next_bytes(limit * dtype.itemsize).view(dtype)

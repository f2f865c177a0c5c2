"""Read a checkpoint lazily: its header at once, each tensor's bytes when asked for.

It does not interpret tensors; `model/classifier.py` and `merging/` do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from wiseft_cli.checkpoint.card import METADATA_KEY, Card, parse_card
from wiseft_cli.checkpoint.dtypes import numpy_dtype
from wiseft_cli.checkpoint.header import (
    Header,
    TensorInfo,
    open_regular_file,
    read_header_from,
)
from wiseft_cli.errors import CheckpointError, NotACheckpointError


class CheckpointReader:
    """An open checkpoint; use it as a context manager.

    Attributes:
        path: The file as it was named.
        header: Its validated header.

    Raises:
        NotACheckpointError: See `read_header`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_regular_file(path)
        try:
            self.header: Header = read_header_from(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, in the order of the header."""
        return self.header.tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's `__metadata__`, strings to strings."""
        return self.header.metadata

    @cached_property
    def card(self) -> Card | None:
        """The card, or None where the file has none.

        Raises:
            CheckpointError: The card is damaged or newer than this version.
        """
        text = self.metadata.get(METADATA_KEY)
        return None if text is None else parse_card(text, self.path)

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill a buffer with a tensor's bytes from `offset` on; safe from several threads.

        Args:
            buffer: Writeable bytes; its length says how many are read.
            offset: First byte within the tensor.
        Raises:
            CheckpointError: The file ended or could not be read.
        """
        info = self.tensors[name]
        if offset + buffer.nbytes > info.nbytes:
            raise ValueError(f"{name} has {info.nbytes} bytes, asked for {offset + buffer.nbytes}")
        position = info.start + offset
        while buffer.nbytes:
            try:
                count = os.preadv(self._descriptor, [buffer], position)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None
            if count == 0:
                raise CheckpointError(f"{self.path}: was cut short while it was read")
            buffer = buffer[count:]
            position += count

    def read_array(self, name: str) -> np.ndarray:
        """Return a tensor as an array of its own memory, C order, in its stored type."""
        info = self.tensors[name]
        array = np.empty(info.shape, dtype=numpy_dtype(info.dtype))
        if info.nbytes:
            self.read_into(name, array.reshape(-1).view(np.uint8).data)
        return array


def open_checkpoint(path: Path) -> CheckpointReader:
    """Open a checkpoint for reading.

    Raises:
        NotACheckpointError: See `read_header`.
    """
    return CheckpointReader(path)


def read_card(path: Path, *, roles: Sequence[str] | None = None) -> Card:
    """Return the card of a wiseft checkpoint, reading its header only.

    Args:
        roles: The roles that fit; any where None.
    Raises:
        NotACheckpointError: Not safetensors, or without a card.
        CheckpointError: The card is damaged, or the role does not fit.
    """
    with open_checkpoint(path) as reader:
        card = reader.card
    if card is None:
        raise NotACheckpointError(
            f"{path}: has no wiseft card, expected a checkpoint written by wiseft",
            hint="make one with `wiseft zeroshot-head`",
        )
    if roles is not None and card.role not in roles:
        raise CheckpointError(f"{path}: is a {card.role} checkpoint, expected {' or '.join(roles)}")
    return card

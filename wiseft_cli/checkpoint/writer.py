"""Write a checkpoint tensor by tensor, with its card and its content digest.

`safetensors.save_file` orders metadata by a hash map, so that the same content gives
different bytes from run to run; this writer gives the same bytes always. The layout is
the format's own: tensors by falling alignment, then by name, back to back.
It does not decide what stands in the card.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from wiseft_cli.checkpoint.atomic import AtomicFile
from wiseft_cli.checkpoint.card import METADATA_KEY, Card, render_card
from wiseft_cli.checkpoint.digest import canonical_json, content_digest
from wiseft_cli.checkpoint.dtypes import SIZES_BITS, safetensors_dtype
from wiseft_cli.checkpoint.header import TensorInfo
from wiseft_cli.checkpoint.page_cache import PAGE_BYTES

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_HEADER_ALIGNMENT_BYTES = 8
_LARGE_BYTES = 64 << 20
"""Data of a file from which its tensors begin at a page, so that they can be written by pages."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        bits = SIZES_BITS[self.dtype]
        for extent in self.shape:
            bits *= extent
        return bits // 8


def plan_layout(specs: Sequence[TensorSpec]) -> list[TensorInfo]:
    """Return the tensors in file order, with offsets that count from the data's beginning.

    Order: falling element size, then UTF-8 name, so that each tensor is aligned to its type.
    """
    ordered = sorted(specs, key=lambda spec: (-SIZES_BITS[spec.dtype], spec.name.encode()))
    layout = []
    position = 0
    for spec in ordered:
        layout.append(
            TensorInfo(spec.name, spec.dtype, spec.shape, position, position + spec.nbytes)
        )
        position += spec.nbytes
    return layout


def render_header(
    layout: Sequence[TensorInfo],
    metadata: Mapping[str, str],
    *,
    alignment: int = _HEADER_ALIGNMENT_BYTES,
) -> bytes:
    """Return the length and the JSON header, padded with spaces.

    Args:
        layout: The tensors in file order.
        metadata: The entries of `__metadata__`.
        alignment: The data begin at a multiple of so many bytes.
    """
    members = [f'"__metadata__":{canonical_json(dict(metadata))}']
    for info in layout:
        entry = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
        members.append(f"{canonical_json(info.name)}:{canonical_json(entry)}")
    text = ("{" + ",".join(members) + "}").encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


class CheckpointWriter:
    """A checkpoint being written; use it as a context manager and end with `commit`.

    The header is written first with slots of fixed width where digests will stand, the
    tensors follow in any order of tensors (each tensor's bytes from its beginning to its end),
    and `commit` writes the header again with the digests in place.

    Args:
        path: The final name.
        specs: Every tensor of the file.
        card: The card; its digest may be unknown.
        force: Whether an existing file may be replaced.
        inputs: Files that the output must not be.
        metadata: Further `__metadata__` entries to keep.
        bypass_page_cache: Whether a large file's whole pages may go straight to the disk; the
            bytes are the same.

    Raises:
        OutputError: See `AtomicFile`.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        card: Card,
        *,
        force: bool = False,
        inputs: Sequence[Path] = (),
        metadata: Mapping[str, str] | None = None,
        bypass_page_cache: bool = False,
    ) -> None:
        self._layout = plan_layout(specs)
        self._metadata = dict(metadata or {})
        self._card = card
        data_bytes = sum(info.nbytes for info in self._layout)
        is_large = data_bytes >= _LARGE_BYTES
        self._alignment = PAGE_BYTES if is_large else _HEADER_ALIGNMENT_BYTES
        header = self._render(card)
        self._header_bytes = len(header)
        self._places = {info.name: info for info in self._layout}
        # Of a tensor that is being written: its hash so far, and how many bytes that covers.
        self._unfinished: dict[str, tuple[Hash | None, int]] = {}
        self._sha256 = {
            info.name: hashlib.sha256().hexdigest() for info in self._layout if not info.nbytes
        }
        self._file = AtomicFile(path, force=force, inputs=inputs)
        try:
            self._file.reserve(len(header) + data_bytes)
            if is_large and bypass_page_cache:
                self._file.bypass_page_cache()
        except BaseException as error:
            self._file.__exit__(type(error), error, error.__traceback__)
            raise

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Write the next bytes of a tensor, and hash them.

        Tensors may take turns, each in its own order; different tensors may be written from
        different threads.
        """
        self.write_at(self.admit(name, data), data)

    def position(self, name: str) -> int:
        """Return where in the file the tensor's next bytes go."""
        _, position = self._unfinished.get(name, (None, 0))
        return self._header_bytes + self._places[name].start + position

    def admit(self, name: str, data: bytes | memoryview) -> int:
        """Hash the next bytes of a tensor, and return where in the file `write_at` must put them.

        With the two apart, a thread that computes need not wait for the disk. Whoever admits
        bytes sees to it that they are written before `commit`.
        """
        info = self._places[name]
        view = memoryview(data).cast("B")
        if not view.nbytes:
            return self.position(name)
        digest, position = self._unfinished.pop(name, (None, 0))
        digest = digest or hashlib.sha256()
        end = position + view.nbytes
        if end > info.nbytes or name in self._sha256:
            raise ValueError(f"{name}: more than its {info.nbytes} bytes")
        digest.update(view)
        if end < info.nbytes:
            self._unfinished[name] = digest, end
        else:
            self._sha256[name] = digest.hexdigest()
        return self._header_bytes + info.start + position

    def write_at(self, position: int, data: bytes | memoryview) -> None:
        """Write bytes that were admitted; from any thread and in any order.

        Raises:
            OutputError: The disk is full or failing.
        """
        self._file.write_at(position, data)

    def flush(self) -> None:
        """Wait until what was written so far is on the disk; other threads may go on writing.

        Called now and then, it spreads over the whole time what `commit` must wait for.

        Raises:
            OutputError: The disk is full or failing.
        """
        self._file.flush()

    def commit(self, card: Card | None = None) -> str:
        """Fill in the digests, flush, and give the file its name.

        Args:
            card: The card with digests that were unknown before; it must be as wide.
        Returns:
            The content digest of the file.
        Raises:
            OutputError: See `AtomicFile.commit`.
        """
        short = [name for name in self._places if name not in self._sha256]
        if short:
            raise ValueError(f"not written to the end: {', '.join(short[:10])}")
        digest = content_digest(
            (info.name, info.dtype, info.shape, self._sha256[info.name]) for info in self._layout
        )
        header = self._render(replace(card or self._card, digest=digest))
        if len(header) != self._header_bytes:
            raise ValueError("the card changed its width while the tensors were written")
        self._file.write_at(0, header)
        self._file.commit()
        return digest

    def _render(self, card: Card) -> bytes:
        metadata = {**self._metadata, "format": "pt", METADATA_KEY: render_card(card)}
        return render_header(self._layout, metadata, alignment=self._alignment)


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    card: Card,
    *,
    force: bool = False,
    inputs: Sequence[Path] = (),
) -> str:
    """Write a checkpoint that is in memory already, and return its content digest.

    Args:
        tensors: Arrays by name, of any memory order; they are stored in C order.
        card: The card; its digest is filled in.
        force: Whether an existing file may be replaced.
        inputs: Files that the output must not be.
    Raises:
        OutputError: See `AtomicFile`.
    """
    specs = [
        TensorSpec(name, safetensors_dtype(array.dtype), array.shape)
        for name, array in tensors.items()
    ]
    with CheckpointWriter(path, specs, card, force=force, inputs=inputs) as writer:
        for name, array in tensors.items():
            stored = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            if stored.nbytes:
                writer.append(name, stored.reshape(-1).view(np.uint8).data)
        return writer.commit()

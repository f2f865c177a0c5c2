"""Write safetensors files whose bytes depend only on their content.

`CheckpointWriter` writes tensor by tensor and fills in the card's digests at the end.
`safetensors.save_file` orders metadata by a hash map, so its bytes differ from run to run;
this writer always produces the same bytes. The content of the card is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from wiseft_cli.checkpoint.atomic import AtomicFile
from wiseft_cli.checkpoint.card import METADATA_KEY, Card, render_card
from wiseft_cli.checkpoint.digest import Hash, content_digest, hash_bytes, new_hash
from wiseft_cli.checkpoint.format import (
    HEADER_ALIGNMENT_BYTES,
    TensorSpec,
    plan_layout,
    render_header,
    safetensors_dtype,
)

_LARGE_BYTES = 64 << 20
"""From this size on, the tensors of a checkpoint begin at a page of memory, 4096 bytes."""

_PAGE_BYTES = 4096


class CheckpointWriter:
    """A checkpoint that is being written; use it as a context manager and end with `commit`.

    The header is written first, with placeholders for digests; then the tensors in any order,
    the bytes of each from first to last; `commit` writes the header again with the digests.

    Args:
        path: Path of the output.
        specs: Every tensor of the file.
        card: The card; its digest may be unknown. None writes a file without a card.
        force: Whether an existing file may be replaced.
        inputs: Files that the output must not overwrite.
        metadata: Other entries of `__metadata__`.

    Raises:
        OutputError: See `AtomicFile`.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        card: Card | None,
        *,
        force: bool = False,
        inputs: Sequence[Path] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._layout = plan_layout(specs)
        self._metadata = dict(metadata or {})
        self._card = card
        data_bytes = sum(info.nbytes for info in self._layout)
        is_large = card is not None and data_bytes >= _LARGE_BYTES
        self._alignment = _PAGE_BYTES if is_large else HEADER_ALIGNMENT_BYTES
        self._data_start = len(self._render(card))
        self._places = {info.name: info for info in self._layout}
        # For each unfinished tensor: the hash and the number of the bytes so far.
        self._unfinished: dict[str, tuple[Hash | None, int]] = {}
        self._hashes = {info.name: hash_bytes(b"") for info in self._layout if not info.nbytes}
        with ExitStack() as stack:
            self._file = stack.enter_context(AtomicFile(path, force=force, inputs=inputs))
            self._file.reserve(self._data_start + data_bytes)
            self._stack = stack.pop_all()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Hash and write the next bytes of a tensor.

        Calls for different tensors may alternate and may come from different threads.

        Raises:
            OutputError: The disk is full or failing.
        """
        info = self._places[name]
        view = memoryview(data).cast("B")
        if not view.nbytes:
            return
        digest, done = self._unfinished.pop(name, (None, 0))
        digest = digest or new_hash()
        position, done = self._data_start + info.start + done, done + view.nbytes
        if done > info.nbytes or name in self._hashes:
            raise ValueError(f"{name}: more than its {info.nbytes} bytes")
        digest.update(view)
        self._file.write_at(position, view)
        if done < info.nbytes:
            self._unfinished[name] = digest, done
        else:
            self._hashes[name] = digest.hexdigest()

    def flush(self) -> None:
        """Wait until all bytes written so far are on the disk; other threads may keep writing.

        Occasional calls spread the waiting time that `commit` would otherwise need.

        Raises:
            OutputError: The disk is full or failing.
        """
        self._file.flush()

    def commit(self, card: Card | None = None) -> str:
        """Fill in the digests, flush, and rename the file to its final name.

        Args:
            card: The card with digests that were unknown before; it must be as wide.
        Returns:
            The content digest of the file.
        Raises:
            OutputError: See `AtomicFile.commit`.
        """
        unfinished = [name for name in self._places if name not in self._hashes]
        if unfinished:
            raise ValueError(f"incomplete tensors: {', '.join(unfinished[:10])}")
        digest = content_digest(self.rows())
        card = card or self._card
        header = self._render(card and replace(card, digest=digest))
        if len(header) != self._data_start:
            raise ValueError("the width of the card changed while the tensors were written")
        self._file.write_at(0, header)
        self._file.commit()
        return digest

    def rows(self) -> list[tuple[str, str, tuple[int, ...], str]]:
        """Return what the content digest covers of each tensor, once all bytes are written."""
        return [
            (info.name, info.dtype, info.shape, self._hashes[info.name]) for info in self._layout
        ]

    def _render(self, card: Card | None) -> bytes:
        own = {"format": "pt", METADATA_KEY: render_card(card)} if card else {}
        return render_header(self._layout, {**self._metadata, **own}, alignment=self._alignment)


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    card: Card | None,
    *,
    force: bool = False,
    inputs: Sequence[Path] = (),
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write arrays as a safetensors file and return its content digest.

    Args:
        path: Path of the output.
        tensors: Arrays by name, in any memory order; they are stored in C order, and at most one
            is copied at a time.
        card: The card; its digest is filled in. None writes a plain file for other programs.
        force: Whether an existing file may be replaced.
        inputs: Files that the output must not overwrite.
        metadata: Other entries of `__metadata__`.
    Raises:
        OutputError: See `AtomicFile`.
    """
    specs = [
        TensorSpec(name, safetensors_dtype(array.dtype), array.shape)
        for name, array in tensors.items()
    ]
    with CheckpointWriter(
        path, specs, card, force=force, inputs=inputs, metadata=metadata
    ) as writer:
        for name, array in tensors.items():
            stored = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            if stored.nbytes:  # an empty memoryview cannot be cast
                writer.append(name, stored.reshape(-1).view(np.uint8).data)
        return writer.commit()

"""Write a checkpoint as shards and an index, in the form that transformers loads.

The card is in the index, because it describes the whole checkpoint; the shards have none. The
content digest is that of the same tensors in one file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from wiseft_cli.checkpoint.atomic import write_bytes_atomically
from wiseft_cli.checkpoint.card import METADATA_KEY, Card, render_card
from wiseft_cli.checkpoint.digest import content_digest
from wiseft_cli.checkpoint.format import TensorSpec
from wiseft_cli.checkpoint.shards import FILE_SUFFIX, INDEX_SUFFIX
from wiseft_cli.checkpoint.writer import CheckpointWriter


class ShardedWriter:
    """Shards that are being written; used like a `CheckpointWriter`.

    Args:
        folder: Folder to write into; `AtomicFolder` gives it its name when it is complete.
        stem: Beginning of the names: `model` for `model-00001-of-00002.safetensors`.
        shards: The tensors of each shard, from `plan_shards`.
        card: The card; its digests may be unknown.
        metadata: Other entries of the `__metadata__` of every shard.

    Raises:
        OutputError: See `AtomicFile`.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        shards: Sequence[Sequence[TensorSpec]],
        card: Card,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._index = folder / f"{stem}{INDEX_SUFFIX}"
        self._card = card
        self._size_bytes = sum(spec.nbytes for shard in shards for spec in shard)
        self._shard_of: dict[str, str] = {}
        self._writer_of: dict[str, CheckpointWriter] = {}
        self._writers: list[CheckpointWriter] = []
        with ExitStack() as stack:
            for number, specs in enumerate(shards, 1):
                name = f"{stem}-{number:05}-of-{len(shards):05}{FILE_SUFFIX}"
                writer = CheckpointWriter(
                    folder / name, specs, None, metadata={**(metadata or {}), "format": "pt"}
                )
                self._writers.append(stack.enter_context(writer))
                self._shard_of |= {spec.name: name for spec in specs}
                self._writer_of |= {spec.name: writer for spec in specs}
            self._stack = stack.pop_all()

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Hash and write the next bytes of a tensor.

        Raises:
            OutputError: The disk is full or failing.
        """
        self._writer_of[name].append(name, data)

    def flush(self) -> None:
        """Wait until all bytes written so far are on the disk.

        Raises:
            OutputError: The disk is full or failing.
        """
        for writer in self._writers:
            writer.flush()

    def commit(self, card: Card | None = None) -> str:
        """Finish the shards, write the index with the card, and return the content digest.

        Args:
            card: The card with digests that were unknown before.
        Raises:
            OutputError: See `AtomicFile.commit`.
        """
        for writer in self._writers:
            writer.commit()
        digest = content_digest(row for writer in self._writers for row in writer.rows())
        text = render_card(replace(card or self._card, digest=digest))
        index = {
            "metadata": {"total_size": self._size_bytes, METADATA_KEY: text},
            "weight_map": self._shard_of,
        }
        document = json.dumps(index, indent=2, sort_keys=True) + "\n"
        write_bytes_atomically(self._index, document.encode())
        return digest

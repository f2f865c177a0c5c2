"""Which tensors of checkpoints are the same, told by their bytes, and whether a file is intact.

Each file is read and hashed once before it is evaluated: a result under the digest of a card
whose tensors were changed would be a result of something else. This module needs no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wiseft_cli.checkpoint.digest import content_digest
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint, require_card_digest

_CHUNK_BYTES = 1 << 20


def tensor_digests(path: Path, *, threads: int) -> Mapping[str, str]:
    """Return the SHA-256 of each tensor of a checkpoint, type and shape included.

    Args:
        threads: How many tensors to hash at a time; hashing leaves the interpreter's lock.
    Raises:
        CheckpointError: The file cannot be read, or its tensors are not those its card was
            written for.
    """
    with open_checkpoint(path) as source, ThreadPoolExecutor(threads) as pool:
        hashes = pool.map(lambda name: _sha256(source, name), source.tensors)
        rows = [
            (info.name, info.dtype, info.shape, sha256)
            for info, sha256 in zip(source.tensors.values(), hashes, strict=True)
        ]
        require_card_digest(source, content_digest(rows))
    return {name: f"{dtype} {shape} {sha256}" for name, dtype, shape, sha256 in rows}


def _sha256(source: CheckpointReader, name: str) -> str:
    sha256 = hashlib.sha256()
    n_bytes = source.tensors[name].nbytes
    buffer = np.empty(min(n_bytes, _CHUNK_BYTES), np.uint8)
    for offset in range(0, n_bytes, _CHUNK_BYTES):
        part = buffer[: min(_CHUNK_BYTES, n_bytes - offset)].data
        source.read_into(name, part, offset)
        sha256.update(part)
    return sha256.hexdigest()

"""Read all of a checkpoint's data: its content digest, and whether every number is finite.

It judges nothing and writes nothing; the caller compares the digest with the card's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wiseft_cli.checkpoint.digest import content_digest
from wiseft_cli.checkpoint.dtypes import FLOATING_DTYPES, numpy_dtype
from wiseft_cli.checkpoint.header import TensorInfo
from wiseft_cli.checkpoint.source import CheckpointSource

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ContentReport:
    """What reading the data found.

    Attributes:
        digest: The content digest.
        not_finite: By tensor, how many numbers are infinite or NaN; finite tensors are left out.
    """

    digest: str
    not_finite: dict[str, int]


def read_content(
    source: CheckpointSource, *, on_progress: Callable[[int], None] | None = None
) -> ContentReport:
    """Read every tensor once, hash it and look for numbers that are not finite.

    Args:
        on_progress: Called with the bytes done since the last call.
    Raises:
        CheckpointError: A file ended or could not be read.
    """
    buffer = np.empty(_CHUNK_BYTES, np.uint8)
    rows, not_finite = [], {}
    for info in source.tensors.values():
        sha256, count = hashlib.sha256(), 0
        for offset in range(0, info.nbytes, _CHUNK_BYTES):
            data = buffer[: min(_CHUNK_BYTES, info.nbytes - offset)]
            source.read_into(info.name, data.data, offset)
            sha256.update(data.data)
            count += _count_not_finite(info, data)
            if on_progress:
                on_progress(data.nbytes)
        rows.append((info.name, info.dtype, info.shape, sha256.hexdigest()))
        if count:
            not_finite[info.name] = count
    return ContentReport(content_digest(rows), not_finite)


def _count_not_finite(info: TensorInfo, data: np.ndarray) -> int:
    if info.dtype not in FLOATING_DTYPES:
        return 0
    with np.errstate(invalid="ignore"):  # looking at a signalling NaN raises the flag
        numbers = data.view(numpy_dtype(info.dtype))
        return len(numbers) - int(np.count_nonzero(np.isfinite(numbers)))

"""Write named arrays as a plain safetensors file, for other programs to read.

The same arrays and metadata give the same bytes. It holds no card; `writer.py` writes
checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wiseft_cli.checkpoint.atomic import AtomicFile
from wiseft_cli.checkpoint.digest import content_digest
from wiseft_cli.checkpoint.dtypes import safetensors_dtype
from wiseft_cli.checkpoint.writer import TensorSpec, plan_layout, render_header


def write_tensors_file(
    path: Path, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str]
) -> str:
    """Write a new safetensors file, and return its content digest.

    Args:
        tensors: Arrays by name, of any memory order; they are stored in C order, a copy of one
            at a time at most.
        metadata: The file's `__metadata__`.
    Raises:
        OutputError: See `AtomicFile`.
    """
    layout = plan_layout(
        [
            TensorSpec(name, safetensors_dtype(array.dtype), array.shape)
            for name, array in tensors.items()
        ]
    )
    header = render_header(layout, metadata)
    entries = []
    with AtomicFile(path) as file:
        file.reserve(len(header) + sum(info.nbytes for info in layout))
        file.write_at(0, header)
        for info in layout:
            array = tensors[info.name]
            stored = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            data = stored.reshape(-1).view(np.uint8).data
            if data.nbytes:
                file.write_at(len(header) + info.start, data)
            entries.append((info.name, info.dtype, info.shape, hashlib.sha256(data).hexdigest()))
        file.commit()
    return content_digest(entries)

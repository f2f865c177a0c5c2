"""Tensors of types without arithmetic here: packed 4- and 6-bit floats, complex numbers, scales.

They can be merged only where both sides hold the same bytes. It compares and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.errors import IncompatibleCheckpointsError, list_some

_CHUNK_BYTES = 1 << 19


def require_equal_bytes(
    theta_0: CheckpointReader, theta_1: CheckpointReader, names: Sequence[str]
) -> None:
    """Refuse tensors that cannot be interpolated and differ, all of them by name.

    Raises:
        IncompatibleCheckpointsError: A tensor of `names` differs.
    """
    different = [
        f"{name}: dtype {theta_0.tensors[name].dtype} cannot be interpolated, and the bytes differ"
        for name in names
        if not _has_equal_bytes(theta_0, theta_1, name)
    ]
    if different:
        raise IncompatibleCheckpointsError(
            "\n  ".join(
                [f"{theta_1.path} cannot be merged with {theta_0.path}", *list_some(different)]
            ),
            hint="convert these tensors to float16, bfloat16 or float32 in both files first",
        )


def _has_equal_bytes(theta_0: CheckpointReader, theta_1: CheckpointReader, name: str) -> bool:
    size = theta_0.tensors[name].nbytes
    x, y = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
    for offset in range(0, size, _CHUNK_BYTES):
        count = min(_CHUNK_BYTES, size - offset)
        theta_0.read_into(name, memoryview(x)[:count], offset)
        theta_1.read_into(name, memoryview(y)[:count], offset)
        if x[:count] != y[:count]:
            return False
    return True

"""Measure how far apart two checkpoints are, tensor by tensor, streamed in float64.

Only values are compared; `compatibility.py` compares names, shapes and dtypes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from wiseft_cli.checkpoint.format import FLOATING_DTYPES, INTEGER_DTYPES, numpy_dtype
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.merging.layers import block_position, find_block, group_label

_BLOCK = 1 << 16
_MEASURED_DTYPES = FLOATING_DTYPES | INTEGER_DTYPES


@dataclass(frozen=True)
class TensorDistance:
    """Distance between a tensor of theta_1 and the same tensor of theta_0.

    Attributes:
        relative_l2: ||theta_1 - theta_0|| / ||theta_0||, over the elements finite in both;
            infinite if theta_0 is zero and theta_1 is not.
        largest: The largest absolute difference, over the same elements.
        n_not_finite: Number of elements that are infinite or NaN in either.
        is_equal: Whether every byte is the same.
        square_0: ||theta_0||^2, over the same elements.
        square_difference: ||theta_1 - theta_0||^2, over the same elements.
    """

    name: str
    relative_l2: float
    largest: float
    n_not_finite: int
    is_equal: bool
    square_0: float
    square_difference: float


@dataclass(frozen=True)
class BlockDistance:
    """Distance between a block of theta_1 and the same block of theta_0, all its tensors together.

    Attributes:
        name: Beginning of the names of its tensors; outside the blocks, a module.
        relative_l2: As of `TensorDistance`, over the elements of all tensors.
        largest: The largest absolute difference.
        n_tensors: Number of its tensors that were measured.
    """

    name: str
    relative_l2: float
    largest: float
    n_tensors: int


def measure_distances(
    theta_0: CheckpointReader,
    theta_1: CheckpointReader,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[TensorDistance]:
    """Measure every common tensor of equal shape and numeric dtypes.

    Args:
        on_progress: Called with the number of bytes of both inputs read since the last call.
    Returns:
        The distances, the largest relative one first.
    Raises:
        CheckpointError: A file ended early or could not be read.
    """
    uncompared = {name for name, _ in uncompared_tensors(theta_0, theta_1)}
    names = [name for name in theta_0.tensors if name in theta_1.tensors and name not in uncompared]
    buffers = np.empty((2, 8 * _BLOCK), np.uint8)
    found = [_measure(name, theta_0, theta_1, buffers, on_progress) for name in names]
    return sorted(found, key=lambda distance: (-distance.relative_l2, distance.name))


def uncompared_tensors(
    theta_0: CheckpointReader, theta_1: CheckpointReader
) -> list[tuple[str, str]]:
    """Return the common tensors that are not measured, each with the reason."""
    found = []
    for name, one in theta_0.tensors.items():
        if (other := theta_1.tensors.get(name)) is None:
            continue
        if one.shape != other.shape:
            found.append((name, f"shapes {list(one.shape)} and {list(other.shape)}"))
        elif packed := sorted({one.dtype, other.dtype} - _MEASURED_DTYPES):
            found.append((name, f"dtype {' and '.join(packed)}"))
    return sorted(found)


def _measure(
    name: str,
    theta_0: CheckpointReader,
    theta_1: CheckpointReader,
    buffers: np.ndarray,
    on_progress: Callable[[int], None] | None,
) -> TensorDistance:
    readers = (theta_0, theta_1)
    dtypes = [numpy_dtype(reader.tensors[name].dtype) for reader in readers]
    wide = np.result_type(np.float64, *(dtype for dtype in dtypes if dtype.kind == "c"))
    size = theta_0.tensors[name].nbytes // dtypes[0].itemsize
    square_difference = square_0 = largest = 0.0
    n_not_finite, is_equal = 0, dtypes[0] == dtypes[1]
    for begin in range(0, size, _BLOCK):
        n = min(_BLOCK, size - begin)
        raw = []
        for reader, dtype, buffer in zip(readers, dtypes, buffers, strict=True):
            data = buffer[: n * dtype.itemsize]
            reader.read_into(name, data.data, begin * dtype.itemsize)
            raw.append(data)
        is_equal = is_equal and np.array_equal(raw[0], raw[1])
        with np.errstate(all="ignore"):  # non-finite elements are counted, without a warning
            x, y = (data.view(d).astype(wide) for data, d in zip(raw, dtypes, strict=True))
            is_finite = np.isfinite(x) & np.isfinite(y)
            n_not_finite += n - int(np.count_nonzero(is_finite))
            x, difference = x[is_finite], (y - x)[is_finite]
            square_0 += float(np.add.reduce(np.abs(x) ** 2))
            difference = np.abs(difference)
            square_difference += float(np.add.reduce(difference * difference))
            largest = max(largest, float(np.max(difference, initial=0.0)))
        if on_progress:
            on_progress(raw[0].nbytes + raw[1].nbytes)
    relative = _relative(square_0, square_difference)
    return TensorDistance(
        name, relative, largest, n_not_finite, is_equal, square_0, square_difference
    )


def _relative(square_0: float, square_difference: float) -> float:
    if square_0:
        return sqrt(square_difference / square_0)
    return inf if square_difference else 0.0


def sum_by_block(distances: Sequence[TensorDistance]) -> list[BlockDistance]:
    """Return the distances of whole blocks, from the first to the last, to choose layer alphas by.

    Returns:
        The modules before the blocks, the blocks in their order, and the modules after them; an
        empty list if no tensor is in a block.
    """
    groups: dict[str, list[TensorDistance]] = defaultdict(list)
    for one in sorted(distances, key=lambda one: (block_position(one.name), one.name)):
        groups[group_label(one.name)].append(one)
    if not any(find_block(one.name) for one in distances):
        return []
    return [
        BlockDistance(
            label,
            _relative(sum(t.square_0 for t in part), sum(t.square_difference for t in part)),
            max(one.largest for one in part),
            len(part),
        )
        for label, part in groups.items()
    ]

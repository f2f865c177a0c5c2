"""Find heads whose rows are not the same classes in the same order.

A card states the classes of a head. Without a card only the values tell: a row that was
fine-tuned from another one still points in nearly the same direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from wiseft_cli.checkpoint.format import FLOATING_DTYPES
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.errors import IncompatibleCheckpointsError, counted

_MAX_ELEMENTS = 1 << 26
"""Largest head that is compared; a larger one is only mentioned."""

_HEAD = re.compile(
    r"^(?!.*text)(?:.*\.)?(?:classification_head|classifier|heads?|fc|score|probe|linear_probe)\.weight$"
)
_MARGIN = 0.1
"""How much closer, in cosine, another row must be than the row itself."""


def head_warnings(theta_0: CheckpointReader, theta_1: CheckpointReader) -> Iterator[str]:
    """Yield a warning for each head that both files have and whose classes no card compares.

    Raises:
        IncompatibleCheckpointsError: The rows of one head are those of the other in another order.
    """
    if theta_0.card is not None and theta_1.card is not None:
        return
    for name in find_heads(theta_0, theta_1):
        _reject_permutation(theta_0, theta_1, name)
        rows = theta_0.tensors[name].shape[0]
        without = " and ".join(
            str(reader.path) for reader in (theta_0, theta_1) if reader.card is None
        )
        yield (
            f"{name}: nothing in {without} says that its {counted(rows, 'row')} are the same "
            "classes in the same order as in the other file"
        )


def find_heads(theta_0: CheckpointReader, theta_1: CheckpointReader) -> list[str]:
    """Return the names of the weights of heads that both files have with the same shape."""
    return [
        name
        for name, info in theta_0.tensors.items()
        if name in theta_1.tensors
        and _HEAD.match(name)
        and len(info.shape) == 2
        and theta_1.tensors[name].shape == info.shape
        and {info.dtype, theta_1.tensors[name].dtype} <= FLOATING_DTYPES - {"C64"}
        and not _is_projection(theta_0, name)
    ]


def _is_projection(reader: CheckpointReader, name: str) -> bool:
    """Return whether a head is CLIP's projection in timm, whose bias is zero."""
    bias = f"{name.removesuffix('weight')}bias"
    is_clip = bias in reader.tensors and "norm_pre.weight" in reader.tensors
    return is_clip and not np.any(reader.read_array(bias))


def _reject_permutation(theta_0: CheckpointReader, theta_1: CheckpointReader, name: str) -> None:
    rows, width = theta_0.tensors[name].shape
    if rows < 2 or max(rows, width) * rows > _MAX_ELEMENTS:
        return
    cosines = _unit_rows(theta_1, name) @ _unit_rows(theta_0, name).T
    nearest = cosines.argmax(axis=1)
    moved = np.flatnonzero(cosines[range(rows), nearest] > np.diagonal(cosines) + _MARGIN)
    is_permuted = len(moved) and set(nearest[moved]) == set(moved)
    if not is_permuted or cosines[moved, nearest[moved]].min() < 0.5:
        return
    raise IncompatibleCheckpointsError(
        f"{theta_1.path}: {name} has the rows of {theta_0.path} in another order",
        faults=[f"row {row} is nearest to row {nearest[row]}" for row in moved],
        hint="its classes are in another order; put its rows and biases into the same order first",
    )


def _unit_rows(reader: CheckpointReader, name: str) -> np.ndarray:
    values = reader.read_array(name).astype(np.float32)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nan_to_num(values / norms, posinf=0.0, neginf=0.0))

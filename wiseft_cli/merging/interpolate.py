"""The value of an interpolated weight, block by block, in memory that is allocated once.

For a = the double nearest to alpha, x of theta_0 and y of theta_1 the value is
v = fl(fl(fl(1 - a) * x) + fl(a * y)) in float64, rounded once, to nearest even, to the stored
type; where x and y have the same bits the bits are copied, and at alpha 0 and 1 a floating
tensor is copied byte for byte (Wortsman et al., arXiv:2109.01903, section 3, for the formula).
This module knows no files and no names of tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.merging.rounding import FORMATS, RoundingScratch, round_into

Array = npt.NDArray[Any]

FLOATING = frozenset({"float64", "float32", *FORMATS})
"""numpy's names of the types that can be interpolated."""

BLOCK = 1 << 16
"""Numbers handled at a time: few enough for the processor's cache, many enough for numpy."""


class BlockInterpolation:
    """Interpolates one block of two tensors at any number of alphas.

    `load` widens a block of both tensors to float64 once; `store` then writes it at one alpha.
    An instance belongs to one thread.

    Attributes:
        block: The longest block it takes.
        loaded: Length of the block that is loaded.
    """

    def __init__(self, block: int = BLOCK) -> None:
        self.block = block
        self.loaded = 0
        self._wide = np.empty((4, block))
        self._rounding = RoundingScratch(block)

    def load(self, theta_0: Array, theta_1: Array) -> None:
        """Take a block of each tensor, shape (n,), n at most `block`, of types in `FLOATING`."""
        self.loaded = n = len(theta_0)
        self._theta_0, self._theta_1 = theta_0, theta_1
        self._is_finite = False
        self._x, self._y, self._value, self._term = (row[:n] for row in self._wide)
        with np.errstate(invalid="ignore"):  # a signalling NaN is quieted; its bits are kept
            np.copyto(self._x, theta_0)
            np.copyto(self._y, theta_1)

    def store(self, alpha: float, out: Array) -> int:
        """Write the block interpolated at `alpha` into `out`, shape (n,).

        Returns:
            How many numbers of `out` are not finite although both inputs' are.
        """
        same_type = self._theta_0.dtype == self._theta_1.dtype == out.dtype
        if same_type and alpha in (0.0, 1.0):
            _raw(out)[:] = _raw(self._theta_1 if alpha else self._theta_0)
            return 0
        value = self._combine(alpha)
        # Inside (0, 1), v of equal finite x and y is within a few units of float64's last place
        # of x and has its sign, so that rounding to any narrower type restores x by itself.
        is_safe = same_type and 0.0 < alpha < 1.0 and out.dtype != np.float64
        if is_safe:
            # A finite value needs a finite x and y, and from those no alpha in (0, 1) leads to
            # another: seen once, it need not be looked for again.
            is_finite = self._is_finite
            self._is_finite = round_into(value, out, self._rounding, is_known_finite=is_finite)
            if self._is_finite:
                return 0
        return self._store_carefully(value, out, same_type=same_type)

    def _combine(self, alpha: float) -> Array:
        """Return v of the module's definition, or x or y themselves at the end points."""
        if alpha in (0.0, 1.0):
            return self._y if alpha else self._x
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            np.multiply(self._x, 1.0 - alpha, out=self._value)
            np.multiply(self._y, alpha, out=self._term)
            return np.add(self._value, self._term, out=self._value)

    def _store_carefully(self, value: Array, out: Array, *, same_type: bool) -> int:
        """Round with equal bits kept, and count the numbers that became infinite or NaN."""
        equal = self._x.view(np.int64) == self._y.view(np.int64)
        if value is self._value:
            np.copyto(value, self._x, where=equal)
        is_finite = round_into(value, out, self._rounding)
        if same_type:
            raw_0, raw_1 = _raw(self._theta_0), _raw(self._theta_1)
            np.copyto(_raw(out), raw_1, where=raw_0 == raw_1)
        if is_finite:
            return 0
        were_finite = np.isfinite(self._x) & np.isfinite(self._y)
        with np.errstate(invalid="ignore"):  # looking at a signalling NaN raises the flag
            return int(np.count_nonzero(were_finite & ~np.isfinite(out)))


def interpolate_arrays(theta_0: Array, theta_1: Array, alpha: float) -> Array:
    """Interpolate two arrays of one shape and type.

    Args:
        theta_0: Zero-shot weights, any shape.
        theta_1: Fine-tuned weights, same shape and type.
        alpha: Weight of `theta_1`.
    Returns:
        A new array of that shape and type. Types that are not floating (integers, booleans)
        are a copy of `theta_1` at every alpha.
    Raises:
        ValueError: The shapes or types differ.
    """
    if theta_0.shape != theta_1.shape or theta_0.dtype != theta_1.dtype:
        raise ValueError(
            f"cannot interpolate {theta_0.dtype} {theta_0.shape} and "
            f"{theta_1.dtype} {theta_1.shape}"
        )
    out = np.array(theta_1, order="C")
    if out.dtype.name not in FLOATING:
        return out
    flat_0, flat_1, flat_out = (np.ravel(array) for array in (theta_0, theta_1, out))
    blocks = BlockInterpolation(min(BLOCK, max(1, out.size)))
    for start in range(0, out.size, blocks.block):
        part = slice(start, start + blocks.block)
        blocks.load(flat_0[part], flat_1[part])
        blocks.store(alpha, flat_out[part])
    return out


def _raw(numbers: Array) -> Array:
    """View numbers as unsigned integers of their size, so that no copy quiets a NaN."""
    return numbers.view(f"u{numbers.dtype.itemsize}")

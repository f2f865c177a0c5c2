"""The value of an interpolated weight, block by block, in memory that is allocated once.

For a = the double nearest to alpha, x of theta_0 and y of theta_1 the value is
v = fl(fl(fl(1 - a) * x) + fl(a * y)) in float64, rounded once, to nearest even, to the stored
type; where x and y have the same bits the bits are copied, and at alpha 0 and 1 a floating
tensor is copied byte for byte (Wortsman et al., arXiv:2109.01903, section 3, for the formula).
This module knows no files and no names of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.merging.rounding import FORMATS, RoundingScratch, round_into

Array = npt.NDArray[Any]

FLOATING = frozenset({"float64", "float32", *FORMATS})
"""numpy's names of the types that can be interpolated."""

BLOCK = 1 << 16
"""Numbers handled at a time. Between two calls to numpy a thread needs the interpreter's lock:
shorter blocks spend more time waiting for each other there than they gain from a nearer cache."""


class BlockInterpolation:
    """Interpolates runs of two tensors at any number of alphas, block by block.

    A block is widened to float64 and written at each alpha while it lies in the cache. What is
    done between two calls to numpy holds the interpreter's lock, and the threads of a merge wait
    for each other there; so whatever is the same for all blocks is settled once for the run.
    An instance belongs to one thread.

    Attributes:
        block: Numbers in a block.
    """

    def __init__(self, block: int = BLOCK) -> None:
        self.block = block
        self._wide = np.empty((4, block))  # the last two stay untouched where one alpha is wanted
        self._rounding = RoundingScratch(block)

    def interpolate(
        self, theta_0: Array, theta_1: Array, outs: Sequence[tuple[float, Array]]
    ) -> list[int]:
        """Write the run interpolated at each alpha.

        Args:
            theta_0: Zero-shot weights, shape (n,), of a type in `FLOATING`.
            theta_1: Fine-tuned weights, shape (n,), of a type in `FLOATING`.
            outs: Each alpha with the array to write, shape (n,), of a type in `FLOATING`.
        Returns:
            For each alpha, how many numbers written are not finite although both inputs' are.
        """
        counts = [0] * len(outs)
        plain: list[tuple[int, float, Array]] = []
        careful: list[tuple[int, float, Array]] = []
        for index, (alpha, out) in enumerate(outs):
            same_type = theta_0.dtype == theta_1.dtype == out.dtype
            if same_type and alpha in (0.0, 1.0):
                _raw(out)[:] = _raw(theta_1 if alpha else theta_0)
            # Inside (0, 1), v of equal finite x and y is within a few units of float64's last
            # place of x and has its sign: rounding to any narrower type restores x by itself.
            elif same_type and 0.0 < alpha < 1.0 and out.dtype != np.float64:
                plain.append((index, alpha, out))
            else:
                careful.append((index, alpha, out))
        # Overflow to infinity is the right rounding, and NaN is dealt with.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            self._plainly(theta_0, theta_1, plain, counts)
            for index, alpha, out in careful:
                for part in self._parts(len(theta_0)):
                    pair = theta_0[part], theta_1[part]
                    counts[index] += _store_carefully(*pair, alpha, out[part], self._rounding)
        return counts

    def _parts(self, n: int) -> Iterator[slice]:
        return (slice(begin, min(begin + self.block, n)) for begin in range(0, n, self.block))

    def _plainly(
        self,
        theta_0: Array,
        theta_1: Array,
        outs: Sequence[tuple[int, float, Array]],
        counts: list[int],
    ) -> None:
        """Write the alphas inside (0, 1) of a type narrower than float64."""
        if not outs:
            return
        n, is_single = len(theta_0), len(outs) == 1
        for begin in range(0, n, self.block):
            end = min(begin + self.block, n)
            x_part, y_part = theta_0[begin:end], theta_1[begin:end]
            x, y = self._wide[:2, : end - begin]
            # One alpha needs its operands no more once they are multiplied; several share them.
            value, term = (x, y) if is_single else self._wide[2:, : end - begin]
            np.copyto(x, x_part)
            np.copyto(y, y_part)
            # A finite value needs a finite x and y, and from those no alpha in (0, 1) leads to
            # another: seen once, it need not be looked for again.
            is_finite = False
            for index, alpha, out in outs:
                np.multiply(x, 1.0 - alpha, value)
                np.multiply(y, alpha, term)
                np.add(value, term, value)
                out_part = out[begin:end]
                is_finite = round_into(value, out_part, self._rounding, is_known_finite=is_finite)
                if not is_finite:
                    counts[index] += _store_carefully(
                        x_part, y_part, alpha, out_part, self._rounding
                    )


def _store_carefully(
    theta_0: Array, theta_1: Array, alpha: float, out: Array, rounding: RoundingScratch
) -> int:
    """Write a block at any alpha and in any type, with equal bits kept.

    Returns:
        How many numbers of `out` are not finite although both inputs' are.
    """
    x, y = theta_0.astype(np.float64), theta_1.astype(np.float64)
    if alpha in (0.0, 1.0):
        value = y if alpha else x
    else:
        value = x * (1.0 - alpha) + y * alpha
        np.copyto(value, x, where=x.view(np.int64) == y.view(np.int64))
    is_finite = round_into(value, out, rounding)
    if theta_0.dtype == theta_1.dtype == out.dtype:
        raw_0, raw_1 = _raw(theta_0), _raw(theta_1)
        np.copyto(_raw(out), raw_1, where=raw_0 == raw_1)
    if is_finite:
        return 0
    were_finite = np.isfinite(x) & np.isfinite(y)
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
    blocks.interpolate(flat_0, flat_1, [(alpha, flat_out)])
    return out


def _raw(numbers: Array) -> Array:
    """View numbers as unsigned integers of their size, so that no copy quiets a NaN."""
    return numbers.view(f"u{numbers.dtype.itemsize}")

"""Statistics of tensors that some methods need before they can merge: products and magnitudes.

A reduction reads the tensors block by block, in one or several passes. Its result does not
depend on threads or on how the tensors are cut: products are summed in blocks of fixed
boundaries without BLAS, whose order of summation differs between machines, and magnitudes are
selected exactly. Elements that are not finite are left out of products and count as the largest
magnitudes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

REDUCTION_BLOCK = 1 << 15
"""Elements that are summed at once. Every call of `observe` but a tensor's last one must bring a
multiple of it, so that the blocks begin at the same elements for every size of chunks."""

_SHIFTS = (47, 31, 15, 0)
"""Right shifts of the bits of a magnitude, whose sign is 0: 16, 32, 48 and 63 leading bits."""

_SAMPLE = 1 << 18
"""Magnitudes in a sample, per input, unless the capacity is smaller."""

_SAMPLED_BLOCKS = 8
"""Of so many blocks, a sample is drawn from one; the others are not read."""

_MARGIN = 0.01
"""Half the width of the interval from a sample, as a share of all elements."""

_COMPRESSED = 1024


class Reduction(Protocol):
    """A statistic of one or several tensors.

    Attributes:
        block_step: Of so many blocks of a tensor, the current pass observes only the first; the
            others can be left out.
    """

    block_step: int

    def observe(self, arrays: Sequence[Array]) -> None:
        """Add the next elements: those of theta_0, then those of every fine-tuned input."""

    def finish_pass(self) -> bool:
        """End a pass over all elements, and return whether it was the last one."""


class Products(Reduction):
    """Scalar products of vectors in one pass; all calls come from one thread.

    Args:
        of_changes: Take tau_i = theta_i - theta_0 as the vectors, instead of theta_0, theta_1, ...
    """

    def __init__(self, *, of_changes: bool) -> None:
        self.block_step = 1
        self._of_changes = of_changes
        self._product = np.empty(REDUCTION_BLOCK)
        self._sums: dict[tuple[int, int], list[float]] = {}

    def observe(self, arrays: Sequence[Array]) -> None:
        for begin in range(0, len(arrays[0]), REDUCTION_BLOCK):
            blocks = [array[begin : begin + REDUCTION_BLOCK] for array in arrays]
            # Non-finite elements are found by the sums and removed.
            with np.errstate(all="ignore"):
                self._observe_block([block.astype(np.float64) for block in blocks])

    def _observe_block(self, wide: Sequence[Array]) -> None:
        vectors = [array - wide[0] for array in wide[1:]] if self._of_changes else wide
        if not math.isfinite(sum(float(np.add.reduce(vector)) for vector in vectors)):
            is_finite = np.logical_and.reduce([np.isfinite(array) for array in wide])
            vectors = [vector[is_finite] for vector in vectors]
        for i, first in enumerate(vectors):
            for j in range(i, len(vectors)):
                partial = self._sums.setdefault((i, j), [])
                product = np.multiply(first, vectors[j], out=self._product[: len(first)])
                partial.append(float(np.add.reduce(product)))
                if len(partial) >= _COMPRESSED:
                    partial[:] = [math.fsum(partial)]

    def finish_pass(self) -> bool:
        return True

    def cosine(self, i: int, j: int) -> float:
        """Return the cosine between two vectors, 0 if one of them is zero."""
        i, j = sorted((i, j))
        norms = math.sqrt(self._sum(i, i)) * math.sqrt(self._sum(j, j))
        return max(-1.0, min(1.0, self._sum(i, j) / norms)) if norms else 0.0

    def mean_cosine(self) -> float:
        """Return the mean over all pairs of different vectors."""
        pairs = [pair for pair in self._sums if pair[0] != pair[1]]
        return math.fsum(self.cosine(*pair) for pair in pairs) / len(pairs) if pairs else 0.0

    def is_zero(self, i: int) -> bool:
        """Return whether a vector has only zeros."""
        return self._sum(i, i) == 0.0

    def _sum(self, i: int, j: int) -> float:
        return math.fsum(self._sums.get((i, j), ()))


class LargestMagnitudes(Reduction):
    """The k-th largest |tau_i| of every fine-tuned input, exactly; calls may come from any thread.

    The first pass draws a sample, which gives an interval that almost surely holds the result; the
    second counts what is above it and collects what is in it. If the result is elsewhere, or the
    interval holds too much, up to four passes follow that count bit patterns.

    Args:
        n_elements: Number of elements of all tensors together.
        density: Share of the elements to keep; k is the next smaller whole number, at least 1.
        capacity: Maximum number of magnitudes to collect, of all inputs together.

    Attributes:
        block_step: Of so many blocks, the current pass observes only the first.
    """

    def __init__(
        self, n_finetuned: int, n_elements: int, density: Fraction, *, capacity: int
    ) -> None:
        rank = max(1, math.floor(density * n_elements))
        share = capacity // n_finetuned
        step = 1 if n_elements <= share else max(1, n_elements // min(_SAMPLE, share))
        self.block_step = _SAMPLED_BLOCKS if step >= _SAMPLED_BLOCKS else 1
        self._lock, self._memory = threading.Lock(), threading.local()
        self._searches = [
            _Search(rank, n_elements, share, step // self.block_step) for _ in range(n_finetuned)
        ]

    def observe(self, arrays: Sequence[Array]) -> None:
        with np.errstate(all="ignore"):  # infinite values have NaN differences
            for begin in range(0, len(arrays[0]), self.block_step * REDUCTION_BLOCK):
                self._observe_block([array[begin : begin + REDUCTION_BLOCK] for array in arrays])

    def _observe_block(self, arrays: Sequence[Array]) -> None:
        if not hasattr(self._memory, "arrays"):
            self._memory.arrays = np.empty((2, REDUCTION_BLOCK))
        theta_0, magnitude = self._memory.arrays[:, : len(arrays[0])]
        np.copyto(theta_0, arrays[0])
        for search, theta_i in zip(self._searches, arrays[1:], strict=True):
            if search.threshold is None:
                np.copyto(magnitude, theta_i)
                np.subtract(theta_0, magnitude, out=magnitude)
                search.observe(np.abs(magnitude, out=magnitude), self._lock)

    def finish_pass(self) -> bool:
        self.block_step = 1
        for search in self._searches:
            if search.threshold is None:
                search.finish_pass()
        return all(search.threshold is not None for search in self._searches)

    @property
    def thresholds(self) -> list[float]:
        """For every fine-tuned input the k-th largest magnitude, after the last pass."""
        return [search.threshold or 0.0 for search in self._searches]


class _Search:
    """The search for the magnitude of one rank.

    Args:
        capacity: Maximum number of magnitudes to collect.
        step: Of so many observed magnitudes, one belongs to the sample.

    Attributes:
        threshold: The result, once it is known; infinite if it is NaN.
    """

    def __init__(self, rank: int, n_elements: int, capacity: int, step: int) -> None:
        self._rank, self._n_elements, self._capacity = rank, n_elements, capacity
        self._collected: list[Array] = []
        self._n_collected = self._n_above = 0
        self._interval: tuple[float, float] | None = None
        self._counts: _BitCounts | None = None
        self._step = step
        self.threshold: float | None = None

    def observe(self, magnitude: Array, lock: threading.Lock) -> None:
        if self._counts is not None:
            self._counts.observe(magnitude.view(np.int64), lock)
            return
        n_above = 0
        if self._interval is None:
            found = magnitude[:: self._step].copy()
        else:
            low, high = self._interval
            is_below = magnitude < high  # not NaN, which is above every number
            n_above = len(magnitude) - int(np.count_nonzero(is_below))
            # All zeros are equal, so they need not be collected.
            is_below &= magnitude >= low if low else magnitude > 0.0
            found = magnitude[is_below]
        with lock:
            self._n_above += n_above
            self._n_collected += len(found)
            if self._interval is None or self._n_collected <= self._capacity:
                self._collected.append(found)

    def finish_pass(self) -> None:
        if self._counts is not None:
            self._set(self._counts.finish_pass())
            return
        if self._interval is None and self._n_collected < self._n_elements:
            self._interval = self._guess_interval()
        elif self._n_collected > self._capacity or not self._holds_result():
            self._counts = _BitCounts(self._rank)
        elif self._rank > self._n_above + self._n_collected:
            self._set(0.0)
        else:
            self._set(_largest(np.concatenate(self._collected), self._rank - self._n_above))
        self._collected, self._n_collected = [], 0

    def _guess_interval(self) -> tuple[float, float]:
        """Return bounds of the result from a sample, as wide as the capacity allows."""
        sample = np.sort(np.concatenate(self._collected))
        share = self._rank / self._n_elements
        margin = min(_MARGIN, 0.4 * self._capacity / self._n_elements)
        first, last = ((1 - share + sign * margin) * len(sample) for sign in (-1, 1))
        low = float(sample[int(first)]) if first >= 0 else 0.0
        high = float(sample[int(last)]) if last < len(sample) else math.inf
        return low, math.inf if math.isnan(high) else high

    def _holds_result(self) -> bool:
        if self._n_above >= self._rank:
            return False
        is_lowest = self._interval is not None and self._interval[0] == 0.0
        return is_lowest or self._rank <= self._n_above + self._n_collected

    def _set(self, value: float | None) -> None:
        self.threshold = math.inf if value is not None and math.isnan(value) else value


def _largest(values: Array, rank: int) -> float:
    """Return the value of a rank from the largest; NaN is larger than every number."""
    place = len(values) - rank
    return float(np.partition(values, place)[place])


class _BitCounts:
    """Select a rank by counting the leading bits of magnitudes, 16 more in each of four passes.

    Doubles of one sign are ordered as their bit patterns are.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._level = self._prefix = 0
        self._counts = np.zeros(1 << 16, np.int64)

    def observe(self, bits: Array, lock: threading.Lock) -> None:
        if self._level:
            bits = bits[(bits >> _SHIFTS[self._level - 1]) == self._prefix]
        digits = (bits >> _SHIFTS[self._level]) & (0xFFFF if self._level < 3 else 0x7FFF)
        counts = np.bincount(digits, minlength=1 << 16)
        with lock:
            self._counts += counts

    def finish_pass(self) -> float | None:
        """Return the magnitude after the last pass, otherwise None."""
        from_above = np.cumsum(self._counts[::-1])
        place = int(np.searchsorted(from_above, self._rank))
        digit = len(from_above) - 1 - place
        self._rank -= int(from_above[place]) - int(self._counts[digit])
        self._prefix = self._prefix << (16 if self._level < 3 else 15) | digit
        self._counts[:] = 0
        self._level += 1
        is_last = self._level == len(_SHIFTS)
        return float(np.int64(self._prefix).view(np.float64)) if is_last else None

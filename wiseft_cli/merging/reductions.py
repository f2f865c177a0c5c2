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

REDUCTION_BLOCK = 1 << 14
"""Elements that are summed at once. Every call of `observe` but a tensor's last one must bring a
multiple of it, so that the blocks begin at the same elements for every size of chunks."""

_SHIFTS = (47, 31, 15, 0)
"""Right shifts of the bits of a magnitude, whose sign is 0: 16, 32, 48 and 63 leading bits."""

_COMPRESSED = 1024


class Reduction(Protocol):
    """A statistic of one or several tensors."""

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
        self._of_changes = of_changes
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
                partial.append(float(np.add.reduce(first * vectors[j])))
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
    """The k-th largest |tau_i| of every fine-tuned input, exactly, in two to four passes.

    Doubles of one sign are ordered as their bit patterns are. A pass counts the next 16 bits of
    the magnitudes that begin with the bits known so far; once few enough are left, a pass
    collects them. Calls may come from several threads.

    Args:
        n_elements: Number of elements of all tensors together.
        density: Share of the elements to keep; k is the next smaller whole number, at least 1.
        capacity: Maximum number of magnitudes to collect.
    """

    def __init__(
        self, n_finetuned: int, n_elements: int, density: Fraction, *, capacity: int
    ) -> None:
        self._capacity = capacity // n_finetuned
        self._lock = threading.Lock()
        self._searches = [
            _Search(max(1, math.floor(density * n_elements))) for _ in range(n_finetuned)
        ]

    def observe(self, arrays: Sequence[Array]) -> None:
        if not len(arrays[0]):
            return
        with np.errstate(all="ignore"):  # infinite values have NaN differences
            theta_0 = arrays[0].astype(np.float64)
            for search, theta_i in zip(self._searches, arrays[1:], strict=True):
                if search.threshold is None:
                    magnitude = np.subtract(theta_i, theta_0, dtype=np.float64)
                    np.abs(magnitude, out=magnitude)
                    search.observe(magnitude.view(np.int64), self._lock)

    def finish_pass(self) -> bool:
        for search in self._searches:
            if search.threshold is None:
                search.finish_pass(self._capacity)
        return all(search.threshold is not None for search in self._searches)

    @property
    def thresholds(self) -> list[float]:
        """For every fine-tuned input the k-th largest magnitude, after the last pass."""
        return [search.threshold or 0.0 for search in self._searches]


class _Search:
    """The search for the magnitude of one rank.

    Attributes:
        rank: Rank, from the largest, among the magnitudes that begin with `prefix`.
        level: Number of finished passes, an index of `_SHIFTS`.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.level = 0
        self.prefix = 0
        self.counts: Array | None = np.zeros(1 << 16, np.int64)
        self.collected: list[Array] = []
        self.threshold: float | None = None

    def observe(self, bits: Array, lock: threading.Lock) -> None:
        if self.level:
            bits = bits[(bits >> _SHIFTS[self.level - 1]) == self.prefix]
        if self.counts is None:
            with lock:
                self.collected.append(bits)
            return
        digits = (bits >> _SHIFTS[self.level]) & (0xFFFF if self.level < 3 else 0x7FFF)
        counts = np.bincount(digits, minlength=1 << 16)
        with lock:
            self.counts += counts

    def finish_pass(self, capacity: int) -> None:
        if self.counts is None:
            found = np.concatenate(self.collected)
            self._set(int(np.partition(found, len(found) - self.rank)[len(found) - self.rank]))
            return
        from_above = np.cumsum(self.counts[::-1])
        place = int(np.searchsorted(from_above, self.rank))
        digit = len(from_above) - 1 - place
        count = int(self.counts[digit])
        self.rank -= int(from_above[place]) - count
        shift = _SHIFTS[self.level]
        self.prefix = self.prefix << (16 if self.level < 3 else 15) | digit
        if not shift:
            self._set(self.prefix)
            return
        self.level += 1
        self.counts = None if count <= capacity else np.zeros(1 << 16, np.int64)

    def _set(self, bits: int) -> None:
        self.threshold = float(np.int64(bits).view(np.float64))
        self.counts, self.collected = None, []

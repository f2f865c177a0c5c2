"""The values that the merge methods compute, block by block in float64, rounded once.

A method other than `fisher` computes an update U that does not depend on alpha. The value is
v = p * theta_0 + q * U, or v = theta_0 - q * U where U sums the changes theta_0 - theta_i: then a
weight that is equal in all inputs keeps its bits, a negative zero included. In the other methods
rounding gives it back (`BlockMerger`); only slerp, whose p + q is above 1, changes such an element
of a tensor that differs elsewhere. Sums over the fine-tuned inputs run in an order that depends
only on their weights and bytes (`TensorMerge.order`), so that permuting the inputs of a symmetric
method does not change a bit.

numpy's masked operations (`where=`) take ten times as long as multiplying by the mask.

`methods.py` lists formulas and sources; `arithmetic.py` rounds, and is the kernel of two inputs
without a method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.merging.arithmetic import RoundingScratch, raw_bits, round_into

Array = npt.NDArray[Any]

KERNEL_BLOCK = 1 << 16
"""Elements per block: shorter blocks, whose arrays stay in the cache, lose more time than they gain
because the threads wait for each other between calls to numpy."""

_SMALLEST_WEIGHT = 1e-300
"""Smaller than every sum of weights but 0, which it replaces."""

_DRAWS = 8
"""32-bit numbers that the generator gives for one value of its counter."""


@dataclass(frozen=True)
class BlockInputs:
    """A block of one tensor of every input, and what its method knows about the tensor.

    Attributes:
        base: theta_0, in its stored dtype; None for a method without it.
        finetuned: theta_i in their stored dtypes, in the order of summation.
        weights: Weight of each theta_i; None for equal weights.
        begin: Position of the block's first element in the tensor.
        indices: Position of each theta_i among the fine-tuned inputs as given.
        fishers: Fisher values of theta_0 and of each theta_i; empty if there are none.
    """

    base: Array | None
    finetuned: Sequence[Array]
    weights: Sequence[float] | None
    begin: int = 0
    indices: Sequence[int] = ()
    fishers: Sequence[Array] = ()

    @property
    def thetas(self) -> list[Array]:
        """All inputs, theta_0 first."""
        return [*([] if self.base is None else [self.base]), *self.finetuned]


class Scratch:
    """Memory of one thread for the intermediate values of a block."""

    def __init__(self, block: int = KERNEL_BLOCK) -> None:
        self.block = block
        self.rounding = RoundingScratch(block)
        self._arrays = np.empty((10, block))

    def array(self, index: int, n: int) -> Array:
        """Return one of the arrays, cut to n elements."""
        return self._arrays[index, :n]


@dataclass(frozen=True)
class UpdateSettings:
    """What an update needs besides a block: options and statistics of the tensor.

    Attributes:
        thresholds: For every fine-tuned input the smallest magnitude that is kept (TIES).
        drop: Share that is dropped (DARE).
        seed: Seed of what is dropped (DARE).
        name: Name of the tensor.
        elects: Whether the sign is elected (DARE with TIES).
        floor: Smallest Fisher value.
    """

    name: str = ""
    thresholds: Sequence[float] = ()
    drop: float = 0.0
    seed: int = 0
    elects: bool = False
    floor: float = 0.0


Update = Callable[[BlockInputs, Array, Scratch, UpdateSettings], None]
"""Writes U into a float64 array; array 0 of the scratch holds theta_0, 3 to 9 are free."""


def _mean(inputs: BlockInputs, out: Array, scratch: Scratch, _: UpdateSettings) -> None:
    """Write sum_i w_i theta_i; for equal weights the sum divided by N."""
    term = scratch.array(3, len(out))
    for index, theta_i in enumerate(inputs.finetuned):
        target = term if index else out
        if inputs.weights is None:
            np.copyto(target, theta_i)
        else:
            np.multiply(theta_i, inputs.weights[index], out=target, dtype=np.float64)
        if index:
            np.add(out, term, out=out)
    if inputs.weights is None and len(inputs.finetuned) > 1:
        np.divide(out, len(inputs.finetuned), out=out)


def _sum_of_changes(inputs: BlockInputs, out: Array, scratch: Scratch, _: UpdateSettings) -> None:
    """Write the sum of theta_0 - theta_i."""
    change = scratch.array(3, len(out))
    for index, theta_i in enumerate(inputs.finetuned):
        _subtract(theta_i, scratch, out=change if index else out)
        if index:
            np.add(out, change, out=out)


def _subtract(theta_i: Array, scratch: Scratch, *, out: Array) -> None:
    """Write theta_0 - theta_i."""
    np.copyto(out, theta_i)
    np.subtract(scratch.array(0, len(out)), out, out=out)


def _ties(inputs: BlockInputs, out: Array, scratch: Scratch, settings: UpdateSettings) -> None:
    """Write the weighted mean of the trimmed changes whose sign is that of their weighted sum."""
    change = scratch.array(3, len(out))
    election = _Election(inputs, scratch, len(out)) if len(inputs.finetuned) > 1 else None
    for index, theta_i in enumerate(inputs.finetuned):
        target = change if election else out
        _subtract(theta_i, scratch, out=target)
        threshold = settings.thresholds[inputs.indices[index]]
        if threshold:
            # A NaN is below no threshold, and is kept.
            is_small = np.less(np.abs(target, out=scratch.array(9, len(out))), threshold)
            np.multiply(target, ~is_small, out=target)
        if election:
            election.add(target, index)
    if election:
        election.finish(out)


def _dare(inputs: BlockInputs, out: Array, scratch: Scratch, settings: UpdateSettings) -> None:
    """Write the combination of what remains of the changes, divided by the share that remains."""
    change = scratch.array(3, len(out))
    election = _Election(inputs, scratch, len(out)) if settings.elects else None
    out[:] = 0.0
    for index, theta_i in enumerate(inputs.finetuned):
        _subtract(theta_i, scratch, out=change)
        kept = keep_mask(settings, inputs.indices[index], inputs.begin, len(out))
        np.multiply(change, kept, out=change)
        np.divide(change, 1.0 - settings.drop, out=change)
        if election:
            election.add(change, index)
            continue
        if inputs.weights is not None:
            np.multiply(change, inputs.weights[index], out=change)
        np.add(out, change, out=out)
    if election:
        election.finish(out)
    elif inputs.weights is None and len(inputs.finetuned) > 1:
        np.divide(out, len(inputs.finetuned), out=out)


class _Election:
    """TIES's election of a sign and the mean of those that agree (arXiv:2306.01708, section 3).

    With S the sum of the changes and M that of their magnitudes, the changes of the sign of S have
    the sum (M + |S|) / 2 in magnitude, which is at least half of M. Counts and signs are bytes,
    because operations on bytes cost a fraction of those on doubles.
    """

    def __init__(self, inputs: BlockInputs, scratch: Scratch, n: int) -> None:
        self._weights = inputs.weights
        self._sum, self._magnitude, self._term = (scratch.array(index, n) for index in (4, 5, 6))
        self._sum[:] = self._magnitude[:] = 0.0
        kind = np.uint8 if inputs.weights is None else np.float64
        self._agreeing = np.zeros((2, n), kind)
        """Number, or weight, of the inputs with each sign."""

    def add(self, change: Array, index: int) -> None:
        """Add the trimmed change of one input; it is changed."""
        for compare, total in zip((np.greater, np.less), self._agreeing, strict=True):
            agrees = compare(change, 0.0).view(np.uint8)
            weighted = agrees if self._weights is None else agrees * self._weights[index]
            np.add(total, weighted, out=total)
        if self._weights is not None:
            np.multiply(change, self._weights[index], out=change)
        np.add(self._sum, change, out=self._sum)
        np.add(self._magnitude, np.abs(change, out=change), out=self._magnitude)

    def finish(self, out: Array) -> None:
        """Write the mean of the elected sign; where the sum is 0, the result is 0."""
        is_positive, is_negative = (
            compare(self._sum, 0.0).view(np.int8) for compare in (np.greater, np.less)
        )
        positive, negative = self._agreeing
        agreeing = positive * is_positive.view(np.uint8) + negative * is_negative.view(np.uint8)
        np.maximum(agreeing, _SMALLEST_WEIGHT if self._weights else 1, out=agreeing)
        np.add(self._magnitude, np.abs(self._sum, out=self._term), out=out)
        np.copyto(self._term, is_positive - is_negative)
        np.multiply(out, self._term, out=out)
        np.copyto(self._term, agreeing)
        np.divide(out, np.multiply(self._term, 2.0, out=self._term), out=out)


def keep_mask(settings: UpdateSettings, index: int, begin: int, n: int) -> Array:
    """Return which elements of a tensor DARE keeps.

    An element is dropped if a number of 32 bits, drawn by Philox4x64 from the seed, the tensor's
    name, the input's position and the element's position, is below drop * 2**32.

    Args:
        index: Position of the input among the fine-tuned ones.
        begin: Position of the first element.
        n: Number of elements.
    """
    key = hashlib.sha256(canonical_json([settings.seed, settings.name, index]).encode()).digest()
    first, skipped = divmod(begin, _DRAWS)
    generator = np.random.Philox(key=int.from_bytes(key[:16], "little"), counter=first)
    words = generator.random_raw(-(-(skipped + n) // 2)).astype("<u8", copy=False)
    draws = words.view("<u4")[skipped : skipped + n]
    return np.asarray(draws >= round(settings.drop * 2**32))


UPDATES: dict[str, Update] = {
    "linear": _mean,
    "slerp": _mean,
    "task-arithmetic": _sum_of_changes,
    "ties": _ties,
    "dare": _dare,
    "model-stock": _mean,
    "lines": _mean,
    "soup": _mean,
}
"""The update of every method but `fisher`."""

OF_CHANGES = frozenset({"task-arithmetic", "ties", "dare"})
"""Methods whose update is a combination of the changes theta_0 - theta_i."""


def merge_block(
    method: str,
    inputs: BlockInputs,
    settings: UpdateSettings,
    outs: Sequence[tuple[float, float, Array]],
    scratch: Scratch,
    *,
    restores_equal: bool,
    keeps_equal: bool = True,
) -> tuple[list[int], bool]:
    """Write a block at every pair of coefficients.

    Args:
        method: A key of `UPDATES`.
        outs: p, q and the array to write, for every output.
        restores_equal: Whether the value alone would not keep weights that all inputs share.
        keeps_equal: Whether finite weights that are equal in all inputs are kept.
    Returns:
        For every output the number of elements that are not finite although all inputs are, and
        whether all elements of all inputs are known to be finite.
    """
    n, subtracts = len(inputs.finetuned[0]), method in OF_CHANGES
    theta_0, update = scratch.array(0, n), scratch.array(1, n)
    value, term = scratch.array(2, n), scratch.array(9, n)
    if inputs.base is not None:
        np.copyto(theta_0, inputs.base)
    UPDATES[method](inputs, update, scratch, settings)
    equal = _Equality(inputs, of_all=keeps_equal)
    counts, is_known_finite = [], False
    for p, q, out in outs:
        np.multiply(update, q, out=value)
        if subtracts:
            np.subtract(theta_0, value, out=value)
        elif p:
            np.multiply(theta_0, p, out=term)
            np.add(term, value, out=value)
        count, is_finite = store(value, out, equal, scratch, restores_equal=restores_equal)
        counts.append(count)
        is_known_finite |= is_finite and q != 0.0 and (p != 0.0 or inputs.base is None)
    return counts, is_known_finite


def merge_fisher_block(
    inputs: BlockInputs,
    settings: UpdateSettings,
    outs: Sequence[tuple[float, Array]],
    scratch: Scratch,
    *,
    restores_equal: bool,
) -> tuple[list[int], bool]:
    """Write a block of Fisher-weighted means, for pairs of alpha and the array to write."""
    n = len(inputs.finetuned[0])
    fisher, term, value, total = (scratch.array(index, n) for index in (0, 1, 2, 3))
    weighted_0, fisher_0, weighted, summed = (scratch.array(index, n) for index in (4, 5, 6, 7))
    weighted[:], summed[:] = 0.0, 0.0
    np.maximum(inputs.fishers[0], settings.floor, out=fisher_0, dtype=np.float64)
    if inputs.base is None:
        raise ValueError("the method fisher needs theta_0")
    np.multiply(inputs.base, fisher_0, out=weighted_0, dtype=np.float64)
    for index, theta_i in enumerate(inputs.finetuned):
        np.maximum(inputs.fishers[index + 1], settings.floor, out=fisher, dtype=np.float64)
        weight = inputs.weights[index] if inputs.weights else 1.0 / len(inputs.finetuned)
        np.multiply(fisher, weight, out=fisher)
        np.add(summed, fisher, out=summed)
        np.add(weighted, np.multiply(theta_i, fisher, out=term, dtype=np.float64), out=weighted)
    equal = _Equality(inputs)
    counts, is_known_finite = [], False
    for alpha, out in outs:
        np.multiply(weighted_0, 1.0 - alpha, out=value)
        np.add(value, np.multiply(weighted, alpha, out=term), out=value)
        np.multiply(fisher_0, 1.0 - alpha, out=total)
        np.add(total, np.multiply(summed, alpha, out=term), out=total)
        np.divide(value, total, out=value)
        count, is_finite = store(value, out, equal, scratch, restores_equal=restores_equal)
        counts.append(count)
        is_known_finite |= is_finite and 0.0 < alpha < 1.0
    return counts, is_known_finite


class _Equality:
    """Which elements of a block have the same bits in all inputs, computed once if needed.

    Args:
        of_all: Whether finite elements count.
    """

    def __init__(self, inputs: BlockInputs, *, of_all: bool = True) -> None:
        self._of_all = of_all
        self.thetas = inputs.thetas
        self.has_one_dtype = len({theta.dtype for theta in self.thetas}) == 1
        self._mask: Array | None = None

    @property
    def mask(self) -> Array:
        if self._mask is None:
            views = [
                raw_bits(theta if self.has_one_dtype else theta.astype(np.float64))
                for theta in self.thetas
            ]
            self._mask = views[0] == views[-1]
            for view in views[1:-1]:
                self._mask &= views[0] == view
            if not self._of_all:
                self._mask &= ~np.isfinite(self.thetas[0])
        return self._mask


def store(
    value: Array, out: Array, equal: _Equality, scratch: Scratch, *, restores_equal: bool
) -> tuple[int, bool]:
    """Round a block once into `out`, with bits kept that are equal in all inputs.

    Args:
        value: float64; changed.
    Returns:
        The number of elements that are not finite although all inputs are, and whether all are
        finite.
    """
    first = equal.thetas[0]
    keeps_bits = equal.has_one_dtype and first.dtype == out.dtype
    if restores_equal and not keeps_bits:
        np.copyto(value, first.astype(np.float64), where=equal.mask)
    is_finite = round_into(value, out, scratch.rounding)
    if keeps_bits and (restores_equal or not is_finite) and equal.mask.any():
        np.copyto(raw_bits(out), raw_bits(first), where=equal.mask)
    if is_finite:
        return 0, True
    were_finite = np.logical_and.reduce([np.isfinite(theta) for theta in equal.thetas])
    return int(np.count_nonzero(were_finite & ~np.isfinite(out))), False

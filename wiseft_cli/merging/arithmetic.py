"""The values of interpolated weights: blockwise float64 arithmetic with one correct rounding.

With a the double nearest to alpha, x of theta_0 and y of theta_1, the value is
v = fl(fl(fl(1 - a) * x) + fl(a * y)) in float64, rounded once, to nearest even, to the stored
dtype. Where x and y have the same bits, the bits are copied; at alpha 0 and 1 floating tensors
are copied byte for byte. Formula: Wortsman et al., arXiv:2109.01903, section 3.

numpy rounds float64 to float32 and float16 once. ml_dtypes (and torch) convert to bfloat16 and
float8 through float32 and round twice, which turns 1 + 2**-8 + 2**-40 into 1 instead of
1 + 2**-7. `round_into` rounds every dtype below float32 by one rule, in a few passes over a
block that stays in the cache:

Let |v| lie in [2**e, 2**(e+1)), with e raised to the smallest exponent of the dtype, and let
C = 2**(e + 52 - p), where p is the number of stored fraction bits. The sum |v| + C lies in
[C, 2C), where neighbouring doubles are 2**(e-p) apart, exactly as neighbouring numbers of the
dtype are around |v|. So the addition itself rounds |v| as required, ties to even (C is an even
multiple of the spacing), and the low bits of the sum are the integer k = |v| / 2**(e-p). The bit
pattern of the result is k plus the exponent field above the smallest, times 2**p. A k that was
rounded up to 2**(p+1) carries into the exponent as it should; subnormals need no special case.

This module does not know files or tensor names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.format import safetensors_dtype

Array = npt.NDArray[Any]

INTERPOLATED_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
"""The safetensors dtypes that can be interpolated."""

BLOCK = 1 << 16
"""Elements per block. Threads wait for the interpreter's lock between calls to numpy, so shorter
blocks lose more time there than they gain from a smaller cache footprint."""

_EXPONENT_BITS = np.int64(0x7FF << 52)
_QUIET_NANS = {"float64": (np.uint64, 0x7FF8 << 48), "float32": (np.uint32, 0x7FC0 << 16)}


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating dtype narrower than float32.

    Attributes:
        size_bits: Bits per number.
        fraction_bits: Stored bits of the significand, p.
        min_exponent: Exponent of the smallest normal number.
        overflow_code: Bit pattern, without sign, of every value that is too large: infinity, or
            NaN in a dtype without infinity.
        nan_code: Bit pattern of the quiet NaN that is written for every NaN.
    """

    size_bits: int
    fraction_bits: int
    min_exponent: int
    overflow_code: int
    nan_code: int

    def value_of(self, code: int) -> float:
        """Return the number of a bit pattern above the subnormals.

        For the overflow pattern this is the number after the largest one, as if the exponent
        range were wider.
        """
        exponent, fraction = divmod(code, 1 << self.fraction_bits)
        significand = 1 + fraction / (1 << self.fraction_bits)
        return float(significand * 2.0 ** (exponent - 1 + self.min_exponent))


FORMATS = {
    "float16": FloatFormat(16, 10, -14, 0x7C00, 0x7E00),
    "bfloat16": FloatFormat(16, 7, -126, 0x7F80, 0x7FC0),
    "float8_e4m3fn": FloatFormat(8, 3, -6, 0x7F, 0x7F),
    "float8_e5m2": FloatFormat(8, 2, -14, 0x7C, 0x7E),
}
"""Narrow dtypes by numpy's name."""


class RoundingScratch:
    """Memory for the intermediate values of `round_into`, reused from block to block."""

    def __init__(self, block: int) -> None:
        self.magnitude = np.empty(block)
        self.constant = np.empty(block)
        self.code = np.empty(block, np.uint16)
        self.field = np.empty(block, np.uint16)


class Interpolator:
    """Interpolates runs of two tensors at any number of alphas, block by block.

    A block is widened to float64 and written at every alpha while it is in the cache. Code
    between two calls to numpy holds the interpreter's lock, and the threads of a merge wait for
    each other there; so everything that is the same for all blocks is computed once per run.
    An instance belongs to one thread and allocates its memory once.

    Args:
        block: Elements per block.
    """

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._wide = np.empty((4, block))
        self._rounding = RoundingScratch(block)

    def interpolate(
        self, theta_0: Array, theta_1: Array, outs: Sequence[tuple[float, Array]]
    ) -> tuple[list[int], bool]:
        """Write the run interpolated at every alpha.

        Args:
            theta_0: Zero-shot weights, shape (n,), in an interpolated dtype.
            theta_1: Fine-tuned weights, shape (n,), in an interpolated dtype.
            outs: For every alpha the array to write, shape (n,), in an interpolated dtype.
        Returns:
            For every alpha, the number of written elements that are not finite although both
            inputs are; and whether all elements of both inputs are known to be finite.
        """
        counts = [0] * len(outs)
        is_finite = False
        narrowing: list[tuple[int, float, Array]] = []
        # Overflow to infinity is the correct rounding, and NaN is replaced.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for index, (alpha, out) in enumerate(outs):
                same_dtype = theta_0.dtype == theta_1.dtype == out.dtype
                if same_dtype and alpha in (0.0, 1.0):
                    raw_bits(out)[:] = raw_bits(theta_1 if alpha else theta_0)
                # For alpha in (0, 1) and equal finite x and y, v is within a few units in the
                # last place of x and has its sign: rounding to a narrower dtype restores x.
                elif same_dtype and 0.0 < alpha < 1.0 and out.dtype != np.float64:
                    narrowing.append((index, alpha, out))
                else:
                    counts[index] = self._interpolate_any(theta_0, theta_1, alpha, out)
            if narrowing:
                is_finite = self._interpolate_narrowing(theta_0, theta_1, narrowing, counts)
        return counts, is_finite

    def _interpolate_any(self, theta_0: Array, theta_1: Array, alpha: float, out: Array) -> int:
        """Write any alpha and dtype and return the number of new non-finite elements."""
        count = 0
        for begin in range(0, len(theta_0), self._block):
            part = slice(begin, begin + self._block)
            count += _store(theta_0[part], theta_1[part], alpha, out[part], self._rounding)
        return count

    def _interpolate_narrowing(
        self,
        theta_0: Array,
        theta_1: Array,
        outs: Sequence[tuple[int, float, Array]],
        counts: list[int],
    ) -> bool:
        """Write alphas in (0, 1) in one dtype narrower than float64.

        Returns:
            Whether all elements of both inputs are finite.
        """
        n, is_single, is_all_finite = len(theta_0), len(outs) == 1, True
        # numpy widens float32 as it multiplies. Each call takes twice as many elements then, in
        # the same memory, because the threads wait for each other between calls.
        is_widened_later = is_single and theta_0.dtype == np.float32
        rows = self._wide.reshape(2, -1) if is_widened_later else self._wide
        block = rows.shape[1]
        for begin in range(0, n, block):
            end = min(begin + block, n)
            x_part, y_part = theta_0[begin:end], theta_1[begin:end]
            x, y = rows[:2, : end - begin]
            # A single alpha overwrites its operands; several alphas share them.
            value, term = (x, y) if is_single else rows[2:, : end - begin]
            if is_widened_later:
                x, y = x_part, y_part
            else:
                np.copyto(x, x_part)
                np.copyto(y, y_part)
            # One finite result implies finite x and y, and these give a finite result at every
            # alpha in (0, 1), so only the first one is checked.
            is_finite = False
            for index, alpha, out in outs:
                np.multiply(x, 1.0 - alpha, value, dtype=np.float64)
                np.multiply(y, alpha, term, dtype=np.float64)
                out_part = out[begin:end]
                if out.dtype == np.float32:
                    np.add(value, term, out_part, casting="same_kind")  # rounded as it is written
                    is_finite = is_finite or math.isfinite(np.add.reduce(out_part))
                else:
                    np.add(value, term, value)
                    is_finite = round_into(
                        value, out_part, self._rounding, is_known_finite=is_finite
                    )
                if not is_finite:
                    is_all_finite = False
                    counts[index] += _store(x_part, y_part, alpha, out_part, self._rounding)
        return is_all_finite


def _store(
    theta_0: Array, theta_1: Array, alpha: float, out: Array, scratch: RoundingScratch
) -> int:
    """Write one block at any alpha and dtype, with equal bits kept.

    Returns:
        The number of elements of `out` that are not finite although both inputs are.
    """
    x, y = theta_0.astype(np.float64), theta_1.astype(np.float64)
    if alpha in (0.0, 1.0):
        value = y if alpha else x
    else:
        value = x * (1.0 - alpha) + y * alpha
        np.copyto(value, x, where=x.view(np.int64) == y.view(np.int64))
    is_finite = round_into(value, out, scratch)
    if theta_0.dtype == theta_1.dtype == out.dtype:
        raw_0, raw_1 = raw_bits(theta_0), raw_bits(theta_1)
        np.copyto(raw_bits(out), raw_1, where=raw_0 == raw_1)
    if is_finite:
        return 0
    were_finite = np.isfinite(x) & np.isfinite(y)
    return int(np.count_nonzero(were_finite & ~np.isfinite(out)))


def interpolate_arrays(theta_0: Array, theta_1: Array, alpha: float) -> Array:
    """Interpolate two arrays of the same shape and dtype.

    Args:
        theta_0: Zero-shot weights, any shape.
        theta_1: Fine-tuned weights, same shape and dtype.
        alpha: Weight of `theta_1`.
    Returns:
        A new array of that shape and dtype. For integers and booleans it is a copy of `theta_1`
        at every alpha.
    Raises:
        ValueError: The shapes or dtypes differ.
    """
    if theta_0.shape != theta_1.shape or theta_0.dtype != theta_1.dtype:
        raise ValueError(
            f"cannot interpolate {theta_0.dtype} {theta_0.shape} and "
            f"{theta_1.dtype} {theta_1.shape}"
        )
    out = np.array(theta_1, order="C")
    if safetensors_dtype(out.dtype) in INTERPOLATED_DTYPES:
        flat_0, flat_1, flat_out = (np.ravel(array) for array in (theta_0, theta_1, out))
        kernel = Interpolator(min(BLOCK, max(1, out.size)))
        kernel.interpolate(flat_0, flat_1, [(alpha, flat_out)])
    return out


@functools.cache
def _format_of(dtype: np.dtype[Any]) -> FloatFormat | None:
    return FORMATS.get(dtype.name)  # numpy builds the name of a dtype anew each time, slowly


def round_into(
    values: Array, out: Array, scratch: RoundingScratch, *, is_known_finite: bool = False
) -> bool:
    """Round a block of float64 values once, to nearest even, into the dtype of `out`.

    Every NaN becomes the dtype's positive quiet NaN, because the payload that arithmetic
    produces differs between processors.

    Args:
        values: float64, shape (n,), n at most the block length of `scratch`; not changed.
        out: float64, float32 or a dtype of `FORMATS`, shape (n,).
        scratch: Intermediate memory.
        is_known_finite: Whether every rounded value is known to be finite, to skip the check.
    Returns:
        Whether every rounded value is finite.
    """
    form = _format_of(out.dtype)
    if form is None:
        return _round_wide(values, out, is_known_finite=is_known_finite)
    magnitude = np.abs(values, out=scratch.magnitude[: len(values)])
    # The comparison is false for NaN, which then takes the second branch.
    if is_known_finite or (
        float(np.maximum.reduce(magnitude, initial=0.0)) <= form.value_of(form.overflow_code - 1)
    ):
        _encode(values, out, form, scratch)
        return True
    is_beyond = ~(magnitude < form.value_of(form.overflow_code))
    magnitude[is_beyond] = 0.0
    _encode(values, out, form, scratch)
    return _encode_beyond(values, out, form, is_beyond)


def _round_wide(values: Array, out: Array, *, is_known_finite: bool) -> bool:
    """Round to float64 or float32, which numpy does once."""
    # Overflow to infinity is the correct rounding, and NaN is replaced below.
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, values, casting="same_kind")
        # The sum is finite only if every element is, and costs one pass. If the sum itself
        # overflows, the check below decides.
        if is_known_finite or math.isfinite(np.add.reduce(out)):
            return True
    bits, nan = _QUIET_NANS[out.dtype.name]
    out.view(bits)[np.isnan(values)] = nan
    return bool(np.isfinite(out).all())


def _encode(values: Array, out: Array, form: FloatFormat, scratch: RoundingScratch) -> None:
    """Write the bit patterns of `scratch.magnitude` with the signs of `values`."""
    n, p = len(values), form.fraction_bits
    magnitude, constant = scratch.magnitude[:n], scratch.constant[:n]
    code, field = scratch.code[:n], scratch.field[:n]

    np.maximum(magnitude, 2.0**form.min_exponent, out=constant)
    bits = constant.view(np.int64)
    np.bitwise_and(bits, _EXPONENT_BITS, out=bits)
    np.add(bits, np.int64((52 - p) << 52), out=bits)
    np.add(magnitude, constant, out=magnitude)

    # The fraction of the constant is zero, so the lowest bits of the sum are those of k.
    np.copyto(code, _words(magnitude)[0])
    # The topmost 16 bits of a double are the sign, 11 exponent and 4 fraction bits, zero here.
    np.subtract(_words(constant)[3], np.uint16((form.min_exponent + 1023 + 52 - p) << 4), out=field)
    shift = np.left_shift if p >= 4 else np.right_shift
    shift(field, np.uint16(abs(p - 4)), out=field)
    np.add(code, field, out=code)

    np.bitwise_and(_words(values)[3], np.uint16(0x8000), out=field)
    np.right_shift(field, np.uint16(16 - form.size_bits), out=field)
    np.bitwise_or(code, field, out=code)
    np.copyto(raw_bits(out), code, casting="unsafe")


def _encode_beyond(values: Array, out: Array, form: FloatFormat, is_beyond: Array) -> bool:
    """Write infinities and NaNs, and return whether all of `out` is finite."""
    codes = raw_bits(out)
    sign = codes.dtype.type(1 << (form.size_bits - 1))
    codes[is_beyond] = (codes[is_beyond] & sign) | codes.dtype.type(form.overflow_code)
    codes[np.isnan(values)] = form.nan_code
    return bool(((codes & ~sign) < form.overflow_code).all())


def _words(values: Array) -> list[Array]:
    """View float64 values as four interleaved 16-bit words, least significant first."""
    words = values.view(np.uint16)
    return [words[i::4] for i in (range(4) if np.little_endian else range(3, -1, -1))]


def raw_bits(numbers: Array) -> Array:
    """View numbers as unsigned integers of their size, so that copying keeps every NaN."""
    return numbers.view(f"u{numbers.dtype.itemsize}")

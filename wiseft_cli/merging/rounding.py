"""One correct rounding, to nearest with ties to even, from float64 to a stored type.

numpy rounds float64 to float32 and float16 once. ml_dtypes (and torch) reach bfloat16 and
float8 by way of float32 and round twice, which turns 1 + 2**-8 + 2**-40 into 1 instead of
1 + 2**-7. This module rounds all types below float32 with one rule, in a few passes over a
block that stays in the cache.

The rule: let |v| lie in [2**e, 2**(e+1)), with e raised to the type's smallest exponent, and let
C = 2**(e + 52 - p) where p counts the type's fraction bits. The sum |v| + C lies in [C, 2C),
where neighbouring doubles are 2**(e-p) apart, exactly as neighbouring numbers of the type are
around |v|. So the addition itself rounds |v| as the type requires, ties to even (C is an even
multiple of the spacing), and the low bits of the sum are the integer k = |v| / 2**(e-p). The
type's bit pattern is k plus the exponent field above the smallest, times 2**p; a k that was
rounded up to 2**(p+1) carries into the exponent as it should, and subnormals need no case of
their own.

It does not interpolate and knows no files.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_EXPONENT_BITS = np.int64(0x7FF << 52)


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating type narrower than float32.

    Attributes:
        size_bits: Bits of one number.
        fraction_bits: Stored bits of the significand, p.
        min_exponent: Exponent of the smallest normal number.
        overflow_code: Bit pattern, without sign, of everything too large: infinity, or NaN in
            a type that has no infinity.
        nan_code: Bit pattern of the quiet NaN written for every NaN.
    """

    size_bits: int
    fraction_bits: int
    min_exponent: int
    overflow_code: int
    nan_code: int

    def value_of(self, code: int) -> float:
        """Return the number that a pattern above the subnormals stands for in the rule.

        For the overflow pattern it is the number that would follow the largest one, were the
        exponent range wider.
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
"""By numpy's name of the type."""

_QUIET_NANS = {"float64": (np.uint64, 0x7FF8 << 48), "float32": (np.uint32, 0x7FC0 << 16)}


class RoundingScratch:
    """Memory for the intermediate values of `round_into`, reused from block to block."""

    def __init__(self, block: int) -> None:
        self.magnitude = np.empty(block)
        self.constant = np.empty(block)
        self.code = np.empty(block, np.uint16)
        self.field = np.empty(block, np.uint16)


@functools.cache
def _format_of(dtype: np.dtype[Any]) -> FloatFormat | None:
    return FORMATS.get(dtype.name)  # numpy makes up a type's name anew each time, slowly


def round_into(
    values: Array, out: Array, scratch: RoundingScratch, *, is_known_finite: bool = False
) -> bool:
    """Round a block of float64 values once, to nearest even, into `out`'s type.

    A NaN of any payload or sign becomes the type's one positive quiet NaN, because which
    payload arithmetic leaves behind differs from processor to processor.

    Args:
        values: float64, shape (n,), n at most the block length of `scratch`; not changed.
        out: float64, float32 or a type of `FORMATS`, shape (n,).
        scratch: The intermediate memory.
        is_known_finite: Whether every rounded value is sure to be finite, so that nobody looks.
    Returns:
        Whether every rounded value is finite.
    """
    form = _format_of(out.dtype)
    if form is None:
        return _round_wide(values, out, is_known_finite=is_known_finite)
    n = len(values)
    magnitude = np.abs(values, out=scratch.magnitude[:n])
    if is_known_finite:
        _encode(values, out, form, scratch)
        return True
    largest = float(np.maximum.reduce(magnitude, initial=0.0))
    # NaN compares false, so that it takes the careful way too.
    if largest <= form.value_of(form.overflow_code - 1):
        _encode(values, out, form, scratch)
        return True
    beyond = ~(magnitude < form.value_of(form.overflow_code))
    magnitude[beyond] = 0.0
    _encode(values, out, form, scratch)
    return _encode_beyond(values, out, form, beyond)


def _round_wide(values: Array, out: Array, *, is_known_finite: bool) -> bool:
    """Round to float64 or float32, which numpy does once."""
    # Overflow to infinity is the right rounding, and NaN is replaced below.
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, values, casting="same_kind")
        # The sum of the numbers is finite only where each of them is, and costs one pass. Where
        # it overflows by itself, the closer look below finds nothing.
        if is_known_finite or math.isfinite(np.add.reduce(out)):
            return True
    bits, nan = _QUIET_NANS[out.dtype.name]
    out.view(bits)[np.isnan(values)] = nan
    return bool(np.isfinite(out).all())


def _encode(values: Array, out: Array, form: FloatFormat, scratch: RoundingScratch) -> None:
    """Write the bit patterns of the magnitudes in `scratch` with the signs of `values`."""
    n, p = len(values), form.fraction_bits
    magnitude, constant = scratch.magnitude[:n], scratch.constant[:n]
    code, field = scratch.code[:n], scratch.field[:n]

    np.maximum(magnitude, 2.0**form.min_exponent, out=constant)
    bits = constant.view(np.int64)
    np.bitwise_and(bits, _EXPONENT_BITS, out=bits)
    np.add(bits, np.int64((52 - p) << 52), out=bits)
    np.add(magnitude, constant, out=magnitude)

    # The constant's own fraction is zero, so the lowest bits of the sum are those of k.
    np.copyto(code, _words(magnitude)[0])
    # A double's topmost 16 bits are the sign, 11 bits of exponent and 4 of fraction, zero here.
    np.subtract(_words(constant)[3], np.uint16((form.min_exponent + 1023 + 52 - p) << 4), out=field)
    shift = np.left_shift if p >= 4 else np.right_shift
    shift(field, np.uint16(abs(p - 4)), out=field)
    np.add(code, field, out=code)

    np.bitwise_and(_words(values)[3], np.uint16(0x8000), out=field)
    np.right_shift(field, np.uint16(16 - form.size_bits), out=field)
    np.bitwise_or(code, field, out=code)
    np.copyto(_bits(out), code, casting="unsafe")


def _encode_beyond(values: Array, out: Array, form: FloatFormat, beyond: Array) -> bool:
    """Write infinities and NaNs where `beyond` says, and tell whether all of `out` is finite."""
    codes = _bits(out)
    sign = codes.dtype.type(1 << (form.size_bits - 1))
    codes[beyond] = (codes[beyond] & sign) | codes.dtype.type(form.overflow_code)
    codes[np.isnan(values)] = form.nan_code
    return bool(((codes & ~sign) < form.overflow_code).all())


def _bits(numbers: Array) -> Array:
    """View numbers of a narrow type as their bit patterns."""
    return numbers.view(np.uint8 if numbers.dtype.itemsize == 1 else np.uint16)


def _words(values: Array) -> list[Array]:
    """View float64 values as four interleaved 16-bit words, least significant first."""
    words = values.view(np.uint16)
    return [words[i::4] for i in (range(4) if np.little_endian else range(3, -1, -1))]

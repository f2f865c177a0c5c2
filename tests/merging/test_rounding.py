"""Every narrow type against exact rational arithmetic, from its own list of numbers."""

from __future__ import annotations

import bisect
from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wiseft_cli.merging.rounding import FORMATS, RoundingScratch, round_into

NARROW = sorted(FORMATS)
INFINITE = {"float16": 0x7C00, "bfloat16": 0x7F80, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7C}
"""The first pattern that is no finite number, from the definitions of the types."""


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(name) if name.startswith("float1") else np.dtype(getattr(ml_dtypes, name))


def numpy_bits(numbers: np.ndarray) -> np.ndarray:
    return numbers.view(f"u{numbers.dtype.itemsize}")


@cache
def finite_numbers(name: str) -> np.ndarray:
    """All non-negative finite numbers of a type, ascending, as its own library decodes them."""
    codes = np.arange(INFINITE[name], dtype=f"u{dtype_of(name).itemsize}")
    return codes.view(dtype_of(name)).astype(np.float64)


def round_exactly(value: float, name: str) -> int:
    """The pattern nearest to `value`, ties to the even pattern, found by rational comparison."""
    numbers = finite_numbers(name)
    after_last = 2 * numbers[-1] - numbers[-2]
    size = Fraction(abs(value))
    high = code = int(bisect.bisect_left(numbers, abs(value)))
    if high > 0 and size < Fraction(after_last):
        below = Fraction(numbers[high - 1])
        above = Fraction(numbers[high] if high < len(numbers) else after_last)
        if size - below < above - size or (size - below == above - size and high % 2 == 1):
            code = high - 1
    sign = 1 << (8 * dtype_of(name).itemsize - 1)
    return code | (sign if np.signbit(value) else 0)


def rounded_bits(values: list[float] | np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    out = np.empty(len(array), dtype_of(name))
    round_into(array, out, RoundingScratch(len(array)))
    return numpy_bits(out)


@pytest.mark.parametrize("name", NARROW)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
@example(value=1 + 2**-8 + 2**-40)
@example(value=-(2.0**-1074))
def test_any_double_rounds_to_the_nearest_number(name: str, value: float) -> None:
    assert rounded_bits([value], name)[0] == round_exactly(value, name)


@pytest.mark.parametrize("name", NARROW)
@given(data=st.data())
def test_ties_and_their_neighbours_round_as_rationals_say(name: str, data: st.DataObject) -> None:
    numbers = finite_numbers(name)
    low = data.draw(st.integers(0, len(numbers) - 2))
    tie = (numbers[low] + numbers[low + 1]) / 2
    values = [tie, np.nextafter(tie, np.inf), np.nextafter(tie, 0), -tie, numbers[low]]
    assert rounded_bits(values, name).tolist() == [round_exactly(v, name) for v in values]


@pytest.mark.parametrize("name", NARROW)
def test_every_number_of_a_type_rounds_to_itself(name: str) -> None:
    numbers = finite_numbers(name)
    sign = 1 << (8 * dtype_of(name).itemsize - 1)
    assert (rounded_bits(numbers, name) == np.arange(len(numbers))).all()
    assert (rounded_bits(-numbers, name) == np.arange(len(numbers)) + sign).all()


@pytest.mark.parametrize("name", NARROW)
def test_overflow_begins_exactly_half_a_step_beyond_the_largest(name: str) -> None:
    numbers = finite_numbers(name)
    edge = numbers[-1] + (numbers[-1] - numbers[-2]) / 2
    values = [np.nextafter(edge, 0), edge, np.nextafter(edge, np.inf), 1e308, -1e308]
    assert rounded_bits(values, name).tolist() == [round_exactly(v, name) for v in values]


def test_the_value_that_two_roundings_get_wrong() -> None:
    value = np.array([1 + 2**-8 + 2**-40])
    assert float(value.astype(ml_dtypes.bfloat16)[0]) == 1.0  # by way of float32
    out = np.empty(1, ml_dtypes.bfloat16)
    assert round_into(value, out, RoundingScratch(1))
    assert float(out[0]) == 1 + 2**-7


@pytest.mark.parametrize("name", ["float64", "float32", *NARROW])
def test_not_finite_values_become_canonical_and_are_reported(name: str) -> None:
    dtype = dtype_of(name) if name in FORMATS else np.dtype(name)
    payload = np.array([0xFFF8_0000_DEAD_BEEF], np.uint64).view(np.float64)[0]
    values = np.array([np.nan, payload, np.inf, -np.inf, 1.0, -0.0])
    out = np.empty(len(values), dtype)
    assert not round_into(values, out, RoundingScratch(len(values)))
    bits = numpy_bits(out)
    assert np.isnan(out[:2]).all()
    assert bits[0] == bits[1]
    assert bits[0] < 1 << (8 * dtype.itemsize - 1)  # positive
    if name != "float8_e4m3fn":  # which has no infinity
        assert out[2:4].astype(np.float64).tolist() == [np.inf, -np.inf]
    assert out[4:].astype(np.float64).tolist() == [1.0, 0.0]
    assert np.signbit(out.astype(np.float64)[5])


@given(value=st.floats(allow_nan=False))
def test_float32_rounds_as_numpy_does(value: float) -> None:
    values = np.array([value])
    out = np.empty(1, np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    is_finite = round_into(values, out, RoundingScratch(1))
    assert numpy_bits(out) == numpy_bits(expected)
    assert is_finite == bool(np.isfinite(expected[0]))

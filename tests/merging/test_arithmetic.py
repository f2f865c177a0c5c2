"""Merged values against rational arithmetic: rounding, end points, symmetry, several alphas."""

from __future__ import annotations

import bisect
import math
from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wiseft_cli.merging.arithmetic import (
    BLOCK,
    FORMATS,
    Interpolator,
    RoundingScratch,
    interpolate_arrays,
    round_into,
)

NARROW = sorted(FORMATS)
INFINITE = {"float16": 0x7C00, "bfloat16": 0x7F80, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7C}
"""The first bit pattern that is not a finite number, from the definitions of the dtypes."""


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(name) if name.startswith("float1") else np.dtype(getattr(ml_dtypes, name))


def numpy_bits(numbers: np.ndarray) -> np.ndarray:
    return numbers.view(f"u{numbers.dtype.itemsize}")


@cache
def finite_numbers(name: str) -> np.ndarray:
    """Return all non-negative finite numbers of a dtype, ascending, decoded by its library."""
    codes = np.arange(INFINITE[name], dtype=f"u{dtype_of(name).itemsize}")
    return codes.view(dtype_of(name)).astype(np.float64)


def round_exactly(value: float, name: str) -> int:
    """Return the bit pattern nearest to `value`, ties to even, found by rational comparison."""
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
def test_ties_and_their_neighbours_round_as_rationals_do(name: str, data: st.DataObject) -> None:
    numbers = finite_numbers(name)
    low = data.draw(st.integers(0, len(numbers) - 2))
    tie = (numbers[low] + numbers[low + 1]) / 2
    values = [tie, np.nextafter(tie, np.inf), np.nextafter(tie, 0), -tie, numbers[low]]
    assert rounded_bits(values, name).tolist() == [round_exactly(v, name) for v in values]


@pytest.mark.parametrize("name", NARROW)
def test_every_number_of_a_dtype_rounds_to_itself(name: str) -> None:
    numbers = finite_numbers(name)
    sign = 1 << (8 * dtype_of(name).itemsize - 1)
    assert (rounded_bits(numbers, name) == np.arange(len(numbers))).all()
    assert (rounded_bits(-numbers, name) == np.arange(len(numbers)) + sign).all()


@pytest.mark.parametrize("name", NARROW)
def test_overflow_starts_half_a_step_after_the_largest_number(name: str) -> None:
    numbers = finite_numbers(name)
    edge = numbers[-1] + (numbers[-1] - numbers[-2]) / 2
    values = [np.nextafter(edge, 0), edge, np.nextafter(edge, np.inf), 1e308, -1e308]
    assert rounded_bits(values, name).tolist() == [round_exactly(v, name) for v in values]


def test_a_value_that_double_rounding_gets_wrong_is_rounded_once() -> None:
    value = np.array([1 + 2**-8 + 2**-40])
    assert float(value.astype(ml_dtypes.bfloat16)[0]) == 1.0  # by way of float32
    out = np.empty(1, ml_dtypes.bfloat16)
    assert round_into(value, out, RoundingScratch(1))
    assert float(out[0]) == 1 + 2**-7


@pytest.mark.parametrize("name", ["float64", "float32", *NARROW])
def test_non_finite_values_are_canonical_and_reported(name: str) -> None:
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


FLOATING = ["float64", "float32", *NARROW]
ALPHAS = [0.0, 0.1, 0.3, 0.5, 0.7, 1.0]


def random_bits(name: str, count: int, seed: int) -> np.ndarray:
    """Return numbers of all kinds: NaN payloads, infinities, subnormals and both zeros."""
    dtype = dtype_of(name) if name in FORMATS else np.dtype(name)
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)


def float64_value(x: float, y: float, alpha: float) -> float:
    """Return v of the definition; Python floats are float64, rounded after each operation."""
    return (1.0 - alpha) * x + alpha * y


@pytest.mark.parametrize("name", NARROW)
@given(data=st.data())
def test_a_narrow_weight_is_the_float64_value_rounded_once(name: str, data: st.DataObject) -> None:
    numbers = finite_numbers(name)
    index = st.integers(0, len(numbers) - 1)
    sign = st.sampled_from([1.0, -1.0])
    x, y = (float(numbers[data.draw(index)] * data.draw(sign)) for _ in range(2))
    alpha = data.draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
    merged = interpolate_arrays(
        np.array([x]).astype(dtype_of(name)), np.array([y]).astype(dtype_of(name)), alpha
    )
    assert numpy_bits(merged)[0] == round_exactly(float64_value(x, y, alpha), name)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.data())
@settings(max_examples=300)
def test_a_float32_weight_is_within_half_a_unit_of_the_exact_one(
    x: float, data: st.DataObject
) -> None:
    y = data.draw(st.floats(width=32, allow_nan=False, allow_infinity=False))
    alpha = data.draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
    merged = interpolate_arrays(np.array([x], np.float32), np.array([y], np.float32), alpha)[0]
    exact = (1 - Fraction(alpha)) * Fraction(x) + Fraction(alpha) * Fraction(y)
    # Where x and y nearly cancel, the error of the two products outweighs that of the sum.
    cancellation = Fraction(max(abs(x), abs(y))) * Fraction(2) ** -52
    unit = Fraction(2) ** max(math.frexp(merged)[1] - 24, -149)
    error = abs(Fraction(float(merged)) - exact)
    assert error <= unit * Fraction(5000001, 10**7) + cancellation


@given(
    st.floats(-(2.0**1000), 2.0**1000), st.floats(-(2.0**1000), 2.0**1000), st.floats(0.001, 0.999)
)
def test_a_float64_weight_is_computed_by_the_defined_operations(
    x: float, y: float, alpha: float
) -> None:
    merged = interpolate_arrays(np.array([x]), np.array([y]), alpha)
    equal = np.array([x]).tobytes() == np.array([y]).tobytes()
    assert merged[0] == (x if equal else float64_value(x, y, alpha))


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("alpha", [*ALPHAS, -0.5, 1.5])
def test_equal_weights_stay_equal_at_every_alpha(name: str, alpha: float) -> None:
    weights = random_bits(name, 3 * BLOCK + 5, seed=1)
    merged = interpolate_arrays(weights, weights.copy(), alpha)
    assert merged.tobytes() == weights.tobytes()


@pytest.mark.parametrize("name", FLOATING)
def test_the_end_points_are_copied_byte_for_byte(name: str) -> None:
    theta_0, theta_1 = (random_bits(name, 5000, seed) for seed in (1, 2))
    assert interpolate_arrays(theta_0, theta_1, 0.0).tobytes() == theta_0.tobytes()
    assert interpolate_arrays(theta_0, theta_1, 1.0).tobytes() == theta_1.tobytes()


@pytest.mark.parametrize("name", FLOATING)
def test_swapping_the_models_at_one_minus_alpha_gives_the_same_bits(
    name: str,
) -> None:
    theta_0, theta_1 = (random_bits(name, 5000, seed) for seed in (3, 4))
    there = interpolate_arrays(theta_0, theta_1, 0.25)
    back = interpolate_arrays(theta_1, theta_0, 0.75)
    assert there.tobytes() == back.tobytes()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.int32])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_integers_and_booleans_come_from_the_fine_tuned_side(dtype: Any, alpha: float) -> None:
    theta_0, theta_1 = np.array([0, 1, 1], dtype), np.array([1, 1, 0], dtype)
    merged = interpolate_arrays(theta_0, theta_1, alpha)
    assert merged.tobytes() == theta_1.tobytes()
    assert merged is not theta_1


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 5), (BLOCK + 1,)])
def test_the_shape_is_kept(shape: tuple[int, ...]) -> None:
    theta_0 = np.full(shape, 1.0, np.float32)
    theta_1 = np.full(shape, 2.0, np.float32)
    merged = interpolate_arrays(theta_0, theta_1, 0.5)
    assert merged.shape == shape
    assert (merged == 1.5).all()


def test_arrays_in_fortran_order_are_interpolated_by_index() -> None:
    theta_0 = np.arange(12, dtype=np.float32).reshape(3, 4)
    theta_1 = np.asfortranarray(theta_0 + 2)
    assert (interpolate_arrays(theta_0, theta_1, 0.5) == theta_0 + 1).all()


def test_different_shapes_and_dtypes_raise_value_error() -> None:
    with pytest.raises(ValueError, match=r"^cannot interpolate float32 \(2,\) and float32 \(3,\)$"):
        interpolate_arrays(np.zeros(2, np.float32), np.zeros(3, np.float32), 0.5)
    with pytest.raises(ValueError, match=r"^cannot interpolate float32 \(\) and float64 \(\)$"):
        interpolate_arrays(np.zeros((), np.float32), np.zeros(()), 0.5)


def test_new_non_finite_elements_are_counted() -> None:
    blocks = Interpolator(8)
    x = np.array([3e38, -3e38, 1.0, np.inf, np.nan, 3e38], np.float32)
    y = np.array([-3e38, 3e38, 2.0, 1.0, 1.0, 3e38], np.float32)
    out = np.empty(6, np.float32)
    assert blocks.interpolate(x, y, [(-1.0, out)]) == ([2], False)
    assert out[2] == 0.0
    assert np.isnan(out[4])
    assert out[5] == np.float32(3e38)
    assert blocks.interpolate(x, y, [(0.5, out)]) == ([0], False)


def test_conversion_rounds_once_and_keeps_equal_values() -> None:
    blocks = Interpolator(4)
    tie = 1 + 2**-8
    x = np.array([tie, 1.0, 1e39, -0.0])
    y = np.array([tie, 1 + 2**-7 + 2**-39, 1e39, -0.0])
    a, b, c = outs = [np.empty(4, ml_dtypes.bfloat16) for _ in range(3)]
    # 1e39 is finite in float64 alone.
    assert blocks.interpolate(x, y, list(zip((0.3, 0.5, 1.0), outs, strict=True)))[0] == [1, 1, 1]
    assert float(a[0]) == 1.0
    assert numpy_bits(a)[3] == 0x8000
    assert float(b[1]) == 1 + 2**-7
    assert float(c[1]) == 1 + 2**-7


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("is_finite", [True, False])
def test_several_alphas_at_once_equal_each_alpha_alone(name: str, is_finite: bool) -> None:
    pair = [random_bits(name, 3000, seed) for seed in (5, 6)]
    if is_finite:
        for weights in pair:
            with np.errstate(invalid="ignore"):
                weights[~np.isfinite(weights)] = 1
    alphas = (0.5, 0.0, 0.3, 2.0, 0.7, 1.0, -1.0, 0.1)
    outs = [np.empty_like(pair[0]) for _ in alphas]
    Interpolator(1000).interpolate(*pair, list(zip(alphas, outs, strict=True)))
    for alpha, out in zip(alphas, outs, strict=True):
        assert out.tobytes() == interpolate_arrays(*pair, alpha).tobytes()

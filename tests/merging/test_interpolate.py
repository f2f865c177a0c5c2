"""The value of a merged weight against rational arithmetic, its end points and its symmetry."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging.test_rounding import dtype_of, finite_numbers, numpy_bits, round_exactly
from wiseft_cli.merging.interpolate import BLOCK, BlockInterpolation, interpolate_arrays
from wiseft_cli.merging.rounding import FORMATS

NARROW = sorted(FORMATS)
FLOATING = ["float64", "float32", *NARROW]
ALPHAS = [0.0, 0.1, 0.3, 0.5, 0.7, 1.0]


def random_bits(name: str, count: int, seed: int) -> np.ndarray:
    """Numbers of every bit pattern: NaN payloads, infinities, subnormals and both zeros."""
    dtype = dtype_of(name) if name in FORMATS else np.dtype(name)
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)


def float64_value(x: float, y: float, alpha: float) -> float:
    """v of the definition; Python's floats are float64, rounded after each operation."""
    return (1.0 - alpha) * x + alpha * y


@pytest.mark.parametrize("name", NARROW)
@given(data=st.data())
def test_a_narrow_weight_is_the_double_rounded_once(name: str, data: st.DataObject) -> None:
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
def test_a_float64_weight_is_the_defined_sequence_of_operations(
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
def test_swapping_the_models_and_alpha_agrees_to_the_bit_where_one_minus_alpha_is_exact(
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
def test_every_shape_keeps_its_shape(shape: tuple[int, ...]) -> None:
    theta_0 = np.full(shape, 1.0, np.float32)
    theta_1 = np.full(shape, 2.0, np.float32)
    merged = interpolate_arrays(theta_0, theta_1, 0.5)
    assert merged.shape == shape
    assert (merged == 1.5).all()


def test_arrays_in_another_memory_order_are_read_by_index() -> None:
    theta_0 = np.arange(12, dtype=np.float32).reshape(3, 4)
    theta_1 = np.asfortranarray(theta_0 + 2)
    assert (interpolate_arrays(theta_0, theta_1, 0.5) == theta_0 + 1).all()


def test_different_shapes_and_types_are_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"^cannot interpolate float32 \(2,\) and float32 \(3,\)$"):
        interpolate_arrays(np.zeros(2, np.float32), np.zeros(3, np.float32), 0.5)
    with pytest.raises(ValueError, match=r"^cannot interpolate float32 \(\) and float64 \(\)$"):
        interpolate_arrays(np.zeros((), np.float32), np.zeros(()), 0.5)


def test_a_block_counts_the_numbers_that_stopped_being_finite() -> None:
    blocks = BlockInterpolation(8)
    x = np.array([3e38, -3e38, 1.0, np.inf, np.nan, 3e38], np.float32)
    y = np.array([-3e38, 3e38, 2.0, 1.0, 1.0, 3e38], np.float32)
    out = np.empty(6, np.float32)
    assert blocks.interpolate(x, y, [(-1.0, out)]) == [2]
    assert out[2] == 0.0
    assert np.isnan(out[4])
    assert out[5] == np.float32(3e38)
    assert blocks.interpolate(x, y, [(0.5, out)]) == [0]


def test_a_block_converts_with_one_rounding_and_keeps_equal_values() -> None:
    blocks = BlockInterpolation(4)
    tie = 1 + 2**-8
    x = np.array([tie, 1.0, 1e39, -0.0])
    y = np.array([tie, 1 + 2**-7 + 2**-39, 1e39, -0.0])
    a, b, c = outs = [np.empty(4, ml_dtypes.bfloat16) for _ in range(3)]
    # 1e39 is finite in float64 alone.
    assert blocks.interpolate(x, y, list(zip((0.3, 0.5, 1.0), outs, strict=True))) == [1, 1, 1]
    assert float(a[0]) == 1.0
    assert numpy_bits(a)[3] == 0x8000
    assert float(b[1]) == 1 + 2**-7
    assert float(c[1]) == 1 + 2**-7


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("is_finite", [True, False])
def test_several_alphas_at_once_are_each_as_if_it_were_the_only_one(
    name: str, is_finite: bool
) -> None:
    pair = [random_bits(name, 3000, seed) for seed in (5, 6)]
    if is_finite:
        for weights in pair:
            with np.errstate(invalid="ignore"):
                weights[~np.isfinite(weights)] = 1
    alphas = (0.5, 0.0, 0.3, 2.0, 0.7, 1.0, -1.0, 0.1)
    outs = [np.empty_like(pair[0]) for _ in alphas]
    BlockInterpolation(1000).interpolate(*pair, list(zip(alphas, outs, strict=True)))
    for alpha, out in zip(alphas, outs, strict=True):
        assert out.tobytes() == interpolate_arrays(*pair, alpha).tobytes()

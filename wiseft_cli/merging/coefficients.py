"""Coefficients of methods that follow from the angles between tensors: SLERP and Model Stock."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

STRAIGHT_COSINE = 0.9995
"""SLERP is linear where the cosine is larger in magnitude: sin(omega) is close to 0."""

_DIGITS = 50


def slerp_coefficients(cosine: float, alpha: float) -> tuple[float, float]:
    """Return sin((1 - alpha) omega) / sin(omega) and sin(alpha omega) / sin(omega).

    Computed with 50 digits, because the sines of the C library differ between machines in their
    last bit.

    Args:
        cosine: cos(omega), in (-1, 1).
        alpha: Weight of the second point.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        omega = _arccos(Decimal(cosine))
        weight = Decimal(alpha)
        whole = _sin(omega)
        return float(_sin((1 - weight) * omega) / whole), float(_sin(weight * omega) / whole)


def _arccos(cosine: Decimal) -> Decimal:
    omega = Decimal(math.acos(cosine))
    for _ in range(4):  # Newton's method doubles the number of right digits
        omega += (_cos(omega) - cosine) / _sin(omega)
    return omega


def _sin(x: Decimal) -> Decimal:
    return _series(x, x, 1)


def _cos(x: Decimal) -> Decimal:
    return _series(x, Decimal(1), 0)


def _series(x: Decimal, term: Decimal, order: int) -> Decimal:
    """Sum the Taylor series of sin (order 1) or cos (order 0), for |x| of a few units."""
    total = term
    while total + term / 10 != total:
        term *= -x * x / ((order + 1) * (order + 2))
        total += term
        order += 2
    return total


def model_stock_ratio(n_finetuned: int, cosine: float) -> float:
    """Return t = N c / (1 + (N - 1) c), not clamped (Jang et al. 2024, arXiv:2403.19522, eq. 5).

    Args:
        cosine: c, the mean cosine between two changes tau_i; 1 + (N - 1) c > 0 for real vectors,
            and where rounding gives 0 or less, t is minus infinity.
    """
    denominator = 1.0 + (n_finetuned - 1) * cosine
    return n_finetuned * cosine / denominator if denominator > 0.0 else -math.inf

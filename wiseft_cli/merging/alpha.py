"""Alpha, the weight of the fine-tuned model, as the exact decimal that the person wrote.

theta = (1 - alpha) * theta_0 + alpha * theta_1 (Wortsman et al., arXiv:2109.01903, section 3).
File names and cards carry the decimal's text, arithmetic the double nearest to it.
This module does not interpolate anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation

from wiseft_cli.errors import UsageError

MAX_ALPHAS = 1001
"""Values in one request. A longer list is a mistyped step, and would exhaust the memory."""

MAX_DIGITS = 30
"""Digits of one value; a double tells 17 apart, and an exponent could ask for a billion."""

_EXACT = Context(prec=4 * MAX_DIGITS)
_FORMS = "a number such as 0.5, a list such as 0,0.5,1 or a range such as 0:1:0.1"


@dataclass(frozen=True)
class Alpha:
    """One interpolation coefficient.

    Attributes:
        text: The exact decimal without superfluous zeros, as names and cards show it: "0.3".
        value: The double nearest to it, which the arithmetic uses.
    """

    text: str
    value: float


def parse_alphas(texts: Iterable[str], *, extrapolate: bool = False) -> tuple[Alpha, ...]:
    """Parse numbers, comma lists and inclusive ranges into distinct alphas, in the order given.

    A range `start:stop:step` holds start, start + step, ... and stop where a step lands on it.

    Args:
        texts: What stood behind each `--alpha`.
        extrapolate: Whether values outside [0, 1] are allowed.
    Raises:
        UsageError: A text is malformed, or a value is outside [0, 1] without `extrapolate`.
    """
    decimals: dict[Decimal, None] = {}
    for text in texts:
        for part in text.split(","):
            for decimal in _expand(part.strip(), text):
                decimals[decimal] = None
                if len(decimals) > MAX_ALPHAS:
                    raise UsageError(f"alpha: {text!r} asks for more than {MAX_ALPHAS} values")
    if not decimals:
        raise UsageError(f"alpha: no value is given; expected {_FORMS}")
    if not extrapolate:
        _check_interval(decimals)
    return tuple(Alpha(_plain_text(decimal), float(decimal)) for decimal in decimals)


def _expand(part: str, text: str) -> Iterator[Decimal]:
    """Yield the values of one number or one range."""
    fields = [_parse_decimal(field, text) for field in part.split(":")]
    if len(fields) == 1:
        yield fields[0]
        return
    if len(fields) != 3:
        raise UsageError(f"alpha: {text!r} is not a range; expected start:stop:step")
    start, stop, step = fields
    if step == 0 or (stop - start) * step < 0:
        raise UsageError(f"alpha: {text!r} never arrives; its step leads away from its end")
    value, index = start, 0
    while (value <= stop) if step > 0 else (value >= stop):
        yield value
        index += 1
        value = _EXACT.add(start, _EXACT.multiply(step, Decimal(index)))


def _parse_decimal(field: str, text: str) -> Decimal:
    """Parse one decimal, refusing what could not be written down in `MAX_DIGITS` digits."""
    try:
        decimal = Decimal(field.strip())
    except InvalidOperation:
        raise UsageError(f"alpha: {text!r} cannot be read; expected {_FORMS}") from None
    if not decimal.is_finite():
        raise UsageError(f"alpha: {text!r} is not finite")
    if len(decimal.as_tuple().digits) > MAX_DIGITS or abs(decimal.adjusted()) > MAX_DIGITS:
        raise UsageError(f"alpha: {text!r} has more than {MAX_DIGITS} digits")
    return decimal


def _check_interval(decimals: Iterable[Decimal]) -> None:
    outside = [_plain_text(decimal) for decimal in decimals if not 0 <= decimal <= 1]
    if outside:
        raise UsageError(
            f"alpha {', '.join(outside[:10])} is outside [0, 1]; "
            "alpha is the weight of the fine-tuned model",
            hint="to leave the line between the two models, merge with --extrapolate",
        )


def _plain_text(decimal: Decimal) -> str:
    """Write a decimal without exponent, superfluous zeros or a negative zero."""
    text = format(decimal, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text

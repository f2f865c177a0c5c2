"""Alpha, the weight of the fine-tuned model, as the exact decimal that the user wrote.

theta = (1 - alpha) * theta_0 + alpha * theta_1 (Wortsman et al., arXiv:2109.01903, section 3).
File names and cards contain the text of the decimal; arithmetic uses the nearest double.
This module does not interpolate anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from itertools import islice

from wiseft_cli.errors import UsageError

MAX_ALPHAS = 1001
"""Maximum number of values; a longer list is a mistyped step and would exhaust the memory."""

MAX_DIGITS = 30
"""Maximum digits of one value; a double has 17, and an exponent could ask for a billion."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_EXACT = Context(prec=4 * MAX_DIGITS)
_FORMS = "a number such as 0.5, a list such as 0,0.5,1 or a range such as 0:1:0.1"


@dataclass(frozen=True)
class Alpha:
    """One interpolation coefficient.

    Attributes:
        text: The exact decimal without redundant zeros, for file names and cards: "0.3".
        value: The nearest double, for arithmetic.
    """

    text: str
    value: float

    @classmethod
    def of(cls, decimal: Decimal) -> Alpha:
        """Return the coefficient that an exact decimal states."""
        return cls(_plain_text(decimal), float(decimal))


def parse_alphas(texts: Iterable[str], *, extrapolate: bool = False) -> tuple[Alpha, ...]:
    """Parse numbers, comma lists and inclusive ranges into distinct alphas, in the order given.

    A range `start:stop:step` contains start, start + step, ... and stop if a step reaches it.

    Args:
        texts: The values of `--alpha`.
        extrapolate: Whether values outside [0, 1] are allowed.
    Raises:
        UsageError: A text is malformed, or a value is outside [0, 1] without `extrapolate`.
    """
    texts = list(texts)
    decimals: dict[Decimal, None] = {}
    for text in texts:
        for part in text.split(","):
            for decimal in _expand(part, text):
                decimals[decimal] = None
                if len(decimals) > MAX_ALPHAS:
                    raise UsageError(f"alpha: {text!r} has more than {MAX_ALPHAS} values")
    if not decimals:
        raise UsageError(f"alpha: missing value, expected {_FORMS}")
    outside = [_plain_text(decimal) for decimal in decimals if not 0 <= decimal <= 1]
    if outside and not extrapolate:
        meant = next(filter(None, map(_guess_fraction, texts)), None)
        raise UsageError(
            f"alpha {', '.join(outside[:10])} is outside [0, 1]; "
            "alpha is the weight of the fine-tuned model",
            hint=meant or "to extrapolate beyond the two models, use merge with --extrapolate",
        )
    return tuple(map(Alpha.of, decimals))


def parse_decimal(text: str) -> Decimal:
    """Parse one exact decimal.

    Raises:
        ValueError: The text is not a number, not finite, or has too many digits.
    """
    try:
        return _parse_decimal(text, text)
    except UsageError as error:
        raise ValueError(error.message) from None


def _expand(part: str, text: str) -> Iterator[Decimal]:
    """Yield the values of one number or one range."""
    fields = [_parse_decimal(field, text) for field in part.split(":")]
    if len(fields) == 1:
        yield fields[0]
        return
    if len(fields) != 3:
        raise UsageError(
            f"alpha: {text!r} is not a range; expected start:stop:step",
            hint=_guess_fraction(text) if "," in text else None,
        )
    start, stop, step = fields
    guess = _guess_fraction(text) if "," in text else None
    if step == 0:
        raise UsageError(f"alpha: {text!r}: the step of a range must not be 0", hint=guess)
    if (stop - start) * step < 0:
        raise UsageError(
            f"alpha: {text!r}: steps of {step} never get from {start} to {stop}",
            hint=guess or f"write {stop}:{start}:{step} or {start}:{stop}:{-step}",
        )
    value, index = start, 0
    while (value <= stop) if step > 0 else (value >= stop):
        yield value
        index += 1
        value = _EXACT.add(start, _EXACT.multiply(step, Decimal(index)))


def _guess_fraction(text: str) -> str | None:
    """Return the question whether a decimal comma or per cent were meant, or None."""
    plain = text.replace("%", "").replace(" ", "")
    numbers = [float(number) for number in _NUMBER.findall(plain)]
    guesses = [plain.replace(",", ".")] if "," in plain else []
    if "%" in text or (numbers and max(numbers) > (9 if guesses else 2)):
        guesses.append(_NUMBER.sub(lambda number: _plain_text(Decimal(number[0]) / 100), plain))
    valid = [guess for guess in guesses if _is_inside(guess)]
    if not valid:
        return None
    kind = "a comma separates values; " if "," in plain else ""
    return f"{kind}did you mean {' or '.join(valid)}?"


def _is_inside(text: str) -> bool:
    try:
        # The empty text has no guess of its own, which would ask again.
        values = (value for part in text.split(",") for value in _expand(part, ""))
        return all(0 <= value <= 1 for value in islice(values, MAX_ALPHAS))
    except UsageError:
        return False


def _parse_decimal(field: str, text: str) -> Decimal:
    try:
        decimal = Decimal(field.strip())
    except InvalidOperation:
        raise UsageError(
            f"alpha: {text!r} is not a number, expected {_FORMS}", hint=_guess_fraction(text)
        ) from None
    if not decimal.is_finite():
        raise UsageError(f"alpha: {text!r} is not finite")
    if len(decimal.as_tuple().digits) > MAX_DIGITS or abs(decimal.adjusted()) > MAX_DIGITS:
        raise UsageError(f"alpha: {text!r} has more than {MAX_DIGITS} digits")
    return decimal


def _plain_text(decimal: Decimal) -> str:
    """Format a decimal without exponent, redundant zeros or a negative zero."""
    return format(_EXACT.plus(_EXACT.normalize(decimal)), "f")

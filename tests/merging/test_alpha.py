from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.errors import UsageError
from wiseft_cli.merging.alpha import Alpha, parse_alphas


def texts(*arguments: str, extrapolate: bool = False) -> list[str]:
    return [alpha.text for alpha in parse_alphas(arguments, extrapolate=extrapolate)]


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("0.5", ["0.5"]),
        (".50", ["0.5"]),
        ("1.000", ["1"]),
        ("-0", ["0"]),
        ("5e-1", ["0.5"]),
        ("1e-7", ["0.0000001"]),
        ("0, 0.5 ,1", ["0", "0.5", "1"]),
        ("0:1:0.25", ["0", "0.25", "0.5", "0.75", "1"]),
        ("1:0:-0.5", ["1", "0.5", "0"]),
        ("0:1:0.4", ["0", "0.4", "0.8"]),
        ("0.5:0.5:0.1", ["0.5"]),
        ("0:0.2:0.1,0.9", ["0", "0.1", "0.2", "0.9"]),
    ],
)
def test_each_form_of_alpha_is_read_exactly(given_text: str, expected: list[str]) -> None:
    assert texts(given_text) == expected


def test_a_range_in_tenths_is_exact() -> None:
    assert texts("0:1:0.1") == ["0", *(f"0.{i}" for i in range(1, 10)), "1"]
    assert [alpha.value for alpha in parse_alphas(["0:1:0.1"])] == [
        float(f"{i / 10:.1f}") for i in range(11)
    ]


def test_repeated_values_are_kept_once_in_the_order_given() -> None:
    assert texts("0.5", "0.50,0.1", "0:0.5:0.25") == ["0.5", "0.1", "0", "0.25"]


@given(st.integers(0, 10**9))
def test_the_value_is_the_double_nearest_to_the_text(billionths: int) -> None:
    text = f"0.{billionths:09d}" if billionths < 10**9 else "1"
    (alpha,) = parse_alphas([text])
    assert alpha == Alpha(alpha.text, float(text))
    assert float(alpha.text) == alpha.value


def test_a_value_outside_the_interval_is_refused_without_extrapolate() -> None:
    with pytest.raises(UsageError) as caught:
        parse_alphas(["0.5,1.5", "-0.1"])
    assert caught.value.message == (
        "alpha 1.5, -0.1 is outside [0, 1]; alpha is the weight of the fine-tuned model"
    )
    assert caught.value.hint == (
        "to extrapolate beyond the two models, use merge with --extrapolate"
    )
    assert texts("-0.1,1.5", extrapolate=True) == ["-0.1", "1.5"]


COMMA = "a comma separates values; "
EXTRAPOLATE = "to extrapolate beyond the two models, use merge with --extrapolate"


@pytest.mark.parametrize(
    ("given_text", "hint"),
    [
        ("50", "did you mean 0.5?"),
        ("50%", "did you mean 0.5?"),
        ("5 %", "did you mean 0.05?"),
        ("33.3", "did you mean 0.333?"),
        ("100", "did you mean 1?"),
        ("0:100:10", "did you mean 0:1:0.1?"),
        ("10,20,100", COMMA + "did you mean 0.1,0.2,1?"),
        ("0,5", COMMA + "did you mean 0.5?"),
        ("0,25", COMMA + "did you mean 0.25 or 0,0.25?"),
        ("0,05", COMMA + "did you mean 0.05?"),
        ("0,5:1:0,1", COMMA + "did you mean 0.5:1:0.1?"),
        ("0:1:0,1", COMMA + "did you mean 0:1:0.1?"),
        ("2", EXTRAPOLATE),
        ("1.5", EXTRAPOLATE),
        ("-0.5", EXTRAPOLATE),
        ("0,1.5", EXTRAPOLATE),
        ("500", EXTRAPOLATE),
    ],
)
def test_per_cent_and_decimal_commas_are_guessed(given_text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_alphas([given_text])
    assert caught.value.hint == hint


def test_a_guess_is_made_for_any_of_several_values() -> None:
    with pytest.raises(UsageError, match="alpha 50 is outside") as caught:
        parse_alphas(iter(["0.5", "50"]))
    assert caught.value.hint == "did you mean 0.5?"


FORMS = "a number such as 0.5, a list such as 0,0.5,1 or a range such as 0:1:0.1"


@pytest.mark.parametrize(
    ("given_text", "message"),
    [
        ("half", f"alpha: 'half' is not a number, expected {FORMS}"),
        ("", f"alpha: '' is not a number, expected {FORMS}"),
        ("0.5,", f"alpha: '0.5,' is not a number, expected {FORMS}"),
        ("0:1:x", f"alpha: '0:1:x' is not a number, expected {FORMS}"),
        ("0:1", "alpha: '0:1' is not a range; expected start:stop:step"),
        ("0:1:0", "alpha: '0:1:0': the step of a range must not be 0"),
        ("0:1:-0.1", "alpha: '0:1:-0.1': steps of -0.1 never get from 0 to 1"),
        ("nan", "alpha: 'nan' is not finite"),
        ("Infinity", "alpha: 'Infinity' is not finite"),
        ("1e-999999999", "alpha: '1e-999999999' has more than 30 digits"),
        ("0:1:1e-9", "alpha: '0:1:1e-9' has more than 1001 values"),
    ],
)
def test_a_malformed_alpha_is_quoted_in_the_error(given_text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_alphas([given_text])
    assert caught.value.message == message


def test_a_missing_alpha_is_refused() -> None:
    with pytest.raises(UsageError, match="missing value"):
        parse_alphas([])

from __future__ import annotations

from tests.reporting.lines import FINETUNED, ZEROSHOT, line, sweep_lines
from wiseft_cli.reporting.alpha_selection import (
    alpha_choices,
    best_alpha,
    render_choices,
    selected_alpha,
)


def test_best_alpha_is_the_numerically_smallest_of_equal_ones() -> None:
    lines = [line("val", 5, alpha=alpha) for alpha in ("0.9", "0.15", "0.2", "1")]
    assert best_alpha(lines, "val") == "0.15"
    assert best_alpha([*lines, line("val", 6, alpha="0.9")], "val") == "0.9"


def test_default_selected_and_oracle_alpha_are_listed_in_this_order() -> None:
    assert render_choices(sweep_lines(select_on="val")) == [
        "alpha 0.5, the default: val 77.00, shift-a 58.00, shift-b 50.00, mean shift 54.00",
        "alpha 1, best on 'val': val 80.50, shift-a 45.00, shift-b 38.00, mean shift 41.50",
        "oracle, each set's best alpha on that set itself: val 80.50 at 1, shift-a 58.00 at 0.5,"
        " shift-b 50.00 at 0.5",
    ]


def test_oracle_is_only_shown_below_another_choice() -> None:
    lines = [item for item in sweep_lines() if item.alpha != "0.5"]
    assert render_choices(lines) == []
    lines = [item for item in sweep_lines(select_on="val") if item.alpha != "0.5"]
    assert len(render_choices(lines)) == 2
    assert render_choices([line("val", 5), line("val", 5, alpha="0.5")]) == []


def test_validation_set_is_excluded_from_the_mean_over_shifts() -> None:
    first, *_ = render_choices(sweep_lines(select_on="shift-b"))
    assert first == "alpha 0.5, the default: val 77.00, shift-a 58.00, shift-b 50.00"


def test_each_line_is_marked_with_its_choices() -> None:
    ensemble = line("val", 999, checkpoints=(ZEROSHOT, FINETUNED), ensemble=True)
    lines = [*sweep_lines(select_on="val"), ensemble]
    found = {
        (item.set_name, item.alpha): marks
        for item, marks in zip(lines, alpha_choices(lines), strict=True)
        if marks
    }
    assert found == {
        ("val", "0.5"): ("default",),
        ("shift-a", "0.5"): ("default", "oracle"),
        ("shift-b", "0.5"): ("default", "oracle"),
        ("val", "1"): ("selected", "oracle"),
        ("shift-a", "1"): ("selected",),
        ("shift-b", "1"): ("selected",),
    }
    assert not any("selected" in marks for marks in alpha_choices(sweep_lines()))


def test_validation_set_without_alphas_selects_nothing() -> None:
    lines = [line("a", 5, reference=True), line("val", 5, selection=True), line("b", 4)]
    assert selected_alpha(lines) is None
    assert alpha_choices(lines) == [(), (), ()]

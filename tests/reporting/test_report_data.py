from __future__ import annotations

from dataclasses import replace

import pytest

from tests.reporting.lines import FINETUNED, ZEROSHOT, digest, line, sweep_lines
from wiseft_cli.errors import ResultsError, UsageError
from wiseft_cli.reporting.report_data import arrange_report, first_line, thin_rows
from wiseft_cli.reporting.results import CheckpointName, MergedBy, ResultLine


def test_headline_says_what_fine_tuning_gained_and_lost_and_what_the_merge_keeps() -> None:
    (headline,) = arrange_report(sweep_lines()).headlines
    assert headline == (
        "Fine-tuning raised val (in-distribution) from 60.00 % to 80.50 % (+20.50 points) and"
        " lowered the mean over 2 shifts from 45.00 % to 41.50 % (-3.50 points); the merge at alpha"
        " 0.5 (the default) reaches 77.00 % on val (in-distribution) (+17.00 points against"
        " zero-shot, -3.50 points against fine-tuned) and 54.00 % on the mean over 2 shifts (+9.00"
        " points against zero-shot, +12.50 points against fine-tuned)."
    )


def test_validation_set_chooses_the_alpha_of_the_headline_and_counts_in_no_mean() -> None:
    report = arrange_report(sweep_lines(select_on="shift-b"))
    assert [(column.title, column.kind) for column in report.columns] == [
        ("val", "reference"),
        ("shift-a", "shift"),
        ("shift-b", "selection"),
        ("average", "average"),
    ]
    (family,) = report.families
    assert family.merge is not None
    assert first_line(family.merge).alpha == "0.5"
    assert family.reason == "the best one on shift-b"


def test_alpha_can_be_chosen_and_must_be_there() -> None:
    (family,) = arrange_report(sweep_lines(), alpha="0.750").families
    assert family.merge is not None
    assert first_line(family.merge).alpha == "0.75"
    with pytest.raises(ResultsError, match=r"--alpha 0\.3: no row"):
        arrange_report(sweep_lines(), alpha="0.3")


def test_means_are_those_of_the_paper() -> None:
    report = arrange_report(sweep_lines())
    row = report.rows[2]
    assert [column.value(row) for column in report.columns] == [0.77, 0.58, 0.5, 0.54, 0.655]


def single(checkpoint: CheckpointName, counts: tuple[int, ...]) -> list[ResultLine]:
    names = ("val", "shift-a")[: len(counts)]
    return [
        line(name, count, checkpoints=(checkpoint,), reference=name == "val")
        for name, count in zip(names, counts, strict=True)
    ]


def test_roles_of_single_checkpoints_make_a_headline() -> None:
    merged = CheckpointName("merged", "merged", digest("2"))
    lines = [
        *single(ZEROSHOT, (600, 500)),
        *single(FINETUNED, (800, 400)),
        *single(merged, (780, 500)),
    ]
    (headline,) = arrange_report(lines).headlines
    assert "raised val" in headline
    assert "the merge reaches 78.00 %" in headline
    assert "0.00 points against zero-shot" in headline
    assert arrange_report(single(ZEROSHOT, (600,))).headlines == []


def test_results_that_contradict_each_other_are_rejected() -> None:
    lines = [*sweep_lines(), line("val", 1, alpha="0.5", reference=True, precision="bf16")]
    with pytest.raises(ResultsError, match="several measurements of the same weights"):
        arrange_report(lines)


def test_results_without_a_reference_are_rejected_with_the_remedy() -> None:
    lines = [replace(at, reference=False) for at in sweep_lines()]
    with pytest.raises(ResultsError, match="no reference") as caught:
        arrange_report(lines)
    assert "--reference: val, shift-a, shift-b" in str(caught.value.hint)
    assert arrange_report(lines, reference="val").headlines
    without = arrange_report(lines, needs_reference=False)
    assert [column.kind for column in without.columns] == ["shift", "shift", "shift", "mean"]


def test_rows_with_missing_sets_are_kept_and_named() -> None:
    lines = [at for at in sweep_lines() if (at.alpha, at.set_name) != ("0.25", "shift-a")]
    report = arrange_report(lines)
    assert report.notes == ("zeroshot to finetuned at alpha 0.25 has no results on shift-a",)
    mean = next(column for column in report.columns if column.kind == "mean")
    assert mean.value(report.rows[1]) is None


def test_thinned_rows_keep_the_end_points_and_the_merge() -> None:
    lines = [
        line(name, 400 + at % 300, alpha=f"{at / 1000:g}", reference=name == "val")
        for at in range(1001)
        for name in ("val", "shift")
    ]
    report = arrange_report(lines)
    rows, n_left_out = thin_rows(report, 30)
    alphas = [first_line(row).alpha for row in rows]
    assert (len(rows), n_left_out) == (30, 971)
    assert {"0", "0.5", "1"} <= set(alphas)
    assert alphas == sorted(alphas, key=float)
    assert thin_rows(report, 2000) == (list(report.rows), 0)


def test_baseline_is_a_row_by_name() -> None:
    lines = [*sweep_lines(), *single(CheckpointName("old", "merged", digest("9")), (500, 300))]
    assert first_line(arrange_report(lines, baseline="old").baseline or {}).value == 0.5
    with pytest.raises(ResultsError, match="--baseline 'olf' is not in the results"):
        arrange_report(lines, baseline="olf")


def test_name_of_several_rows_is_no_baseline() -> None:
    old = [single(CheckpointName("old", "merged", digest(at)), (500, 300)) for at in "89"]
    with pytest.raises(ResultsError, match="--baseline 'old': 2 rows of the results") as caught:
        arrange_report([*sweep_lines(), *old[0], *old[1]], baseline="old")
    assert digest("8") in str(caught.value)
    assert digest("9") in str(caught.value)


@pytest.mark.parametrize("alpha", ["abc", "nan", "", "1/2"])
def test_alpha_that_is_no_number_is_a_usage_error(alpha: str) -> None:
    with pytest.raises(UsageError, match=r"--alpha '.*': expected a number"):
        arrange_report(sweep_lines(), alpha=alpha)


def test_curves_of_a_merge_method_have_their_own_headline_with_the_same_end_points() -> None:
    by_method = [
        replace(line(name, count, alpha="0.5", reference=name == "val"), merged_by=MergedBy("ties"))
        for name, count in (("val", 790), ("shift-a", 600), ("shift-b", 520))
    ]
    plain, ties = arrange_report([*sweep_lines(), *by_method]).headlines
    assert plain.startswith("zeroshot to finetuned: fine-tuning raised val")
    assert "77.00 % on val" in plain
    assert "79.00 % on val (in-distribution) (+19.00 points against zero-shot" in ties

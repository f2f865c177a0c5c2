from __future__ import annotations

from dataclasses import replace

import pytest

from tests.reporting.lines import FINETUNED, ZEROSHOT, digest, line, sweep_lines
from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.curves import (
    arrange_panels,
    collect_curves,
    describe_robustness,
    panel_document,
)
from wiseft_cli.reporting.drawing import single_name
from wiseft_cli.reporting.results import MergedBy, Metric, ResultLine
from wiseft_cli.reporting.statistics import BaselineModel

BASELINES = (
    BaselineModel("a", {"val": 0.2, "shift-a": 0.2, "shift-b": 0.2}),
    BaselineModel("b", {"val": 0.5, "shift-a": 0.5, "shift-b": 0.5}),
    BaselineModel("c", {"val": 0.9, "shift-a": 0.9}),
    BaselineModel("d", {"shift-a": 0.9}),
)


def test_points_have_reference_and_mean_shift_by_rising_alpha() -> None:
    data = collect_curves(sweep_lines()[::-1])
    assert (data.reference, sorted(data.shifts), data.notes) == ("val", ["shift-a", "shift-b"], ())
    (curve,) = data.curves
    assert [row["val"].alpha for row in curve] == ["0", "0.25", "0.5", "0.75", "1"]
    (points,) = arrange_panels(data)[0].curves
    assert [round(point.y.value, 6) for point in points] == [0.45, 0.515, 0.54, 0.51, 0.415]
    assert [point.x.value for point in points] == [0.6, 0.7, 0.77, 0.8, 0.805]


def test_alphas_are_ordered_as_numbers() -> None:
    lines = [
        line(name, 5, alpha=alpha, reference=name == "val")
        for alpha in ("0.95", "0.1", "0.05", "1")
        for name in ("val", "shift")
    ]
    assert [row["val"].alpha for row in collect_curves(lines).curves[0]] == [
        "0.05",
        "0.1",
        "0.95",
        "1",
    ]


def test_each_pair_is_a_curve_and_each_checkpoint_a_point() -> None:
    other = (sweep_lines()[0].checkpoints[0], replace(FINETUNED, digest=digest("2")))
    lines = [
        *sweep_lines(),
        *(replace(line, checkpoints=other) for line in sweep_lines()),
        *(line(name, 5, reference=name == "val") for name in ("val", "shift-a", "shift-b")),
    ]
    data = collect_curves(lines)
    assert [len(curve) for curve in data.curves] == [5, 5]
    assert [row["val"].checkpoints_name for row in data.singles] == ["zeroshot"]


def test_later_line_of_the_same_measurement_is_used() -> None:
    newer = line("val", 999, alpha="0.5", reference=True)
    (curve,) = collect_curves([*sweep_lines(), newer]).curves
    assert curve[2]["val"].value == 0.999


def test_weights_without_results_on_every_set_are_left_out_with_a_note() -> None:
    data = collect_curves([*sweep_lines(), line("val", 5, alpha="0.9", reference=True)])
    assert len(data.curves[0]) == 5
    assert data.notes == (
        "zeroshot to finetuned at alpha 0.9 is left out: no results on shift-a, shift-b",
    )


def test_another_reference_can_be_chosen() -> None:
    data = collect_curves(sweep_lines(), reference="shift-a")
    assert data.shifts == ("val", "shift-b")
    with pytest.raises(ResultsError, match=r"^--reference 'x' is not in the results: val, shift-a"):
        collect_curves(sweep_lines(), reference="x")


def test_validation_set_is_not_a_shift_unless_it_is_named() -> None:
    lines = sweep_lines(select_on="shift-b")
    data = collect_curves(lines)
    assert data.shifts == ("shift-a",)
    assert data.notes == ("shift-b is left out: it is a validation set; --shifts draws it",)
    data = collect_curves(lines, shifts=["shift-a", "shift-b"])
    assert data.shifts == ("shift-a", "shift-b")
    assert data.notes == ("shift-b chose alpha, so its accuracy at that alpha is optimistic",)


def test_validation_set_of_one_run_is_left_out_for_all_runs_of_a_file() -> None:
    single = [line(name, 5, reference=name == "val") for name in ("val", "shift-a", "shift-b")]
    assert collect_curves([*single, *sweep_lines(select_on="shift-a")]).shifts == ("shift-b",)


def test_reference_that_chose_alpha_is_drawn_with_a_note() -> None:
    data = collect_curves(sweep_lines(select_on="val"))
    assert (data.reference, data.shifts) == ("val", ("shift-a", "shift-b"))
    assert data.notes == ("val chose alpha, so its accuracy at that alpha is optimistic",)


def test_results_without_a_shift_beside_the_validation_set_are_an_error() -> None:
    lines = [line("a", 5, reference=True), line("b", 5, selection=True)]
    with pytest.raises(ResultsError, match="the validation set 'b', and no distribution shift"):
        collect_curves(lines)


def test_sets_with_the_same_images_are_noted() -> None:
    shifts = [line(name, 5, data_fingerprint=digest("f")) for name in ("a", "b")]
    lines = [line("val", 5, reference=True), *shifts]
    (note,) = collect_curves(lines).notes
    assert note.startswith("a and b have the same data fingerprint")


def test_results_that_make_no_figure_are_rejected() -> None:
    with pytest.raises(ResultsError, match=r"^the results hold no line$"):
        collect_curves([])
    with pytest.raises(ResultsError, match=r"one set, 'val', and no distribution shift$"):
        collect_curves([line("val", 5, reference=True)])
    with pytest.raises(ResultsError, match=r"^the results mark no reference, expected one$"):
        collect_curves([line("a", 5), line("b", 5)])
    with pytest.raises(ResultsError, match=r"mark 2 reference sets \(a, b\), expected one$"):
        collect_curves([line("a", 5, reference=True), line("b", 5, reference=True)])
    with pytest.raises(ResultsError, match=r"^no weights were evaluated on every set:\n  zeroshot"):
        collect_curves([line("a", 5, reference=True), line("b", 5, alpha="0.5")])


def test_same_weights_on_changed_data_are_rejected() -> None:
    changed = replace(sweep_lines()[0], data_fingerprint=digest("e"))
    with pytest.raises(ResultsError) as caught:
        collect_curves([*sweep_lines(), changed])
    assert caught.value.message == (
        "the results hold several measurements of the same weights:\n"
        "  zeroshot to finetuned at alpha 0 on 'val'"
    )


def test_shifts_can_be_chosen_from_the_results_only() -> None:
    data = collect_curves(sweep_lines(), shifts=["shift-b"])
    assert data.shifts == ("shift-b",)
    assert [row["shift-b"].value for row in data.curves[0]] == [0.4, 0.47, 0.5, 0.48, 0.38]
    with pytest.raises(ResultsError, match="--shifts sketch: not in the results: val, shift-a, "):
        collect_curves(sweep_lines(), shifts=["shift-a", "sketch"])
    with pytest.raises(ResultsError, match="--shifts val: is the reference, not a shift"):
        collect_curves(sweep_lines(), shifts=["val"])


def test_set_with_two_primary_metrics_is_rejected() -> None:
    other = [
        replace(line, primary="macro_f1", metrics={"macro_f1": Metric(0.5)}, alpha="0.9")
        for line in sweep_lines()[1:2]
    ]
    with pytest.raises(ResultsError, match="shift-a: macro_f1, top1"):
        collect_curves([*sweep_lines(), *other])


def test_output_ensemble_is_a_single_point() -> None:
    lines = [
        replace(line, ensemble=True, alpha=None) for line in sweep_lines() if line.alpha == "0.5"
    ]
    data = collect_curves([*sweep_lines(), *lines])
    (single,) = data.singles
    assert single["val"].checkpoints_name == "output ensemble of zeroshot and finetuned"
    assert len(data.curves[0]) == 5


def test_panels_are_the_mean_and_one_per_shift() -> None:
    mean, a, b = arrange_panels(collect_curves(sweep_lines()))
    assert [panel.name for panel in (mean, a, b)] == ["mean", "shift-a", "shift-b"]
    assert [point.y.value for point in mean.curves[0]] == pytest.approx(
        [0.45, 0.515, 0.54, 0.51, 0.415]
    )
    assert [point.y.value for point in a.curves[0]] == [0.5, 0.56, 0.58, 0.54, 0.45]
    assert [point.y.low is None for point in (mean.points[0], a.points[0])] == [True, False]
    assert a.points[0].half_images == (0.0005, 0.0005)
    assert mean.points[0].half_images == (0.0005, 0.00025)


def test_single_shift_has_no_panel_of_the_mean() -> None:
    lines = [line for line in sweep_lines() if line.set_name != "shift-b"]
    assert [panel.name for panel in arrange_panels(collect_curves(lines))] == ["shift-a"]


def test_baseline_model_is_in_the_panels_whose_sets_it_has() -> None:
    mean, a, b = arrange_panels(collect_curves(sweep_lines()), BASELINES)
    assert [len(panel.baselines) for panel in (mean, a, b)] == [2, 3, 2]
    assert [panel.fit.n_models for panel in (mean, a, b) if panel.fit] == [2, 3, 2]


def test_panel_document_has_every_point_with_its_effective_robustness() -> None:
    mean, *_ = arrange_panels(collect_curves(sweep_lines()), BASELINES)
    document = panel_document(mean)
    # The baselines lie where both accuracies are equal.
    by_alpha = {point["alpha"]: point for point in document["points"]}
    assert by_alpha["0.5"]["effective_robustness"] == pytest.approx(0.54 - 0.77)
    assert [alpha for alpha, point in by_alpha.items() if point["oracle"]] == ["0.5"]
    (sentence,) = describe_robustness([mean])
    assert sentence.startswith(
        "effective robustness on mean, in points: zeroshot to finetuned at al"
    )
    assert "at alpha 0.5 (oracle) -23.00" in sentence
    assert "0.25" not in sentence
    plain, *_ = arrange_panels(collect_curves(sweep_lines()))
    assert panel_document(plain)["points"][0]["effective_robustness"] is None
    assert list(describe_robustness([plain])) == []


def test_oracle_is_the_equal_point_of_smallest_alpha() -> None:
    lines = [
        line(name, 5, alpha=alpha, reference=name == "val")
        for alpha in ("0", "0.5", "1")
        for name in ("val", "shift")
    ]
    (panel,) = arrange_panels(collect_curves(lines))
    assert [point.of.alpha for point in panel.oracles] == ["0"]


def test_methods_on_the_same_checkpoints_are_curves_of_their_own() -> None:
    def rows(merged_by: MergedBy | None, *alphas: str | None) -> list[ResultLine]:
        return [
            line(name, 500, alpha=alpha, merged_by=merged_by, reference=name == "val", **pair)
            for alpha in alphas
            for name in ("val", "shift")
        ]

    pair = {"checkpoints": (ZEROSHOT, FINETUNED)}
    ties = MergedBy("ties", {"density": "0.2"})
    lines = [*rows(None, "0", "1"), *rows(ties, "1", "0.5"), *rows(MergedBy("slerp"), "0.5")]
    data = collect_curves([*lines, *rows(MergedBy("model-stock"), None)])
    assert [[row["val"].weights_name for row in curve] for curve in data.curves] == [
        ["zeroshot to finetuned at alpha 0", "zeroshot to finetuned at alpha 1"],
        [
            "zeroshot to finetuned by ties (density 0.2) at alpha 0.5",
            "zeroshot to finetuned by ties (density 0.2) at alpha 1",
        ],
        ["zeroshot to finetuned by slerp at alpha 0.5"],
    ]
    (panel,) = arrange_panels(data)
    assert [single_name(point) for point in panel.singles] == [
        "zeroshot to finetuned by model-stock"
    ]
    documents = panel_document(panel)["points"]
    assert [point.get("method") for point in documents][-2:] == ["slerp", "model-stock"]

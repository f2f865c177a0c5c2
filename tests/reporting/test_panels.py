from __future__ import annotations

import pytest

from tests.reporting.lines import line, sweep_lines
from wiseft_cli.reporting.baselines import BaselineModel
from wiseft_cli.reporting.curves import collect_curves
from wiseft_cli.reporting.panels import arrange_panels, oracle_of, panel_document, robustness_lines

BASELINES = (
    BaselineModel("a", {"val": 0.2, "shift-a": 0.2, "shift-b": 0.2}),
    BaselineModel("b", {"val": 0.5, "shift-a": 0.5, "shift-b": 0.5}),
    BaselineModel("c", {"val": 0.9, "shift-a": 0.9}),
    BaselineModel("d", {"shift-a": 0.9}),
)


def test_there_is_a_panel_of_the_mean_and_one_for_each_shift() -> None:
    mean, a, b = arrange_panels(collect_curves(sweep_lines()))
    assert [panel.name for panel in (mean, a, b)] == ["mean", "shift-a", "shift-b"]
    assert [point.y.value for point in mean.curves[0]] == pytest.approx(
        [0.45, 0.515, 0.54, 0.51, 0.415]
    )
    assert [point.y.value for point in a.curves[0]] == [0.5, 0.56, 0.58, 0.54, 0.45]
    assert [point.y.low is None for point in (mean.points[0], a.points[0])] == [True, False]
    assert a.points[0].half_images == (0.0005, 0.0005)
    assert mean.points[0].half_images == (0.0005, 0.00025)


def test_one_shift_is_its_own_mean() -> None:
    lines = [line for line in sweep_lines() if line.set_name != "shift-b"]
    assert [panel.name for panel in arrange_panels(collect_curves(lines))] == ["shift-a"]


def test_a_baseline_model_is_in_the_panels_whose_sets_it_has() -> None:
    mean, a, b = arrange_panels(collect_curves(sweep_lines()), BASELINES)
    assert [len(panel.baselines) for panel in (mean, a, b)] == [2, 3, 2]
    assert [panel.fit.n_models for panel in (mean, a, b) if panel.fit] == [2, 3, 2]


def test_the_document_has_every_point_with_its_effective_robustness() -> None:
    mean, *_ = arrange_panels(collect_curves(sweep_lines()), BASELINES)
    document = panel_document(mean)
    # The baselines lie where both accuracies are equal.
    by_alpha = {point["alpha"]: point for point in document["points"]}
    assert by_alpha["0.5"]["effective_robustness"] == pytest.approx(0.54 - 0.77)
    assert [alpha for alpha, point in by_alpha.items() if point["oracle"]] == ["0.5"]
    (told,) = robustness_lines([mean])
    assert told.startswith("effective robustness on mean, in points: zeroshot to finetuned at al")
    assert "at alpha 0.5 (oracle) -23.00" in told
    assert "0.25" not in told
    plain, *_ = arrange_panels(collect_curves(sweep_lines()))
    assert panel_document(plain)["points"][0]["effective_robustness"] is None
    assert list(robustness_lines([plain])) == []


def test_of_equal_points_the_one_nearest_to_zero_shot_is_the_oracle() -> None:
    lines = [
        line(name, 5, alpha=alpha, reference=name == "val")
        for alpha in ("0", "0.5", "1")
        for name in ("val", "shift")
    ]
    (panel,) = arrange_panels(collect_curves(lines))
    assert oracle_of(panel.curves[0]).of.alpha == "0"

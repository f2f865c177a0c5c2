from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.reporting.lines import FINETUNED, digest, line, sweep_lines
from tests.reporting.test_figure import BASELINES
from wiseft_cli.errors import ResultsError, UsageError
from wiseft_cli.reporting.figure import plot_results
from wiseft_cli.reporting.results import ResultLine
from wiseft_cli.reporting.statistics import MODEL_COLUMN


@contextmanager
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Collect the figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *words: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        yield figures


@pytest.fixture
def baseline_csv(tmp_path: Path) -> Path:
    rows = [[MODEL_COLUMN, "val", "shift-a", "shift-b"]]
    rows += [[model.name, *map(str, model.accuracies.values())] for model in BASELINES]
    (tmp_path / "models.csv").write_text("\n".join(map(",".join, rows)))
    return tmp_path / "models.csv"


def test_bars_have_a_group_per_set_and_a_bar_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with drawn(monkeypatch) as figures:
        plot_results(sweep_lines(), kind="bars")
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "val",
        "shift-a",
        "shift-b",
        "mean shift",
    ]
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers if len(bars) == 4]
    assert heights[2] == pytest.approx([77.0, 58.0, 50.0, 54.0])
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()][2] == "alpha 0.5"


def test_many_rows_have_no_bars_but_the_end_points_do(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        line(name, 500 + at, alpha=f"{at / 20:g}", reference=name == "val")
        for at in range(21)
        for name in ("val", "shift")
    ]
    with drawn(monkeypatch) as figures:
        plot = plot_results(lines, kind="bars")
    assert plot.warnings == ("18 rows have no bars; the end points and alpha 0.5 do",)
    assert len(figures[0].legends[0].get_texts()) == 3


def test_accuracy_over_alpha_marks_the_choice_of_the_validation_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with drawn(monkeypatch) as figures:
        plot_results(sweep_lines(select_on="shift-b"), kind="alpha")
    (axes,) = figures[0].axes
    named = {str(item.get_label()): np.asarray(item.get_xydata()) for item in axes.get_lines()}
    assert list(named) == ["val", "shift-a", "best alpha on shift-b"]
    assert named["val"] == pytest.approx(
        np.array([[0, 60], [0.25, 70], [0.5, 77], [0.75, 80], [1, 80.5]])
    )
    assert set(named["best alpha on shift-b"][:, 0]) == {0.5}


def test_effective_robustness_is_drawn_in_points_above_the_baselines(
    monkeypatch: pytest.MonkeyPatch, baseline_csv: Path
) -> None:
    with drawn(monkeypatch) as figures:
        plot = plot_results(
            sweep_lines(), kind="effective-robustness", baseline_csv=baseline_csv, panels=["mean"]
        )
    (axes,) = figures[0].axes
    curve = next(item for item in axes.get_lines() if "zeroshot" in str(item.get_label()))
    (panel,) = plot.panels
    expected = [100 * (panel.effective_robustness(point) or 0) for point in panel.points]
    assert np.asarray(curve.get_ydata()) == pytest.approx(expected)
    assert axes.get_ylabel() == "effective robustness: mean (points)"
    with pytest.raises(UsageError, match="baseline models"):
        plot_results(sweep_lines(), kind="effective-robustness")
    baseline_csv.write_text("\n".join(baseline_csv.read_text().split("\n")[:2]))
    with pytest.raises(ResultsError, match="needs a fit"):
        plot_results(sweep_lines(), kind="effective-robustness", baseline_csv=baseline_csv)


def many_shifts() -> list[ResultLine]:
    return [
        line(f"set-{at}", 500 + at, alpha=alpha, reference=at == 0)
        for alpha in ("0", "0.5", "1")
        for at in range(5)
    ]


def test_default_has_one_to_three_panels_and_others_are_asked_for() -> None:
    def names(lines: list[ResultLine], *panels: str) -> list[str]:
        return [panel.name for panel in plot_results(lines, panels=panels).panels]

    assert names(sweep_lines()) == ["mean", "shift-a", "shift-b"]
    assert names(many_shifts()) == ["mean"]
    assert names(many_shifts(), "set-2", "mean") == ["set-2", "mean"]
    assert names(many_shifts(), "all") == ["mean", "set-1", "set-2", "set-3", "set-4"]
    with pytest.raises(UsageError, match="--panels set-9: not a shift; there are set-1"):
        plot_results(many_shifts(), panels=["set-9"])
    with pytest.raises(UsageError, match="one panel"):
        plot_results(many_shifts(), panels=["mean"], kind="bars")


def test_single_panel_of_a_mean_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with drawn(monkeypatch) as figures:
        plot_results(many_shifts())
    assert figures[0].axes[0].get_ylabel() == "mean over 4 shifts (%)"


@pytest.mark.parametrize("style", ["paper", "slide", "dark"])
def test_styles_have_their_size_text_and_colours(
    style: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with drawn(monkeypatch) as figures:
        plot = plot_results(sweep_lines(), style=style, panels=["mean"])
        plot_results(sweep_lines(), style=style, width_in=4)
    alone, several = figures
    width, size, dark = {
        "paper": (3.3, 8, False),
        "slide": (10.0, 18, False),
        "dark": (5.6, 9.5, True),
    }[style]
    assert alone.get_figwidth() == pytest.approx(width)
    assert several.get_figwidth() == pytest.approx(4)
    (label,) = {text.get_fontsize() for text in alone.axes[0].get_xticklabels()}
    assert label == size
    pixels = np.asarray(Image.open(io.BytesIO(plot.picture)).convert("L"))
    assert (pixels[0, 0] < 50) == dark
    if style != "slide":  # panels are below each other where they are too narrow
        assert len({round(axes.get_position().x0, 2) for axes in several.axes}) == 1


def test_chord_joins_the_end_points_of_each_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(FINETUNED, name="other", digest=digest("3"))
    second = [
        replace(at, checkpoints=(at.checkpoints[0], other)) for at in sweep_lines() if at.alpha
    ]
    with drawn(monkeypatch) as figures:
        plot_results([*sweep_lines(), *second], panels=["mean"])
    chords = [
        np.asarray(item.get_xydata())
        for item in figures[0].axes[0].get_lines()
        if len(item.get_xydata()) == 2
    ]
    assert len(chords) == 2
    assert chords[0] == pytest.approx(np.array([[60, 45], [80.5, 41.5]]))
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert texts[-2:] == ["zeroshot to finetuned", "zeroshot to other"]


@pytest.mark.parametrize(
    "options", [{"kind": "pie"}, {"style": "neon"}, {"width_in": 0.5}, {"width_in": float("nan")}]
)
def test_unknown_values_are_rejected(options: Any) -> None:
    with pytest.raises(UsageError):
        plot_results(sweep_lines(), **options)


@pytest.mark.parametrize("kind", ["bars", "alpha"])
def test_every_kind_has_the_same_bytes_each_time(kind: Any) -> None:
    first, second = (plot_results(sweep_lines(), kind=kind, style="paper") for _ in range(2))
    assert first.picture == second.picture


def test_runs_are_averaged_over_their_seeds() -> None:
    lines = [
        replace(
            at,
            checkpoints=(at.checkpoints[0], replace(FINETUNED, digest=f"sha256:{seed}")),
            extra={"fine_tuning": {"recipe": {"lr": 1}, "seed": seed, "train": []}},
        )
        for seed in (0, 1)
        for at in sweep_lines()
    ]
    plot = plot_results(lines, group_by="recipe")
    assert "mean and standard deviation over 2 runs, seeds 0, 1" in plot.warnings[0]
    assert len(plot.panels[0].curves) == 1

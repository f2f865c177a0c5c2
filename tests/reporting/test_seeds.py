from __future__ import annotations

from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import pytest

from tests.reporting.lines import ZEROSHOT, digest, line
from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.report_data import arrange_report
from wiseft_cli.reporting.report_text import render_csv, render_markdown, render_tex
from wiseft_cli.reporting.results import CheckpointName, ResultLine
from wiseft_cli.reporting.seeds import SEEDS, average_over_seeds

COUNTS = {0: (770, 580, 500), 1: (780, 600, 470), 2: (760, 590, 510)}


def run(seed: int, counts: tuple[int, ...], *, lr: float = 1e-3, **more: Any) -> list[ResultLine]:
    tuned = CheckpointName(f"run-{seed}", "finetuned", digest(f"{seed}{lr}"[0]))
    tuned = replace(tuned, digest=f"sha256:{seed}-{lr}")
    fine_tuning = {"recipe": {"lr": lr, "epochs": 10}, "seed": seed, "train": [{"n_images": 5}]}
    return [
        line(
            name,
            count,
            alpha="0.5",
            checkpoints=(ZEROSHOT, tuned),
            reference=name == "val",
            extra={"fine_tuning": fine_tuning | more},
        )
        for name, count in zip(("val", "a", "b"), counts, strict=True)
    ]


def runs(**more: Any) -> list[ResultLine]:
    return [at for seed, counts in COUNTS.items() for at in run(seed, counts, **more)]


def test_runs_of_one_recipe_become_mean_and_standard_deviation() -> None:
    averaged, notes = average_over_seeds(runs())
    assert [at.set_name for at in averaged] == ["val", "a", "b"]
    values = [counts[0] / 1000 for counts in COUNTS.values()]
    assert averaged[0].value == pytest.approx(fmean(values))
    assert averaged[0].metric.high == pytest.approx(fmean(values) + stdev(values))
    assert averaged[0].extra[SEEDS] == [0, 1, 2]
    assert averaged[0].checkpoints_name == "zeroshot to finetuned (3 seeds)"
    (note,) = notes
    assert note.endswith("mean and standard deviation over 3 runs, seeds 0, 1, 2")


def test_deviation_of_a_mean_over_shifts_is_that_of_the_means_of_the_runs() -> None:
    averaged, _ = average_over_seeds(runs())
    text = render_markdown(arrange_report(averaged))
    means = [fmean(counts[1:]) / 10 for counts in COUNTS.values()]
    assert f"{fmean(means):.2f} ± {stdev(means):.2f}" in text
    assert "± is the standard deviation over seeds." in text
    assert f"{fmean(means):.1f} $\\pm$ {stdev(means):.2f}" in render_tex(arrange_report(averaged))
    assert render_csv(arrange_report(averaged)).splitlines()[0].startswith("model,alpha,seeds,val,")


def test_recipes_and_training_sets_stay_apart() -> None:
    lines = [*runs(), *run(0, (700, 500, 400), lr=2e-3)]
    averaged, notes = average_over_seeds(lines)
    assert {at.checkpoints_name for at in averaged} == {
        "zeroshot to finetuned (lr 0.001, 3 seeds)",
        "zeroshot to finetuned (lr 0.002, 1 seed)",
    }
    assert notes[1].endswith("a single run, seed 0, without a standard deviation")
    assert averaged[-1].metric.low is None
    other_images = run(7, (700, 500, 400), train=[{"n_images": 6}])
    averaged, _ = average_over_seeds([*runs(), *other_images])
    assert len(averaged) == 6
    assert len({at.checkpoints_name for at in averaged}) == 2


def test_lines_without_a_recipe_stay_as_they_are() -> None:
    plain = line("val", 600, reference=True)
    averaged, _ = average_over_seeds([plain, *runs()])
    assert averaged[0] == plain
    with pytest.raises(ResultsError, match="no line of the results states the recipe"):
        average_over_seeds([plain])


def test_order_of_the_files_does_not_matter() -> None:
    lines = runs()
    first, _ = average_over_seeds(lines)
    second, _ = average_over_seeds(lines[3:] + lines[:3])
    assert [at.metrics for at in first] == [at.metrics for at in second]


def test_two_runs_with_one_seed_are_not_two_seeds() -> None:
    again = [
        replace(at, checkpoints=(ZEROSHOT, CheckpointName("again", "finetuned", digest("a"))))
        for at in run(1, (790, 600, 480))
    ]
    with pytest.raises(ResultsError, match="runs of one recipe have the same seed") as caught:
        average_over_seeds([*runs(), *again])
    assert f"seed 1 on 'val': zeroshot to again at alpha 0.5 ({digest('a')})" in str(caught.value)
    assert "seed 1 on 'val': zeroshot to run-1 at alpha 0.5" in str(caught.value)

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.reporting.lines import FINETUNED, ZEROSHOT, digest, line, sweep_lines
from wiseft_cli.reporting.results import CheckpointName, MergedBy, Metric
from wiseft_cli.reporting.table import implausible_results, mean_over, render_table


def test_sweep_table_has_one_row_per_alpha_and_one_column_per_set() -> None:
    assert render_table(sweep_lines()).splitlines() == [
        "checkpoint             alpha     val  shift-a  shift-b  mean shift  average",
        "zeroshot to finetuned  0      60.00    50.00    40.00       45.00    52.50",
        "zeroshot to finetuned  0.25   70.00    56.00    47.00       51.50    60.75",
        "zeroshot to finetuned  0.5    77.00    58.00*   50.00*      54.00*   65.50*",
        "zeroshot to finetuned  0.75   80.00    54.00    48.00       51.00    65.50*",
        "zeroshot to finetuned  1      80.50*   45.00    38.00       41.50    61.00",
        "",
        "val: in-distribution, top1 in %, 1000 images, 10 classes joined by id,"
        " 95 % intervals within +-3.08",
        "shift-a: shift, top1 in %, 1000 images, 10 classes joined by id,"
        " 95 % intervals within +-3.15",
        "shift-b: shift, top1 in %, 1000 images, 10 classes joined by id,"
        " 95 % intervals within +-3.15",
    ]


def test_single_checkpoint_on_a_single_set_has_no_alpha_mean_or_mark() -> None:
    assert render_table([line("val", 5, reference=True)]).splitlines()[:2] == [
        "checkpoint   val",
        "zeroshot    0.50",
    ]


def test_reference_is_the_first_column_and_all_equal_best_values_are_marked() -> None:
    lines = [
        line(name, 5, reference=name == "val", checkpoints=(checkpoint,))
        for name in ("shift", "val")
        for checkpoint in (ZEROSHOT, FINETUNED)
    ]
    assert render_table(lines).splitlines()[:3] == [
        "checkpoint    val  shift  average",
        "zeroshot    0.50*  0.50*    0.50*",
        "finetuned   0.50*  0.50*    0.50*",
    ]


def test_long_names_are_never_cut() -> None:
    name = "a-very-long-name-" * 20
    text = render_table([replace(line(name, 5), checkpoints=(replace(ZEROSHOT, name=name),))])
    assert text.splitlines()[0].endswith(name)
    assert text.splitlines()[1].startswith(name)


def test_files_with_equal_tensors_have_separate_rows() -> None:
    twin = replace(ZEROSHOT, name="copy")
    rows = render_table([line("val", 5), line("val", 5, checkpoints=(twin,))]).splitlines()
    assert [row.split()[0] for row in rows[1:3]] == ["zeroshot", "copy"]


def test_missing_set_is_shown_as_a_dash_and_has_no_mean() -> None:
    lines = [*sweep_lines(), line("val", 700, reference=True)]
    assert render_table(lines).splitlines()[6].split() == ["zeroshot", "70.00", *"----"]
    assert mean_over({"a": line("a", 5)}, ["a", "b"]) is None


def test_rows_without_a_common_set_are_in_separate_tables() -> None:
    lines = [
        line(name, count, reference=name in ("a", "c"), checkpoints=(checkpoint,))
        for name, checkpoint, count in (
            ("a", ZEROSHOT, 500),
            ("b", ZEROSHOT, 300),
            ("c", FINETUNED, 800),
            ("d", FINETUNED, 600),
        )
    ]
    first, facts, second, _ = render_table(lines).split("\n\n")
    assert first.splitlines() == [
        "checkpoint      a      b  average",
        "zeroshot    50.00  30.00    40.00",
    ]
    assert [fact.split(",")[0] for fact in facts.splitlines()] == ["a: in-distribution", "b: shift"]
    assert second.splitlines() == [
        "checkpoint      c      d  average",
        "finetuned   80.00  60.00    70.00",
    ]
    bridge = line("a", 100, checkpoints=(FINETUNED,))
    assert render_table([*lines, bridge]).count("\n\n") == 1


def test_number_of_unreadable_images_is_shown() -> None:
    assert "1000 images and 3 unreadable," in render_table([line("val", 5, n_unreadable=3)])


def test_results_at_chance_on_few_images_or_one_class_are_implausible() -> None:
    assert implausible_results([line("val", 500)]) == ()
    lines = [line("val", 100, alpha="0"), line("val", 500, alpha="1")]
    assert implausible_results(lines) == (
        "image set 'val': 1 of 2 rows no better than chance (10.00 %); check that the labels"
        " match the head's classes and their order",
    )
    assert implausible_results([line("val", 90, 99)]) == (
        "image set 'val': only 99 images, so the intervals are wide",
    )
    assert implausible_results([line("val", 1000, n_classes=1)]) == (
        "image set 'val': has a single class of the head, so every image counts as right",
    )


@pytest.mark.parametrize(
    ("n_correct", "doubt"),
    [
        (0, "no better than chance (10.00 %)"),
        (100, "no better than chance (10.00 %)"),
        (118, "cannot be distinguished from chance (10.00 %) with few images"),
    ],
)
def test_results_are_compared_with_chance_by_their_interval(n_correct: int, doubt: str) -> None:
    assert f"every row {doubt}; check" in implausible_results([line("val", n_correct)])[0]


def test_ensemble_has_its_own_label_and_a_validation_set_is_not_a_shift() -> None:
    lines = [
        line(
            name,
            count,
            reference=name == "val",
            selection=name == "choice",
            checkpoints=pair,
            ensemble=len(pair) > 1,
        )
        for pair in ((ZEROSHOT,), (ZEROSHOT, FINETUNED))
        for name, count in (("val", 800), ("choice", 900), ("a", 500), ("b", 300))
    ]
    rows = render_table(lines).splitlines()
    assert rows[2].split()[:5] == ["zeroshot", "to", "finetuned", "output", "ensemble"]
    assert rows[2].split()[-2:] == ["40.00*", "60.00*"]
    assert rows[5].startswith("choice: validation, top1 in %")


def test_reference_that_chooses_alpha_is_described_as_both() -> None:
    rows = render_table([line("val", 5, reference=True, selection=True)]).splitlines()
    assert rows[-1].startswith("val: in-distribution and validation, top1")


def test_metric_without_interval_is_marked_so() -> None:
    lines = [line("val", 5, metrics={"top1": Metric(0.5, 0.4, 0.6), "macro_f1": Metric(0.5)})]
    text = render_table([replace(lines[0], primary="macro_f1")])
    assert "val: shift, macro_f1 in %" in text
    assert text.endswith("joined by id, no interval")


def test_set_far_below_the_others_in_every_row_is_implausible() -> None:
    low = [line("odd", 200, alpha=alpha) for alpha in ("0", "1")]
    others = [line(name, 700, alpha=alpha) for name in ("a", "b") for alpha in ("0", "1")]
    assert implausible_results([*low, *others]) == (
        "image set 'odd': far below the same weights on the other sets; check the class order"
        " and the labels",
    )
    assert implausible_results([*low[:1], line("odd", 400, alpha="1"), *others]) == ()
    assert implausible_results([line("odd", 400), line("a", 800)]) == ()


def test_equal_means_are_all_marked_although_their_last_bits_differ() -> None:
    lines = [
        *(line("val", 800, alpha="0", reference=True), line("a", 798, alpha="0")),
        *(line("b", 800, alpha="0"), line("val", 800, alpha="1", reference=True)),
        *(line("a", 818, alpha="1"), line("b", 780, alpha="1")),
    ]
    rows = [row.split() for row in render_table(lines).splitlines() if "finetuned" in row]
    assert [row[-2] for row in rows] == ["79.90*", "79.90*"]


def test_rows_of_methods_have_a_column_for_the_method() -> None:
    seeds = [CheckpointName(f"seed{at}", "finetuned", digest(str(at))) for at in (1, 2)]
    ties = MergedBy("ties", {"density": "0.2"}, ("1/2", "1/2"))
    rows = render_table(
        [
            line("val", 500, alpha="0.3", checkpoints=(ZEROSHOT, *seeds), merged_by=ties),
            line("val", 600, checkpoints=(ZEROSHOT, *seeds), merged_by=MergedBy("model-stock")),
            line("val", 400, checkpoints=tuple(seeds), merged_by=MergedBy("soup")),
            line("val", 300),
        ]
    ).splitlines()
    assert rows[0].split() == ["checkpoint", "method", "alpha", "val"]
    assert rows[1].startswith("zeroshot to seed1 and seed2  ties (density 0.2)  0.3    50.00")
    assert rows[2].split()[-2:] == ["model-stock", "60.00*"]
    assert rows[3].startswith("seed1 and seed2              soup ")
    assert rows[4].split() == ["zeroshot", "30.00"]

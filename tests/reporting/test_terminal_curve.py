from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tests.reporting.lines import line, sweep_lines
from wiseft_cli.reporting.results import MergedBy
from wiseft_cli.reporting.table import render_table, table_columns
from wiseft_cli.reporting.terminal_curve import HEIGHT, render_terminal_curve


def test_curve_has_the_reference_and_the_mean_shift_within_the_width() -> None:
    text = render_terminal_curve(sweep_lines(), width=60)
    *rows, legend = text.splitlines()
    assert legend == "* val, o mean shift, in % over alpha"
    assert len(rows) == HEIGHT
    assert max(map(len, rows)) <= 60
    assert "\x1b" not in text
    top = next(row for row in rows if "*" in row)
    assert "80.5" in top  # the highest value is at the top
    assert "o" in text


def test_one_line_is_drawn_per_curve_and_only_over_several_alphas() -> None:
    by_method = [replace(at, merged_by=MergedBy("ties")) for at in sweep_lines()]
    legend = render_terminal_curve([*sweep_lines(), *by_method], width=60).splitlines()[-1]
    assert "* val of zeroshot to finetuned" in legend
    assert "+ val of zeroshot to finetuned by ties" in legend
    few = [at for at in sweep_lines() if at.alpha in ("0", "1")]
    assert render_terminal_curve(few, width=60) == ""
    assert render_terminal_curve([line("val", 5, reference=True)], width=60) == ""


def test_nothing_is_drawn_without_plotext(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotext", None)
    assert render_terminal_curve(sweep_lines(), width=60) == ""


def test_wide_tables_are_folded_by_sets_and_lose_no_number() -> None:
    whole = render_table(sweep_lines())
    folded = render_table(sweep_lines(), width=60)
    *blocks, facts = folded.split("\n\n")
    assert len(blocks) == 2
    assert max(len(row) for block in blocks for row in block.splitlines()) <= 60
    assert all(block.splitlines()[0].startswith("checkpoint") for block in blocks)
    assert sorted(set(folded.split())) == sorted(set(whole.split()))
    assert facts == whole.split("\n\n")[1]
    assert render_table(sweep_lines(), width=200) == whole
    narrow = render_table(sweep_lines(), width=10)  # one column per block, never less
    assert len(narrow.split("\n\n")) == 6


def test_columns_can_be_chosen_and_may_be_other_metrics() -> None:
    lines = [replace(at, metrics={"top1": at.metric, "other": at.metric}) for at in sweep_lines()]
    header = render_table(lines, columns=["average", "val:other", "val"]).splitlines()[0]
    assert header.split()[2:] == ["average", "val:other", "val"]
    assert {"val", "mean shift", "average", "shift-a:other"} <= set(table_columns(lines))

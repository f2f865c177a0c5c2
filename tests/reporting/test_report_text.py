from __future__ import annotations

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reporting.lines import line, sweep_lines
from wiseft_cli.reporting.gates import judge_gate, parse_gate
from wiseft_cli.reporting.report import append_summary
from wiseft_cli.reporting.report_data import arrange_report
from wiseft_cli.reporting.report_text import (
    markdown_text,
    render_csv,
    render_markdown,
    render_tex,
    tex_text,
)
from wiseft_cli.reporting.statistics import read_baselines


def test_markdown_has_the_headline_the_table_the_gates_and_the_figure() -> None:
    report = arrange_report(sweep_lines())
    gates = [parse_gate(text) for text in ("val:top1>=0.77", "shifts:top1>=0.6")]
    verdicts = tuple(
        judge_gate(gate, report.rows[2], None, ("shift-a", "shift-b")) for gate in gates
    )
    text = render_markdown(replace(report, verdicts=verdicts), title="Run", figure="a b.png")
    blocks = text.split("\n\n")
    assert blocks[0] == "## Run"
    assert blocks[1] == report.headlines[0]
    assert blocks[2] == "**1 of 2 gates failed**"
    assert blocks[3].splitlines()[2:] == [
        "| pass | val:top1>=0.77 | 0.7700 |  | 0.7700 |".replace(">", "&gt;"),
        "| **FAIL** | shifts:top1>=0.6 | 0.5400 |  | 0.6000 |".replace(">", "&gt;"),
    ]
    header, _, *rows = blocks[4].splitlines()
    assert header == "| checkpoint | alpha | val | shift-a | shift-b | mean shift | average |"
    assert rows[0].endswith("| 0 | 60.00 | 50.00 | 40.00 | 45.00 | 52.50 |")
    assert "| 77.00 (+17.00) | **58.00** (+8.00) | **50.00** (+10.00) | " in rows[2]
    assert "![Accuracy under shift over alpha](<a%20b.png>)" in blocks


def test_names_cannot_leave_their_cell() -> None:
    name = "a|b\n<script>alert(1)</script>`*_[x](y)\u202e"
    shown = markdown_text(name)
    assert shown == (r"a\|b\\n&lt;script&gt;alert(1)&lt;/script&gt;\`\*\_\[x\](y)\\u202e")
    lines = [replace(at, set_name=name) if at.set_name == "val" else at for at in sweep_lines()]
    text = render_markdown(arrange_report(lines))
    assert shown in text
    assert "<script>" not in text
    rows = [row for row in text.splitlines() if row.startswith("| zeroshot")]
    assert len({row.count(" | ") for row in rows}) == 1


def test_tex_has_the_columns_of_the_paper_in_its_order() -> None:
    names = ("objectnet", "imagenet", "other_set", "imagenet-a", "imagenet-v2")
    lines = [
        line(name, 500 + 10 * at + column, alpha=alpha, reference=name == "imagenet")
        for at, alpha in enumerate(("0", "0.5"))
        for column, name in enumerate(names)
    ]
    text = render_tex(arrange_report(lines))
    header = next(row for row in text.splitlines() if row.startswith("Checkpoint"))
    assert header == (
        "Checkpoint & $\\alpha$ & imagenet & imagenet-v2 & objectnet & imagenet-a & other\\_set &"
        " mean shift & average \\\\"
    )
    rows = [row for row in text.splitlines() if row.startswith("zeroshot to")]
    assert rows[1].count("\\textbf{") == 7
    assert rows[0].count("\\textbf{") == 0
    assert "\\begin{tabular}{llrrrrrrr}" in text
    with_intervals = render_tex(arrange_report(lines), intervals=True)
    assert "50.1 {\\scriptsize [47.0, 53.2]}" in with_intervals


def test_summaries_appended_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(append_summary, path, [line("val", 600)]) for _ in range(24)]
    assert [at.result() for at in done] == [None] * 24
    assert path.read_text().count("## Evaluation") == 24


def test_tex_specials_are_escaped() -> None:
    assert tex_text("50% \\x{a}_$#&~^") == (
        r"50\% \textbackslash{}x\{a\}\_\$\#\&\textasciitilde{}\textasciicircum{}"
    )


def test_csv_has_fractions_in_full_and_is_a_file_of_baselines(tmp_path: object) -> None:
    from pathlib import Path

    text = render_csv(arrange_report(sweep_lines()))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["alpha"] for row in rows] == ["0", "0.25", "0.5", "0.75", "1"]
    assert float(rows[2]["val"]) == 0.77
    assert float(rows[2]["val low"]) < 0.77 < float(rows[2]["val high"])
    path = Path(str(tmp_path)) / "table.csv"
    path.write_text(text)
    models = read_baselines(path, ("val", "shift-a", "shift-b"))
    assert models[4].accuracies == {"val": 0.805, "shift-a": 0.45, "shift-b": 0.38}


@pytest.mark.parametrize("value", [0, 1000])
def test_accuracies_of_0_and_1_are_written(value: int) -> None:
    lines = [replace(at, metrics=line("x", value).metrics) for at in sweep_lines()]
    report = arrange_report(lines)
    assert f"**{value / 10:.2f}**" in render_markdown(report)
    assert "did not change" in report.headlines[0]
    assert f"\\textbf{{{value / 10:.1f}}}" in render_tex(report)


def test_long_tables_are_thinned_in_markdown_only() -> None:
    lines = [
        line(name, 400 + at % 300, alpha=f"{at / 1000:g}", reference=name == "val")
        for at in range(1001)
        for name in ("val", "shift")
    ]
    report = arrange_report(lines)
    assert "971 of 1001 rows are left out." in render_markdown(report)
    assert len(render_csv(report).splitlines()) == 1002

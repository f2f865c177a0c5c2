"""`wiseft report`: text forms, gates, usage. The page has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reporting.lines import ZEROSHOT, digest, line, sweep_lines
from wiseft_cli.cli.app import main
from wiseft_cli.reporting.results import CheckpointName, add_result_lines

Run = tuple[int, str, str]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    add_result_lines(tmp_path / "r.jsonl", sweep_lines())
    return tmp_path / "r.jsonl"


def report(capsys: pytest.CaptureFixture[str], *words: object) -> Run:
    code = main(["report", *map(str, words)])
    return (code, *capsys.readouterr())


@pytest.mark.parametrize("suffix", ["md", "tex", "csv"])
def test_stdout_is_the_path_and_the_same_lines_give_the_same_bytes(
    suffix: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = report(capsys, results, "-o", f"one.{suffix}")
    assert (code, out) == (0, f"one.{suffix}\n")
    assert err.startswith("Fine-tuning raised val")
    assert report(capsys, results, "-o", f"two.{suffix}")[0] == 0
    assert Path(f"one.{suffix}").read_bytes() == Path(f"two.{suffix}").read_bytes()
    code, _, err = report(capsys, results, "-o", f"one.{suffix}")
    assert (code, "exists already" in err) == (1, True)
    assert report(capsys, results, "-o", f"one.{suffix}", "--force")[0] == 0


def test_gates_are_shown_and_set_the_exit_code(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = ("--fail-under", "val:top1>=0.77", "--fail-under", "shifts:top1>=0.6")
    code, out, err = report(capsys, results, "-o", "r.md", *gates)
    assert (code, out) == (3, "r.md\n")
    assert "error: 1 of 2 gates failed:\n  shifts:top1>=0.6: 0.54, expected at least 0.6" in err
    assert "| **FAIL** | shifts:top1" in Path("r.md").read_text()


def test_gates_judge_every_fine_tuning_and_name_the_row(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = CheckpointName("other", "finetuned", digest("5"))
    pair = [
        line(name, count, alpha=alpha, checkpoints=(ZEROSHOT, other), reference=name == "val")
        for alpha, counts in {"0.5": (500, 400, 300), "0.6": (900, 900, 900)}.items()
        for name, count in zip(("val", "shift-a", "shift-b"), counts, strict=True)
    ]
    add_result_lines(results, pair)
    gate = ("--fail-under", "val:top1>=0.6")
    code, out, err = report(capsys, results, "-o", "r.md", "--json", *gate)
    assert code == 3
    assert "1 of 2 gates failed:\n  val:top1>=0.6: 0.5, expected at least 0.6 (zeroshot to" in err
    assert [(at["row"], at["passes"]) for at in json.loads(out)["gates"]] == [
        ("zeroshot to finetuned at alpha 0.5", True),
        ("zeroshot to other at alpha 0.5", False),
    ]
    assert "| val:top1>=0.6 | zeroshot to other at alpha 0.5 |" in (
        Path("r.md").read_text().replace("&gt;", ">")
    )
    assert report(capsys, results, "-o", "s.md", "--alpha", "0.6", *gate)[0] == 0


def test_json_has_the_numbers(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = report(capsys, results, "-o", "r.csv", "--json")
    document = json.loads(out)
    assert document["columns"] == ["val", "shift-a", "shift-b", "mean shift", "average"]
    assert document["rows"][2]["values"] == [0.77, 0.58, 0.5, 0.54, 0.655]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("r.jsonl", "-o", "r.txt"), 2, "-o r.txt: expected a name ending in .html, .md, .tex or"),
        (("no.jsonl", "-o", "r.md"), 1, "no.jsonl: "),
        (("r.jsonl", "-o", "r.md", "--alpha", "abc"), 2, "--alpha 'abc': expected a number"),
        (("half.jsonl", "-o", "r.md"), 1, "half.jsonl, line 2: not a results line"),
        (("newer.jsonl", "-o", "r.md"), 1, "newer.jsonl, line 1: has schema 9"),
        (("r.jsonl", "other.jsonl", "-o", "r.md"), 1, "several measurements of the same weights"),
        (("empty.jsonl", "-o", "r.md"), 1, "the results hold no line"),
        (("r.jsonl", "-o", "r.jsonl", "--force"), 2, "-o r.jsonl: expected a name ending in"),
        (("r.jsonl", "-o", "r.md", "--intervals"), 2, "--intervals is only for reports in .tex"),
        (("r.jsonl", "-o", "r.md", "--images", "val=x"), 2, "--images is only for reports in"),
        (("r.jsonl", "-o", "r.html", "--images", "val"), 2, "--images 'val': expected NAME=DIR"),
        (("r.jsonl", "-o", "r.html", "--images", "val=x"), 2, "--images needs --predictions"),
        (("r.jsonl", "-o", "r.md", "--group-by", "recipe"), 1, "no line of the results states"),
        (("r.jsonl", "-o", "r.md", "--fail-under", "val:top9>=0"), 2, "has no metric 'top9'"),
        (("r.jsonl", "-o", "r.md", "--reference", "v"), 1, "--reference 'v' is not in"),
    ],
)
def test_wrong_input_is_reported(
    words: tuple[str, ...],
    code: int,
    message: str,
    results: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = results.read_text()
    Path("half.jsonl").write_text(text.splitlines()[0] + "\n" + text.splitlines()[1][:90])
    Path("newer.jsonl").write_text(text.replace('"schema":1', '"schema":9'))
    Path("empty.jsonl").write_text("\n")
    add_result_lines(Path("other.jsonl"), [line("val", 1, alpha="0.5", precision="bf16")])
    done = report(capsys, *words)
    assert (done[0], done[1]) == (code, "")
    assert message in done[2]
    assert not Path("r.md").exists()


def test_predictions_that_the_lines_do_not_name_are_missed_aloud(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = report(capsys, results, "-o", "r.md", "--predictions", "nowhere")
    assert code == 0
    assert "warning: 15 of 15 results have no saved predictions" in err

"""Merges by every method from the command line of eval: rows, files, plans, gates and figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.test_merged_weights import add_fishers, make_seeds
from tests.evaluation.tiny import CLASSES, make_images
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.reporting.results import read_result_lines

LABELS = [entry.id for entry in CLASSES]
INPUTS = ("zeroshot.safetensors", "seed0.safetensors", "seed1.safetensors")
SETS = ("--data", "val", "--data", "shift", "--workers", "0")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_seeds(tmp_path, 2)
    make_images(tmp_path / "val", LABELS, per_class=4, seed=1)
    make_images(tmp_path / "shift", LABELS, per_class=3, seed=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("--alpha", "0.3"),
        ("--method", "linear", "--alpha", "0.3", "--weights", "0.25,0.75"),
        ("--alpha", "0.6", "--layer-alpha", "visual.transformer.*=0.1"),
        ("--method", "task-arithmetic"),
        ("--method", "ties", "--alpha", "0.4", "--density", "0.3", "--trim-scope", "tensor"),
        ("--method", "dare", "--drop", "0.7", "--seed", "5", "--then", "ties"),
        ("--method", "model-stock"),
        ("--method", "lines", "--layer-alpha-from", "0.1", "--outside-blocks", "ends"),
        ("--method", "fisher", "--fisher-floor", "0.001"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_row_equals_merge_and_eval_of_the_file_with_the_same_options(
    room: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    if "fisher" in words:
        files = add_fishers([Path(name) for name in INPUTS])
        words += tuple(word for path in files for word in ("--fisher", str(path)))
    assert main(["eval", *INPUTS, *words, *SETS, "--json"]) == 0
    in_memory = json.loads(capsys.readouterr().out)
    assert main(["merge", *INPUTS, *words, "-o", "merged.safetensors"]) == 0
    capsys.readouterr()
    assert main(["eval", "merged.safetensors", *SETS, "--json"]) == 0
    of_file = json.loads(capsys.readouterr().out)
    assert [line["metrics"] for line in in_memory] == [line["metrics"] for line in of_file]
    card = read_card(Path("merged.safetensors"))
    for line in in_memory:
        assert [item["name"] for item in line["checkpoints"]] == ["zeroshot", "seed0", "seed1"]
        assert (line["schema"], line["method"], line["alpha"]) == (2, card.method, card.alpha)
        options = card.method_options or {}
        assert line["method_options"] == json.loads(json.dumps(options))


def test_table_and_figure_show_rows_of_several_methods(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = (
        ("--method", "ties", "--alpha", "0.5,1"),
        ("--method", "model-stock"),
        ("--alpha", "0,1"),
    )
    for words in runs:
        assert main(["eval", *INPUTS, *words, *SETS, "--results", "r.jsonl"]) == 0
        rows = capsys.readouterr().out.splitlines()
        assert "method" in rows[0].split()
    assert rows[1].startswith("zeroshot to seed0 and seed1  linear  0 ")
    assert len(read_result_lines(Path("r.jsonl"))) == 10
    assert main(["plot", "r.jsonl", "-o", "curve.png", "--json"]) == 0
    (panel,) = json.loads(capsys.readouterr().out)["panels"]
    assert [(point.get("method"), point["alpha"]) for point in panel["points"]] == [
        ("ties (density 0.2, trim scope model)", "0.5"),
        ("ties (density 0.2, trim scope model)", "1"),
        ("linear", "0"),
        ("linear", "1"),
        ("model-stock", None),
    ]


def test_default_of_the_method_is_used_and_named(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *INPUTS, "--method", "ties", *SETS, "--json"]) == 0
    assert {line["alpha"] for line in json.loads(capsys.readouterr().out)} == {"1"}
    words = ["--method", "task-arithmetic", "--alpha", "0.1,0.3,0.5"]
    assert main(["eval", *INPUTS, *words, *SETS]) == 0
    out = capsys.readouterr().out
    assert "alpha 0.3, the default:" in out
    assert "alpha 0.5, the default" not in out


def test_plan_file_of_merge_is_a_plan_of_eval(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "ties", "--density", "0.4", "--alpha", "0.5"]
    assert main(["eval", *INPUTS, *words, *SETS, "--json"]) == 0
    expected = capsys.readouterr().out
    Path("plan.yaml").write_text("method: ties\ndensity: 0.4\nalpha: 0.5\n")
    assert main(["eval", *INPUTS, "--plan", "plan.yaml", *SETS, "--json"]) == 0
    assert capsys.readouterr().out == expected
    Path("plan.yaml").write_text("method: ties\ndtype: float16\n")
    assert main(["eval", *INPUTS, "--plan", "plan.yaml", *SETS]) == 2
    assert "dtype is for `wiseft merge`" in capsys.readouterr().err


def test_gates_and_the_chosen_merge_work_for_methods(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "dare", "--alpha", "0.25:1:0.25", "--select-on", "val"]
    gates = ["--fail-under", "shift:top1>=0", "--gate-alpha", "0.5"]
    best = ["--merge-best", "best.safetensors"]
    assert main(["eval", *INPUTS, *words, *gates, *best, *SETS, "--json"]) == 0
    out, err = capsys.readouterr()
    chosen = {line["alpha"] for line in json.loads(out) if "selected" in line.get("choice", [])}
    assert chosen == {read_card(Path("best.safetensors")).alpha}
    assert "gate holds: shift:top1>=0" in err
    failing = ["--fail-under", "shift:top1>=1"]
    assert main(["eval", *INPUTS, "--method", "model-stock", *failing, *SETS]) == 3
    assert "1 of 1 gates failed for zeroshot to seed0 and seed1 by model-stock" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--method", "tis"), 2, "method 'tis': unknown"),
        (("--method", "slerp"), 2, "method slerp: 2 fine-tuned inputs given"),
        (("--method", "ties", "--drop", "0.5"), 2, "--drop is an option of dare"),
        (("--density", "0.5"), 2, "--density needs --method or --alpha"),
        (("--method", "model-stock", "--alpha", "1"), 2, "method model-stock: has no alpha"),
        (("--method", "fisher"), 2, "0 files given with --fisher, expected 3"),
        (("--alpha", "0.5", "--weights", "0.5,0.4"), 2, "expected exactly 1"),
        (("--alpha", "0.5", "--layer-alpha", "x*=1"), 2, "matches none of"),
        (("--method", "lines"), 2, "--layer-alpha-from is missing"),
        (("--method", "ties", "--output-ensemble"), 2, "averages exactly two checkpoints, 3"),
        (("--plan", "none.yaml"), 1, "none.yaml"),
    ],
)
def test_wrong_options_are_reported(
    room: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert main(["eval", *INPUTS, *words, *SETS]) == code
    out, err = capsys.readouterr()
    assert (out, message in err) == ("", True), err

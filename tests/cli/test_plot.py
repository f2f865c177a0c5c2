from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RunWiseft
from tests.reporting.lines import line, sweep_lines
from wiseft_cli.reporting.results import add_result_lines


@pytest.fixture
def results(tmp_path: Path) -> Path:
    add_result_lines(tmp_path / "r.jsonl", sweep_lines())
    return tmp_path / "r.jsonl"


def test_stdout_is_the_path_of_the_image_file(results: Path, run_wiseft_process: RunWiseft) -> None:
    done = run_wiseft_process("plot", results, "-o", "curve.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, "curve.png\n", "")
    assert (results.parent / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_plot_runs_where_torch_cannot_be_imported(results: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'open_clip', 'timm'): sys.modules[name] = None\n"
        "from wiseft_cli.cli.app import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, "plot", results, "-o", tmp_path / "c.svg"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["r.jsonl", "-o", "c.jpg"],
            2,
            "error: -o c.jpg: expected a name ending in .png, .svg, .pdf\n",
        ),
        (
            ["no.jsonl", "-o", "c.png"],
            1,
            "error: no.jsonl: cannot be read: No such file or directory\n",
        ),
        (["r.jsonl", "-o", "old.png"], 1, "error: old.png: exists already\n"),
        (
            ["old.png", "-o", "old.png", "--force"],
            1,
            "error: old.png: is also an input (old.png)\n",
        ),
        (["old.png", "-o", "c.png"], 1, "error: old.png, line 1: not a results line: "),
        (
            ["r.jsonl", "-o", "c.png", "--shifts", "a,,b"],
            2,
            "error: --shifts 'a,,b': expected names separated by commas\n",
        ),
        (
            ["r.jsonl", "-o", "c.png", "--baseline-csv", "old.png"],
            1,
            "error: old.png: its header lacks model, val, shift-a or shift-b; it has old\n",
        ),
        (
            ["r.jsonl", "-o", "old.csv", "--baseline-csv", "old.csv", "--force"],
            2,
            "error: -o old.csv: expected a name ending in .png, .svg, .pdf\n",
        ),
        (["one.jsonl", "-o", "c.png"], 1, "error: the results hold one set, 'val', and no distr"),
    ],
    ids=[
        "format",
        "missing",
        "exists",
        "input",
        "no-results",
        "shifts",
        "csv",
        "csv-out",
        "no-shift",
    ],
)
def test_mistake_is_one_message_and_writes_nothing(
    results: Path, run_wiseft: RunWiseft, words: list[str], code: int, message: str
) -> None:
    (results.parent / "old.png").write_text("old")
    add_result_lines(results.parent / "one.jsonl", [line("val", 5, reference=True)])
    done = run_wiseft("plot", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert (results.parent / "old.png").read_text() == "old"
    assert not (results.parent / "c.png").exists()


def test_weights_left_out_are_reported_and_force_overwrites(
    results: Path, run_wiseft: RunWiseft
) -> None:
    add_result_lines(results, [line("val", 5, alpha="0.9", reference=True)])
    (results.parent / "c.svg").write_text("old")
    done = run_wiseft("plot", results, "-o", "c.svg", "--force")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: zeroshot to finetuned at alpha 0.9 is left out")
    assert (results.parent / "c.svg").read_text().startswith("<?xml")


def test_baselines_add_effective_robustness(results: Path, run_wiseft: RunWiseft) -> None:
    table = "model,val,shift-a,shift-b\nA,0.2,0.2,0.2\nB,0.9,0.9,\n"
    (results.parent / "models.csv").write_text(table)
    words = ("plot", results, "-o", "c.png", "--baseline-csv", "models.csv")
    done = run_wiseft(*words)
    assert (done.returncode, done.stdout) == (0, "c.png\n")
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "warning",
        "warning",
        "effective robustness on shift-a, in points",
    ]
    assert "at alpha 0.5 (oracle) -19.00" in lines[-1]
    done = run_wiseft(*words, "--force", "--json", "--shifts", "shift-a", "--scale", "linear")
    document = json.loads(done.stdout)
    assert (document["output"], document["scale"]) == ("c.png", "linear")
    (panel,) = document["panels"]
    assert panel["baseline_fit"]["slope"] == pytest.approx(1.0)
    assert panel["points"][2]["effective_robustness"] == pytest.approx(0.58 - 0.77)

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.test_merged_weights import make_seeds
from tests.evaluation.tiny import CLASSES, make_checkpoint, make_images
from tests.merging.pairs import write_foreign
from tests.test_imports import run_without_heavy_packages
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.cli.app import main
from wiseft_cli.merging.merge import merge

LABELS = [entry.id for entry in CLASSES]
SEEDS = ("seed0.safetensors", "seed1.safetensors", "seed2.safetensors")
SELECT = ("--select-on", "held=val", "--workers", "0")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_seeds(tmp_path)
    make_images(tmp_path / "val", LABELS, per_class=4, seed=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arrays(path: str | Path) -> dict[str, np.ndarray]:
    with open_checkpoint(Path(path)) as reader:
        return {name: reader.read_array(name) for name in reader.tensors}


def test_uniform_soup_is_the_mean_and_needs_no_torch(room: Path) -> None:
    inputs = [str(room / name) for name in SEEDS]
    done = run_without_heavy_packages("soup", *inputs, "-o", str(room / "soup.safetensors"))
    assert (done.returncode, done.stdout) == (0, f"{room / 'soup.safetensors'}\n"), done.stderr
    seeds = [arrays(name) for name in SEEDS]
    for name, found in arrays("soup.safetensors").items():
        mean = np.mean([seed[name].astype(np.float64) for seed in seeds], axis=0)
        np.testing.assert_allclose(found, mean, rtol=1.2e-7)
    card = read_card(Path("soup.safetensors"))
    assert (card.role, card.alpha, card.history[-1].command) == ("merged", None, "soup")
    assert {item.digest for item in card.history[-1].inputs} == {
        read_card(Path(name)).digest for name in SEEDS
    }


def test_soup_does_not_depend_on_the_order(room: Path) -> None:
    assert main(["soup", *SEEDS, "-o", "a"]) == 0
    assert main(["soup", *SEEDS[::-1], "-o", "b", "--threads", "3"]) == 0
    assert Path("a").read_bytes() == Path("b").read_bytes()


def test_soup_with_a_base_is_one_merge_and_follows_the_formula(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base", "zeroshot.safetensors", "--alpha", "0.3"]
    assert main(["soup", *SEEDS, *words, "-o", "soup.safetensors"]) == 0
    assert capsys.readouterr().out == "soup.safetensors\n"
    merge("zeroshot.safetensors", SEEDS, "m.safetensors", alpha="0.3")
    assert Path("soup.safetensors").read_bytes() == Path("m.safetensors").read_bytes()
    base, seeds = arrays("zeroshot.safetensors"), [arrays(name) for name in SEEDS]
    for name, found in arrays("soup.safetensors").items():
        if found.dtype != np.int64:
            wide = base[name].astype(np.float64)
            mean = np.mean([seed[name].astype(np.float64) for seed in seeds], axis=0)
            # One rounding: the nearest float32 of the formula, up to float64's own rounding.
            expected = (wide + 0.3 * (mean - wide)).astype(np.float32)
            assert np.abs(found - expected).max() <= np.spacing(np.abs(expected)).max()
    assert read_card(Path("soup.safetensors")).alpha == "0.3"


def test_greedy_soup_prints_its_path_and_equals_the_soup_of_the_kept(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["soup", *SEEDS, *SELECT, "-o", "greedy.safetensors", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["path"] == "greedy.safetensors"
    assert document["selection"]["set"] == "held"
    kept = [step["checkpoint"] for step in document["steps"] if step["kept"]]
    assert document["kept"] == kept
    assert [step["alone"] for step in document["steps"]] == sorted(
        (step["alone"] for step in document["steps"]), reverse=True
    )
    lines = err.splitlines()
    assert lines[0] == "top1 on 'held', in %:"
    assert lines[1].split() == ["checkpoint", "alone", "mean", "kept"]
    for line, step in zip(lines[2:], document["steps"], strict=False):
        name, alone, mean, is_kept = line.split()
        assert name == Path(step["checkpoint"]).stem
        assert (float(alone), float(mean)) == (
            round(100 * step["alone"], 2),
            round(100 * step["mean"], 2),
        )
        assert is_kept == ("yes" if step["kept"] else "no")
    assert 1 < len(kept) < len(SEEDS)
    assert main(["soup", *kept, "-o", "uniform.safetensors"]) == 0
    assert document["digest"] == read_card(Path("uniform.safetensors")).digest


def test_held_results_are_not_measured_again(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["soup", *SEEDS, *SELECT, "--results", "r.jsonl", "--json"]
    assert main([*words, "-o", "a"]) == 0
    first = json.loads(capsys.readouterr().out)
    for path in (room / "val").rglob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    assert main([*words, "-o", "b"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == first["steps"]
    assert Path("a").read_bytes() == Path("b").read_bytes()


def test_any_safetensors_files_with_the_same_tensors_can_be_averaged(room: Path) -> None:
    for at in range(3):
        write_foreign(room / f"f{at}.safetensors", {"x": np.full(3, at, np.float32)})
    assert main(["soup", *(f"f{at}.safetensors" for at in range(3)), "-o", "f"]) == 0
    assert arrays("f")["x"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((SEEDS[0], "-o", "s"), 2, "a soup needs at least two checkpoints, 1 given"),
        ((*SEEDS, "--alpha", "0.5", "-o", "s"), 2, "--alpha needs --base"),
        ((*SEEDS, "--results", "r", "-o", "s"), 2, "--results needs --select-on"),
        ((*SEEDS, "--base", "zeroshot.safetensors", "--alpha", "2", "-o", "s"), 2, "alpha 2"),
        (
            (*SEEDS, "--base", "zeroshot.safetensors", "--alpha", "0,1", "-o", "s"),
            2,
            "--alpha 0,1: 2 values, expected one",
        ),
        ((*SEEDS, "-o", SEEDS[0], "--force"), 1, "is also an input"),
        ((*SEEDS, "-o", "val"), 1, "val: is a folder"),
        ((*SEEDS,), 2, "--output"),
        ((*SEEDS, "other.safetensors", "-o", "s"), 1, "does not match"),
        ((*SEEDS, "none.safetensors", "-o", "s"), 1, "none.safetensors"),
        ((*SEEDS, "--select-on", "nowhere", "-o", "s"), 1, "nowhere does not exist"),
        ((*SEEDS, "other.safetensors", *SELECT, "-o", "s"), 1, "does not match"),
        ((SEEDS[0], SEEDS[0], *SELECT, "-o", "s"), 2, "given more than once"),
        (
            (SEEDS[0], SEEDS[1], *SELECT, "--base", "other.safetensors", "-o", "s"),
            1,
            "does not match",
        ),
    ],
)
def test_wrong_input_is_reported_and_writes_nothing(
    room: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    make_checkpoint(room / "other.safetensors", seed=1, classes=CLASSES[:4])
    before = sorted(room.rglob("*"))
    assert main(["soup", *words]) == code
    assert message in capsys.readouterr().err
    assert sorted(room.rglob("*")) == before


def test_killed_selection_leaves_no_soup_and_continues(room: Path) -> None:
    words = [*SEEDS, *SELECT, "--results", "r.jsonl", "-o", "soup.safetensors"]
    # Killed after the candidates are measured, before the first mean.
    program = (
        "import os, signal, sys\n"
        "from wiseft_cli.evaluation import soup\n"
        "add = soup.add_result_lines\n"
        "def add_and_die(*words):\n"
        "    add(*words)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "soup.add_result_lines = add_and_die\n"
        "from wiseft_cli.cli.app import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, "soup", *words], cwd=room, timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert not list(room.glob("*soup.safetensors*"))
    assert len((room / "r.jsonl").read_text().splitlines()) == 3
    assert main(["soup", *words]) == 0
    assert main(["soup", *SEEDS, *SELECT, "-o", "again.safetensors"]) == 0
    assert Path("again.safetensors").read_bytes() == Path("soup.safetensors").read_bytes()


def test_greedy_soup_can_be_redone_from_its_history(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base", "zeroshot.safetensors", "--alpha", "0.3"]
    for name, options in (("a", []), ("b", words)):
        assert main(["soup", *SEEDS, *SELECT, *options, "-o", f"{name}.safetensors"]) == 0
        capsys.readouterr()
        assert main(["verify", f"{name}.safetensors", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["has_equal_bytes"] is True
        assert main(["inspect", f"{name}.safetensors", "--commands"]) == 0
        out = capsys.readouterr().out
        assert '# an image set selected the inputs: {"candidates": ' in out
        assert "--selection" not in out

"""`wiseft eval`: choosing alpha, writing the merge, gates, predictions, joins."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.evaluation.tiny import CLASSES, make_checkpoint, make_images, make_pair
from wiseft_cli.cli.app import main
from wiseft_cli.reporting.results import read_result_lines

LABELS = [entry.id for entry in CLASSES]
PAIR = ("zeroshot.safetensors", "finetuned.safetensors")
SETS = ("--data", "val", "--data", "a", "--data", "b", "--workers", "0")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if not line.startswith("warning")]


RunHere = Callable[..., Done]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    make_pair(folder)
    make_checkpoint(folder / "older.safetensors", seed=7)
    for at, (name, count) in enumerate({"val": 6, "a": 4, "b": 3}.items()):
        make_images(folder / name, LABELS, per_class=count, seed=at)
    make_images(folder / "numbers", ["0", "3", "7"], per_class=2, seed=5)
    make_images(folder / "few", LABELS[:3], per_class=8, seed=6)
    return folder


@pytest.fixture
def run_here(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunHere:
    def run(*words: object) -> Done:
        monkeypatch.chdir(files)
        code = main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run


def lines_of(done: Done) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def value(line: dict[str, object], metric: str = "top1") -> float:
    return float(line["metrics"][metric]["value"])  # type: ignore[index]


def test_merge_best_writes_the_bytes_of_wiseft_merge(
    files: Path, run_here: RunHere, tmp_path: Path
) -> None:
    out, merged = tmp_path / "best.safetensors", tmp_path / "merged.safetensors"
    words = ("eval", *PAIR, *SETS, "--alpha", "0:1:0.25", "--select-on", "val")
    done = run_here(*words, "--merge-best", out, "--json")
    lines = [line for line in lines_of(done) if line["set"] == "val"]
    best = max(lines, key=lambda line: (value(line), -float(str(line["alpha"]))))
    assert "selected" in best["choice"]  # type: ignore[operator]
    assert done.errors == [f"wrote {out}: the merge at alpha {best['alpha']}, the best on 'val'"]
    assert run_here("merge", *PAIR, "--alpha", best["alpha"], "-o", merged).returncode == 0
    assert out.read_bytes() == merged.read_bytes()
    refused = run_here(*words, "--merge-best", out)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"error: {out}: exists already\n"
        "hint: name another output with --merge-best, or overwrite with --force\n"
    )


def test_table_shows_how_alpha_was_chosen(run_here: RunHere) -> None:
    done = run_here("eval", *PAIR, *SETS, "--alpha", "0,0.5,1", "--select-on", "b")
    table, facts, choice = done.stdout.split("\n\n")
    assert table.splitlines()[0].split()[2:] == ["val", "a", "b", "average"]  # b is no shift
    assert facts.splitlines()[2].startswith("b: validation, ")
    assert [line.split(",")[0].split(":")[0] for line in choice.splitlines()] == [
        "alpha 0.5",
        choice.splitlines()[1].split(",")[0],
        "oracle",
    ]


def test_failed_gates_are_listed_after_the_results_and_exit_with_3(
    files: Path, run_here: RunHere, tmp_path: Path
) -> None:
    results = tmp_path / "r.jsonl"
    words = ("eval", *PAIR, *SETS, "--alpha", "0,0.5", "--gate-alpha", "0.5", "--results", results)
    gates = ("--fail-under", "val:top1>=0", "--fail-under", "a:top1>=1", "--fail-under")
    done = run_here(*words, *gates, "shifts:mean_per_class>=baseline+0.9", "--baseline", PAIR[0])
    assert done.returncode == 3
    row, baseline = (
        {line.set_name: line for line in read_result_lines(results) if line.alpha == alpha}
        for alpha in ("0.5", None)
    )
    mean = (value_of(row["a"]) + value_of(row["b"])) / 2
    of_baseline = (value_of(baseline["a"]) + value_of(baseline["b"])) / 2
    held, title, *broken = done.errors
    assert held.startswith("gate holds: val:top1>=0: ")
    assert title == "error: 2 of 3 gates failed for zeroshot to finetuned at alpha 0.5:"
    assert broken == [
        f"  a:top1>=1: {row['a'].value:.6g}, expected at least 1",
        f"  shifts:mean_per_class>=baseline+0.9: {mean:.6g}, expected at least"
        f" {of_baseline + 0.9:.6g} (baseline {of_baseline:.6g})",
    ]
    assert "zeroshot to finetuned" in done.stdout
    assert len(read_result_lines(results)) == 9
    again = run_here(*words, *gates[:2])
    assert (again.returncode, "9 of" in again.stderr, "6 of 6" in again.stderr) == (0, False, True)


def value_of(line: object) -> float:
    return line.metrics["mean_per_class"].value  # type: ignore[attr-defined, no-any-return]


def test_baseline_may_be_one_of_the_checkpoints(run_here: RunHere) -> None:
    words = ("eval", PAIR[1], PAIR[0], "--data", "val", "--workers", "0", "--baseline", PAIR[0])
    done = run_here(*words, "--fail-under", "val:top1>=baseline-1")
    assert done.returncode == 0
    assert len(done.stdout.split("\n\n")[0].splitlines()) == 3


GATE = ("--fail-under", "val:top1>=0.5")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            (*PAIR, "--select-on", "val", "--merge-best", "o.safetensors"),
            2,
            "error: --merge-best needs --alpha\n",
        ),
        (
            (*PAIR, "--alpha", "0.5", "--merge-best", "o.safetensors"),
            2,
            "error: --merge-best needs --select-on\n",
        ),
        (
            (*PAIR, "--alpha", "0.5", "--select-on", "x"),
            2,
            "error: --select-on 'x' is not an image set; there are val\n",
        ),
        ((PAIR[0], *GATE, "--gate-alpha", "0.5"), 2, "error: --gate-alpha needs --alpha\n"),
        (
            (*PAIR, "--alpha", "0.5", "--gate-alpha", "0.5"),
            2,
            "error: --gate-alpha needs --fail-under\n",
        ),
        (
            (*PAIR, "--alpha", "0,1", *GATE, "--gate-alpha", "0.5"),
            2,
            "error: --gate-alpha 0.5 is not among the alphas: 0, 1\n",
        ),
        (
            (*PAIR, "--alpha", "0,1", *GATE),
            2,
            "error: --fail-under judges one row, and there are 2: zeroshot to finetuned at alpha 0,"
            " zeroshot to finetuned at alpha 1\nhint: name one alpha with --gate-alpha, or"
            " evaluate one checkpoint\n",
        ),
        ((*PAIR, *GATE), 2, "error: --fail-under judges one row, and there are 2:"),
        (
            (PAIR[0], *GATE, "--baseline", PAIR[0]),
            2,
            "error: --fail-under judges one row, and there are 0: none besides the baseline\n",
        ),
        (
            (PAIR[0], "--fail-under", "val:top9>=0.5"),
            2,
            "error: --fail-under cannot be judged:\n  val:top9>=0.5: 'val' has no metric 'top9'\n"
            "hint: the metrics are val: top1, top5, mean_per_class, macro_f1\n",
        ),
        ((PAIR[0], "--fail-under", "val:top1>=77%"), 2, "error: --fail-under 'val:top1>=77%':"),
        (
            (PAIR[0], "--output-ensemble"),
            2,
            "error: --output-ensemble averages exactly two checkpoints, 1 given\n",
        ),
        (
            (*PAIR[::-1], "--alpha", "0.5"),
            1,
            "error: finetuned.safetensors: is a finetuned checkpoint, expected a zero-shot"
            " checkpoint\n"
            "hint: name the zero-shot checkpoint first: wiseft eval zeroshot.safetensors"
            " finetuned.safetensors --alpha 0:1:0.1 ...\n",
        ),
        (
            (PAIR[0], "--results", PAIR[0]),
            1,
            "error: zeroshot.safetensors: is also an input (zeroshot.safetensors)\n"
            "hint: name another output with --results; an input is never overwritten\n",
        ),
        ((PAIR[0], "--precision", "int8"), 2, ""),
        ((PAIR[0], "--save-predictions", "no/where"), 1, "error: no/where: its folder"),
    ],
    ids=lambda value: " ".join(map(str, value))[:50] if isinstance(value, tuple) else None,
)
def test_mistake_is_reported_before_any_work(
    files: Path, run_here: RunHere, words: tuple[str, ...], code: int, message: str
) -> None:
    before = sorted(files.rglob("*"))
    done = run_here("eval", *words, "--data", "val", "--workers", "0")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert sorted(files.rglob("*")) == before


def test_labels_are_indices_only_on_request(run_here: RunHere) -> None:
    words = ("eval", PAIR[0], "--data", "numbers", "--workers", "0", "--json")
    refused = run_here(*words)
    assert refused.returncode == 1
    assert "--labels-are-indices" in refused.stderr
    (line,) = lines_of(run_here(*words, "--labels-are-indices"))
    assert (line["join"], line["n_classes"]) == ("index", 3)


def test_all_classes_scores_over_every_class_of_the_head(run_here: RunHere) -> None:
    words = ("eval", PAIR[0], "--data", "few", "--workers", "0", "--json")
    (subset,), (every,) = (lines_of(run_here(*words, *more)) for more in ((), ("--all-classes",)))
    assert (subset["n_classes"], every["n_classes"]) == (3, 8)
    assert value(every) <= value(subset)
    assert subset["protocol"] != every["protocol"]


def test_predictions_are_written_although_results_are_held(
    run_here: RunHere, tmp_path: Path
) -> None:
    words = ("eval", PAIR[0], "--data", "few", "--workers", "0", "--results", tmp_path / "r.jsonl")
    run_here(*words)
    done = run_here(*words, "--save-predictions", tmp_path / "predictions")
    assert done.returncode == 0
    (file,) = (tmp_path / "predictions").iterdir()
    assert file.name == "few.zeroshot.jsonl"
    assert len(file.read_text().splitlines()) == 24
    refused = run_here(*words, "--save-predictions", tmp_path / "predictions")
    assert (refused.returncode, "few.zeroshot.jsonl: exists already" in refused.stderr) == (1, True)


def test_checkpoint_may_be_named_by_its_folder(files: Path, run_here: RunHere) -> None:
    (files / "run").mkdir(exist_ok=True)
    if not (files / "run" / "model.safetensors").exists():
        (files / "run" / "model.safetensors").symlink_to(files / PAIR[0])
    done = run_here("eval", "run", "--data", "few", "--workers", "0")
    assert done.returncode == 0, done.stderr


def test_out_of_memory_is_reported_with_a_remedy(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from wiseft_cli.model.classifier import ImageClassifier

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(ImageClassifier, "encode_image", fail)
    done = run_here("eval", PAIR[0], "--data", "few", "--workers", "0")
    assert done.returncode == 1
    assert done.stderr == (
        "error: not enough memory for batches of 64 images on cpu: CUDA out of memory. Tried to"
        " allocate 2.00 GiB.\n"
        "hint: use a smaller --batch-size than 64, or fewer --workers\n"
    )


def rights(folder: Path, name: str) -> list[bool]:
    return [json.loads(text)["right"] for text in (folder / name).read_text().splitlines()]


def test_saved_predictions_give_paired_differences_and_gates_on_them(
    run_here: RunHere, tmp_path: Path
) -> None:
    saved, results = tmp_path / "predictions", tmp_path / "r.jsonl"
    words = ("eval", PAIR[1], *SETS, "--baseline", PAIR[0], "--save-predictions", saved)
    gates = ("--fail-under", "shifts:top1>=baseline-1@95", "--fail-under", "a:top1>=baseline+1@95")
    done = run_here(*words, *gates, "--results", results)
    assert done.returncode == 3
    new, old = rights(saved, "a.finetuned.jsonl"), rights(saved, "a.zeroshot.jsonl")
    gained = sum(ours and not theirs for ours, theirs in zip(new, old, strict=True))
    lost = sum(theirs and not ours for ours, theirs in zip(new, old, strict=True))
    title, val, a, _, mean = done.stdout.split("\n\n")[-1].strip().splitlines()
    assert title.startswith("paired differences in points")
    assert val.startswith("finetuned against zeroshot on val: ")
    assert a.endswith(f"({gained} images gained, {lost} lost)")
    assert f" on a: {100 * (gained - lost) / len(new):+.2f} [" in a.replace("0.00 [", "+0.00 [")
    assert mean.startswith("finetuned against zeroshot on mean shift: ")
    held, failed = [line for line in done.errors if "@95" in line]
    assert held.startswith("gate holds: shifts:top1>=baseline-1@95: ")
    assert " with lower end " in failed
    again = run_here(*words, "--json", "--force", "--results", results)
    lines = {(line["checkpoints"][0]["name"], line["set"]): line for line in lines_of(again)}  # type: ignore[index]
    (of_a,) = lines["finetuned", "a"]["paired"]  # type: ignore[misc]
    assert (of_a["n_gained"], of_a["n_lost"], of_a["against"]) == (gained, lost, "zeroshot")
    assert lines["zeroshot", "a"]["predictions"] == "a.zeroshot.jsonl"
    assert "paired" not in lines["zeroshot", "a"]
    assert "paired" not in results.read_text()


def test_gate_on_a_paired_difference_needs_saved_predictions(run_here: RunHere) -> None:
    words = ("eval", PAIR[1], *SETS, "--baseline", PAIR[0])
    done = run_here(*words, "--fail-under", "a:top1>=baseline@95")
    assert done.returncode == 2
    assert "a:top1>=baseline@95: a paired difference needs --save-predictions DIR" in done.stderr


def test_summary_is_appended_with_the_gates(run_here: RunHere, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("earlier step\n")
    words = ("eval", PAIR[1], *SETS, "--baseline", PAIR[0], "--summary", summary)
    done = run_here(*words, "--fail-under", "shifts:top1>=baseline+1")
    assert done.returncode == 3
    text = summary.read_text()
    assert text.startswith("earlier step\n\n## Evaluation\n\nFine-tuning ")
    assert "**1 of 1 gates failed**" in text
    assert "| finetuned | " in text
    assert run_here(*words).returncode == 0
    assert summary.read_text().startswith(text)
    refused = run_here(*words, "--results", summary)
    assert (refused.returncode, "--summary and --results" in refused.stderr) == (2, True)
    missing = run_here(*words[:-1], tmp_path / "no" / "s.md")
    assert (missing.returncode, "its folder" in missing.stderr) == (1, True)


def test_columns_of_the_table_are_checked_before_the_evaluation(run_here: RunHere) -> None:
    done = run_here("eval", *PAIR, *SETS, "--columns", "a, val:mean_per_class")
    assert done.stdout.splitlines()[0].split()[1:] == ["a", "val:mean_per_class"]
    refused = run_here("eval", *PAIR, *SETS, "--columns", "a,c")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--columns c: not a column of the table" in refused.stderr
    assert "hint: the columns are val, a, b, mean shift, average, val:top1" in refused.stderr


def test_terminal_shows_a_curve_and_a_pipe_does_not(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("eval", *PAIR, *SETS, "--alpha", "0,0.5,1")
    piped = run_here(*words)
    assert "over alpha" not in piped.stdout
    monkeypatch.setattr("wiseft_cli.cli.eval.terminal_width", lambda: 60)
    shown = run_here(*words)
    assert "* val, o mean shift, in % over alpha" in shown.stdout
    assert max(map(len, shown.stdout.split("\n\n")[0].splitlines())) <= 60

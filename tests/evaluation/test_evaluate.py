"""`evaluate` does what `wiseft eval` does, in one call from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.tiny import CLASSES, jobs_of, make_images, make_pair, run_jobs
from wiseft_cli.errors import OutputError, UsageError
from wiseft_cli.evaluation.evaluate import evaluate
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.merge import merge_checkpoints
from wiseft_cli.reporting.figure import plot_results
from wiseft_cli.reporting.results import read_result_lines

LABELS = [entry.id for entry in CLASSES]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    make_pair(folder)
    make_images(folder / "val", LABELS, per_class=4, seed=1)
    make_images(folder / "shift", LABELS[1:6], per_class=3, seed=2)
    return folder


def test_single_values_stand_for_lists_of_one(files: Path) -> None:
    seen: list[int] = []
    evaluation = evaluate(
        EvalRequest(str(files / "zeroshot.safetensors"), files / "val", workers=0, device="cpu"),
        on_progress=seen.append,
    )
    expected = run_jobs(jobs_of([files / "zeroshot.safetensors"], [files / "val"]))
    assert list(evaluation.lines) == expected
    assert sum(seen) == 32
    assert (evaluation.selected_alpha, evaluation.verdicts) == (None, ())
    assert evaluation.warnings[-1].endswith("only 32 images, so the intervals are wide")
    assert evaluation.table().startswith("checkpoint")
    assert [document["set"] for document in evaluation.documents()] == ["val"]


def test_lines_selected_alpha_verdicts_and_files_come_from_one_call(
    files: Path, tmp_path: Path
) -> None:
    pair = [files / "zeroshot.safetensors", files / "finetuned.safetensors"]
    request = EvalRequest(
        pair,
        data=[f"val={files / 'val'}", f"other={files / 'shift'}"],
        alpha=[0, 0.5, "1"],
        select_on="val",
        merge_best=tmp_path / "best.safetensors",
        fail_under=["val:top1>=0", "other:top1>=1"],
        gate_alpha=0.5,
        results=tmp_path / "results.jsonl",
        workers=0,
        device="cpu",
    )
    evaluation = evaluate(request)
    best = max(evaluation.lines[:3], key=lambda line: line.value)
    assert evaluation.selected_alpha == Alpha(str(best.alpha), float(str(best.alpha)))
    assert [verdict.passes for verdict in evaluation.verdicts] == [True, False]
    assert read_result_lines(tmp_path / "results.jsonl") == evaluation.lines
    merge_checkpoints(*pair, [(evaluation.selected_alpha, tmp_path / "m.safetensors")])
    merged = (tmp_path / "m.safetensors").read_bytes()
    assert (tmp_path / "best.safetensors").read_bytes() == merged
    assert "oracle" in evaluation.table()
    with pytest.raises(OutputError, match="exists already"):
        evaluate(request)
    plot = plot_results(evaluation.lines, shifts=["other"])
    assert plot.picture == plot_results(tmp_path / "results.jsonl", shifts=["other"]).picture


def test_mistakes_are_errors_without_output(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--merge-best needs --alpha"):
        evaluate(
            EvalRequest(
                files / "zeroshot.safetensors",
                files / "val",
                select_on="val",
                merge_best="best.safetensors",
            )
        )
    with pytest.raises(UsageError, match="no image sets are named"):
        evaluate(EvalRequest(files / "zeroshot.safetensors"))
    assert capsys.readouterr() == ("", "")

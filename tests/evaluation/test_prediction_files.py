from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.evaluation.tiny import CLASSES, make_images, make_pair
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.errors import OutputError
from wiseft_cli.evaluation.plan import Job, plan_jobs
from wiseft_cli.evaluation.prediction_files import plan_prediction_files
from wiseft_cli.evaluation.sweep import SweepSettings, sweep
from wiseft_cli.evaluation.weight_sets import plan_weight_sets, read_checkpoints
from wiseft_cli.merging.alpha import parse_alphas

LABELS = [entry.id for entry in CLASSES]


def plan(tmp_path: Path) -> tuple[Job, ...]:
    images = list_image_folder(make_images(tmp_path / "val", LABELS[2:6], per_class=3, seed=1))
    rows = plan_weight_sets(
        read_checkpoints(make_pair(tmp_path)), parse_alphas(["0.5"]), output_ensemble=True
    )
    return plan_jobs(rows, [images])


def test_every_image_has_a_line_and_the_lines_add_up_to_the_result(tmp_path: Path) -> None:
    jobs = plan(tmp_path)
    bad = tmp_path / "val" / "n03" / "1.png"
    bad.write_bytes(b"damaged")
    files = plan_prediction_files(tmp_path / "out", jobs, force=False)
    assert [path.name for path in files.values()] == [
        "val.alpha-0.5.jsonl",
        "val.output-ensemble.jsonl",
    ]
    settings = SweepSettings(5, 0, torch.device("cpu"), max_unreadable=1, predictions=files)
    (lines,) = sweep(jobs, settings)
    for job, line in lines.items():
        rows = [json.loads(text) for text in files[job].read_text().splitlines()]
        assert [row["path"] for row in rows] == [item.path for item in job.image_set.records]
        errors = [row for row in rows if "error" in row]
        assert [row["path"] for row in errors] == ["n03/1.png"]
        scored = [row for row in rows if "error" not in row]
        assert sum(row["right"] for row in scored) == line.value * line.n_images
        names = {entry.id: entry.name for entry in CLASSES}
        for row in scored:
            assert row["right"] == (row["id"] == row["label"])
            assert row["name"] == names[row["id"]]
            assert row["id"] in LABELS[2:6]  # classes that the set lacks are excluded
            assert 1 / 4 <= row["probability"] <= 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in files.values()
    )


def test_existing_predictions_are_rejected_before_any_work(tmp_path: Path) -> None:
    jobs = plan(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "val.output-ensemble.jsonl").write_text("old")
    with pytest.raises(OutputError, match=r"val\.output-ensemble\.jsonl: exists already"):
        plan_prediction_files(out, jobs, force=False)
    assert plan_prediction_files(out, jobs, force=True).keys() == set(jobs)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        plan_prediction_files(tmp_path / "file", jobs, force=False)
    assert caught.value.message == (
        f"--save-predictions {tmp_path / 'file'} is a file, expected a folder"
    )
    with pytest.raises(OutputError, match="its folder"):
        plan_prediction_files(tmp_path / "no" / "where", jobs, force=False)

"""Reading checkpoints, and planning the weight sets of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.tiny import CLASSES, PREPROCESS, make_checkpoint, make_pair
from wiseft_cli.checkpoint.card import Card, ClassEntry
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import (
    CheckpointError,
    IncompatibleCheckpointsError,
    NotACheckpointError,
    UsageError,
)
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.evaluation.weight_sets import (
    descent_warnings,
    plan_weight_sets,
    read_checkpoints,
)
from wiseft_cli.merging.alpha import parse_alphas


def test_checkpoints_are_named_by_the_shortest_distinct_end_of_their_path(tmp_path: Path) -> None:
    paths = []
    for at, name in enumerate(("x/run1/best", "x/run2/best", "x/run2/last")):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.append(make_checkpoint(path, seed=at))
    assert [item.name for item in read_checkpoints(paths[1:])] == ["best", "last"]
    names = [item.name for item in read_checkpoints(paths)]
    assert names == ["run1/best", "run2/best", "run2/last"]


def test_folder_without_a_checkpoint_suggests_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_checkpoints([tmp_path])
    assert (
        caught.value.message
        == f"{tmp_path} is a folder without a checkpoint, expected a checkpoint"
    )
    assert caught.value.hint == f"did you mean `--data {tmp_path}`?"


def test_folder_with_a_single_checkpoint_stands_for_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = make_checkpoint(tmp_path / "run" / "best.safetensors", seed=0)
    (checkpoint,) = read_checkpoints([tmp_path / "run"])
    assert (checkpoint.path, checkpoint.name) == (path, "best")
    make_checkpoint(tmp_path / "run" / "last.safetensors", seed=1)
    with pytest.raises(NotACheckpointError, match="contains 2 checkpoints, expected one"):
        read_checkpoints([tmp_path / "run"])


def test_sharded_checkpoint_without_a_card_is_rejected(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name in "ab":
        save_file({name: np.zeros(2, np.float32)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}')
    for path in (index, tmp_path):
        with pytest.raises(CheckpointError, match="its index has no card"):
            read_checkpoints([path])


def test_output_ensemble_needs_exactly_two_checkpoints_of_the_same_task(tmp_path: Path) -> None:
    pair = read_checkpoints(make_pair(tmp_path))
    rows = plan_weight_sets(pair, (), output_ensemble=True)
    assert [row.name for row in rows] == [
        "zeroshot",
        "finetuned",
        "output ensemble of zeroshot and finetuned",
    ]
    assert [part.name for part in rows[-1].parts] == ["zeroshot", "finetuned"]
    with pytest.raises(UsageError, match=r"^--output-ensemble averages exactly two checkpoints, 1"):
        plan_weight_sets(pair[:1], (), output_ensemble=True)
    other = make_checkpoint(
        tmp_path / "b.safetensors", seed=1, classes=CLASSES[::-1], preprocess={"size": 64}
    )
    with pytest.raises(CheckpointError, match="has other classes and preprocessing than"):
        plan_weight_sets(read_checkpoints([pair[0].path, other]), (), output_ensemble=True)


def test_checkpoint_given_twice_is_rejected_also_through_a_link(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=0)
    (tmp_path / "b.safetensors").symlink_to(path)
    with pytest.raises(UsageError, match=r"^given more than once: .*a\.safetensors, .*b\.safe"):
        read_checkpoints([path, tmp_path / "b.safetensors"])


def test_files_without_a_card_or_a_model_are_rejected(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(NotACheckpointError, match="has no wiseft card"):
        read_checkpoints([tmp_path / "foreign.safetensors"])
    write_checkpoint(tmp_path / "m.safetensors", {"x": np.zeros(3, np.float32)}, Card("merged"))
    with pytest.raises(CheckpointError, match="its card has no model and no preproc") as caught:
        read_checkpoints([tmp_path / "m.safetensors"])
    hint = str(caught.value.hint)  # not to merge: it is a merge already
    assert "wiseft zeroshot-head" in hint
    assert "or merge" not in hint
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(NotACheckpointError):
        read_checkpoints([tmp_path / "text.safetensors"])


def test_alphas_need_at_least_two_checkpoints() -> None:
    for options in ({"alpha": 0.5}, {"method": "soup"}):
        with pytest.raises(UsageError, match=r"merge at least two checkpoints, 1 given$"):
            EvalRequest("a.safetensors", data="d", **options).check_options()


def test_with_alphas_the_rows_are_only_the_points_between(tmp_path: Path) -> None:
    rows = plan_weight_sets(read_checkpoints(make_pair(tmp_path)), parse_alphas(["0:1:0.5"]))
    assert [row.alpha.text for row in rows if row.alpha] == ["0", "0.5", "1"]
    assert rows[1].name == "zeroshot to finetuned at alpha 0.5"


def test_pair_with_different_classes_or_preprocessing_is_rejected(tmp_path: Path) -> None:
    theta_0 = make_checkpoint(tmp_path / "a.safetensors", seed=0)
    theta_1 = make_checkpoint(
        tmp_path / "b.safetensors",
        seed=1,
        role="finetuned",
        preprocess=PREPROCESS | {"size": 64},
        classes=(ClassEntry("other", "other"), *CLASSES[1:]),
    )
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        plan_weight_sets(read_checkpoints([theta_0, theta_1]), parse_alphas(["0.5"]))
    assert "'other', expected 'n00'" in caught.value.message
    assert "preprocessing.size: 64, expected 32" in caught.value.message


def test_reversed_pair_is_rejected_and_an_unrelated_one_gives_a_warning(tmp_path: Path) -> None:
    theta_0, theta_1 = make_pair(tmp_path)
    with pytest.raises(CheckpointError, match="expected a zero-shot checkpoint"):
        plan_weight_sets(read_checkpoints([theta_1, theta_0]), parse_alphas(["0.5"]))
    stranger = make_checkpoint(tmp_path / "stranger.safetensors", seed=9)
    assert descent_warnings(read_checkpoints([theta_0, theta_1])) == ()
    (doubt,) = descent_warnings(read_checkpoints([stranger, theta_1]))
    assert "was fine-tuned from another zero-shot checkpoint" in doubt

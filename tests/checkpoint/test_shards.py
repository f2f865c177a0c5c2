"""Folders of checkpoints: stale indices, shards without an index, single shards, saved states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunWiseft
from tests.merging.pairs import finetuned_card, tensors, write_foreign, write_pair, write_sharded
from tests.merging.test_merge import merge, read_all
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.errors import CheckpointError, NotACheckpointError

W = {"w": np.full((2, 2), 1, np.float32), "v": np.full(3, 1, np.float32)}
OTHER = {name: array + 2 for name, array in W.items()}


def write_set(folder: Path, *, form: str = "model-0000{}-of-00002.safetensors") -> Path:
    """Write two shards and no index; return the folder."""
    shards = {form.format(number): {name: W[name]} for number, name in enumerate("wv", start=1)}
    write_sharded(folder, shards).unlink()
    return folder


def refusal(path: Path) -> NotACheckpointError:
    with pytest.raises(NotACheckpointError) as caught:
        open_checkpoint(path, allow_shards=True)
    return caught.value


def test_a_file_beside_an_index_that_does_not_list_it_is_ambiguous(tmp_path: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = write_sharded(tmp_path, {names[0]: {"w": W["w"]}, names[1]: {"v": W["v"]}})
    write_foreign(tmp_path / "model.safetensors", OTHER)
    error = refusal(tmp_path)
    assert error.message == (
        f"{tmp_path}: contains 2 checkpoints, expected one:\n"
        "  model.safetensors.index.json (2 files)\n"
        "  model.safetensors"
    )
    assert error.hint == (
        "name one of them; transformers loads model.safetensors, and the index may be an older one"
    )
    merge(index, tmp_path / "model.safetensors", tmp_path / "out", "0.5")
    assert read_all(tmp_path / "out")["v"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("listed", "beside"),
    [
        ("gone-00001-of-00001.safetensors", "model.safetensors"),
        ("model-00001-of-00002.safetensors", "adapter_model.safetensors"),
        ("model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"),
    ],
)
def test_every_file_that_the_index_does_not_list_makes_the_folder_ambiguous(
    tmp_path: Path, listed: str, beside: str
) -> None:
    write_foreign(tmp_path / beside, OTHER)
    text = json.dumps({"weight_map": {"w": listed}})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "contains 2 checkpoints" in refusal(tmp_path).message


def test_an_index_of_the_single_file_beside_it_is_followed(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"model.safetensors": W})
    with open_checkpoint(tmp_path, allow_shards=True) as reader:
        assert reader.tensors.keys() == W.keys()


@pytest.mark.parametrize(
    "form",
    [
        "model-0000{}-of-00002.safetensors",
        "pytorch_model_0{}-of-02.fp16.safetensors",
        "{}-of-2.safetensors",
    ],
)
def test_all_shards_without_an_index_are_one_checkpoint(tmp_path: Path, form: str) -> None:
    folder = write_set(tmp_path / "shards", form=form)
    whole = write_foreign(tmp_path / "whole", OTHER)
    merge(folder, whole, tmp_path / "out", "0.5")
    merged = read_all(tmp_path / "out")
    assert merged["w"].tolist() == [[2, 2], [2, 2]]
    assert merged["v"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "form", ["model-0000{}-of-00003.safetensors", "m-{}-of-12.safetensors", "{}-of-4.safetensors"]
)
def test_shards_are_not_complete_without_all_numbers(tmp_path: Path, form: str) -> None:
    error = refusal(write_set(tmp_path / "shards", form=form))
    assert "contains 2 of" in error.message
    assert form.format(1) in error.message
    assert error.hint == "fetch the other shards and the *.safetensors.index.json file"


def test_two_sets_of_shards_are_two_checkpoints(tmp_path: Path) -> None:
    write_set(tmp_path)
    write_set(tmp_path, form="ema-0000{}-of-00002.safetensors")
    assert refusal(tmp_path).message.splitlines()[1:] == [
        "  ema-00001-of-00002.safetensors (2 files)",
        "  model-00001-of-00002.safetensors (2 files)",
    ]


def test_shards_that_hold_a_tensor_twice_are_rejected(tmp_path: Path) -> None:
    write_set(tmp_path)
    write_foreign(tmp_path / "model-00002-of-00002.safetensors", W)
    with pytest.raises(CheckpointError, match="w: in 2 shards"):
        open_checkpoint(tmp_path, allow_shards=True)


@pytest.mark.parametrize("has_index", [True, False])
def test_one_shard_is_never_merged_alone(tmp_path: Path, has_index: bool) -> None:
    folders = [write_set(tmp_path / name) for name in "ab"]
    if has_index:
        weight_map = {"w": "model-00001-of-00002.safetensors"}
        index = folders[0] / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    a, b = (folder / "model-00001-of-00002.safetensors" for folder in folders)
    with pytest.raises(NotACheckpointError) as caught:
        merge(a, b, tmp_path / "out")
    assert caught.value.message == f"{a}: is shard 1 of 2 of a checkpoint"
    expected = f"index {index}" if has_index else f"folder {folders[0]} with all shards"
    assert caught.value.hint == f"name the {expected}"


def test_a_checkpoint_with_a_card_is_whole_whatever_its_name(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    moved = zeroshot.rename(tmp_path / "a-1-of-2.safetensors")
    merge(moved, finetuned, tmp_path / "out")
    assert read_card(moved).role == "zeroshot"


def test_inspect_says_that_a_file_is_one_shard(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    shard = write_set(tmp_path / "a") / "model-00002-of-00002.safetensors"
    assert "role        shard 2 of 2 of a checkpoint\n" in run_wiseft("inspect", shard).stdout
    document = json.loads(run_wiseft("inspect", shard, "--json").stdout)
    assert document["partial"] == "shard 2 of 2 of a checkpoint"


def write_state(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    arrays = {f"weights.{name}": array for name, array in tensors(seed).items()}
    arrays |= {f"adamw.exp_avg.{name}": array for name, array in tensors(seed).items()}
    arrays |= {"record": np.arange(9, dtype=np.uint8), "random.cpu": np.zeros(99, np.uint8)}
    write_checkpoint(path, arrays, finetuned_card("sha256:" + "0" * 64))
    return path


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_saved_state_of_a_run_is_named_and_its_checkpoint_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_finished: bool
) -> None:
    states = [
        str(write_state(tmp_path / f"{name}.safetensors.state" / "step-00000010.safetensors", seed))
        for seed, name in enumerate("ab")
    ]
    output = tmp_path / "a.safetensors"
    if is_finished:
        write_checkpoint(output, tensors(0), finetuned_card("sha256:" + "0" * 64))
    what = "the saved state of a fine-tuning run, not a checkpoint"
    remedy = (
        f"the checkpoint of the run is {output}"
        if is_finished
        else f"continue the run with --resume; it writes the checkpoint {output} at its end; for a"
        " checkpoint of each epoch, train with --keep epochs"
    )
    assert main(["inspect", states[0]]) == 0
    described = capsys.readouterr().out
    assert f"  role        {what}\n  note        {remedy}\n" in described
    assert "finetuned" not in described.split("history")[0]
    assert main(["diff", *states]) == 0
    cause = f"likely cause: the first file is {what}; {remedy}\n"
    assert cause in capsys.readouterr().out
    for command in (
        ("merge", *states, "-o", "out"),
        ("eval", states[0], "--data", str(tmp_path)),
        ("export", states[0], "--model", "ViT-B-32", "--random-weights", "-o", "folder"),
    ):
        assert main(command) == 1
        assert capsys.readouterr().err == f"error: {states[0]}: is {what}\nhint: {remedy}\n"

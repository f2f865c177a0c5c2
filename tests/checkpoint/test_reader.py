"""Reading files, shards and folders, and the ones that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.merging.pairs import write_foreign, write_pair, write_sharded
from wiseft_cli.checkpoint.reader import open_checkpoint, stem_of
from wiseft_cli.errors import CheckpointError, NotACheckpointError

ONE = np.array([1.5], np.float32)
TWO = np.array([2.5], np.float32)


def test_tensors_are_read_from_the_shard_that_holds_them(tmp_path: Path) -> None:
    index = write_sharded(tmp_path, {"1.safetensors": {"a": ONE}, "2.safetensors": {"b": TWO}})
    with open_checkpoint(index, allow_shards=True) as source:
        buffer = bytearray(4)
        source.read_into("b", memoryview(buffer))
        assert buffer == TWO.tobytes()
        assert source.tensors.keys() == {"a", "b"}
        assert source.metadata == {"format": "pt"}
        assert source.card is None
        assert source.size_bytes == 8
        assert [path.name for path in source.files] == [
            "model.safetensors.index.json",
            "1.safetensors",
            "2.safetensors",
        ]


def test_a_folder_opens_the_only_checkpoint_in_it(tmp_path: Path) -> None:
    zeroshot, _ = write_pair(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(NotACheckpointError) as caught:
        open_checkpoint(folder, allow_shards=True)
    assert caught.value.message == (
        f"{folder}: contains no *.safetensors and no *.safetensors.index.json file"
    )
    zeroshot.rename(folder / "one.safetensors")
    with open_checkpoint(folder, allow_shards=True) as source:
        assert source.card is not None
        assert source.card.role == "zeroshot"
    write_foreign(folder / "two.safetensors", {"a": ONE})
    with pytest.raises(NotACheckpointError) as caught:
        open_checkpoint(folder, allow_shards=True)
    assert caught.value.message == (
        f"{folder}: contains 2 checkpoints, expected one:\n  one.safetensors\n  two.safetensors"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nonsense", "not a JSON index of shards: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "not an index of shards: expected an object weight_map from tensors to files"),
        ('{"weight_map": {}}', "not an index of shards: expected an object weight_map from"),
        ('{"weight_map": {"a": 3}}', "tensor 'a': shard 3, expected a file name inside the folder"),
        ('{"weight_map": {"a": "../x"}}', "tensor 'a': shard '../x', expected a file name inside"),
        ('{"weight_map": {"a": "/etc/x"}}', "tensor 'a': shard '/etc/x', expected a file name"),
        ('{"weight_map": {"a": ""}}', "tensor 'a': shard '', expected a file name inside"),
        ('{"weight_map": {"a": "x\\u0000"}}', "tensor 'a': shard 'x\\x00', expected a file name"),
        ('{"weight_map": {"a": "\\ud800"}}', "tensor 'a': shard '\\ud800', expected a file name"),
    ],
)
def test_a_hostile_index_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(index, allow_shards=True)
    assert caught.value.message.startswith(f"{index}: {expected}")


def test_an_index_that_disagrees_with_its_shards_is_refused_with_all_faults(
    tmp_path: Path,
) -> None:
    index = write_sharded(tmp_path, {"1.safetensors": {"a": ONE}, "2.safetensors": {"b": TWO}})
    write_foreign(tmp_path / "2.safetensors", {"a": ONE, "c": ONE})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(index, allow_shards=True)
    assert caught.value.message == (
        f"{index}: does not agree with its shards:\n"
        "  b: not in 2.safetensors, where the index places it\n"
        "  a: in 2.safetensors, but the index places it in 1.safetensors\n"
        "  c: in 2.safetensors, but the index does not list it"
    )


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = write_sharded(tmp_path, {"1.safetensors": {"a": ONE}})
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(NotACheckpointError) as caught:
        open_checkpoint(index, allow_shards=True)
    assert caught.value.message == f"{tmp_path / '1.safetensors'}: no such file"


def test_a_shard_with_a_card_of_its_own_is_refused(tmp_path: Path) -> None:
    zeroshot, _ = write_pair(tmp_path)
    with open_checkpoint(zeroshot, allow_shards=True) as source:
        names = list(source.tensors)
    weight_map = dict.fromkeys(names, zeroshot.name) | {"extra": "1.safetensors"}
    write_foreign(tmp_path / "1.safetensors", {"extra": ONE})
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"zs\.safetensors: has a card of its own"):
        open_checkpoint(index, allow_shards=True)


def test_the_stem_is_the_name_without_folder_and_suffix(tmp_path: Path) -> None:
    assert stem_of(Path("a/b.safetensors")) == "b"
    assert stem_of(Path("a/model.safetensors.index.json")) == "model"
    assert stem_of(Path("a/b.bin")) == "b.bin"
    assert stem_of(tmp_path) == tmp_path.name


def test_an_index_and_a_folder_are_refused_unless_shards_are_allowed(tmp_path: Path) -> None:
    index = write_sharded(tmp_path / "m", {"1.safetensors": {"a": ONE}})
    with pytest.raises(NotACheckpointError, match="is a text file, expected a safetensors file"):
        open_checkpoint(index)
    with pytest.raises(NotACheckpointError, match="is a folder, expected a safetensors file"):
        open_checkpoint(index.parent)

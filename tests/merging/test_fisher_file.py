from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.merging.pairs import tensors, write_foreign, write_pair
from wiseft_cli.checkpoint.reader import FISHER_KEY, open_checkpoint, read_card, read_content
from wiseft_cli.errors import (
    CheckpointError,
    IncompatibleCheckpointsError,
    NotACheckpointError,
    WiseftError,
)
from wiseft_cli.merging.fisher_file import (
    FisherInfo,
    fisher_info,
    open_fisher,
    require_fisher_digest,
    require_fisher_of,
    require_own_digest,
    write_fisher,
)
from wiseft_cli.merging.merge import merge

DATA = "sha256:" + "d" * 64


def squares() -> dict[str, np.ndarray]:
    return {name: at**2 for name, at in tensors(3).items() if at.dtype == np.float32}


def write(folder: Path, checkpoint: Path, values: dict[str, np.ndarray] | None = None) -> Path:
    info = FisherInfo(str(read_card(checkpoint).digest), DATA, 255, 1, "model", 7, "0.1.0")
    write_fisher(folder / "f.safetensors", squares() if values is None else values, info)
    return folder / "f.safetensors"


def test_what_is_written_is_read_back_with_its_origin(tmp_path: Path) -> None:
    checkpoint, _ = write_pair(tmp_path)
    path = write(tmp_path, checkpoint)
    with open_fisher(path) as fisher, open_checkpoint(checkpoint) as reader:
        info = require_fisher_of(fisher, reader)
        assert (info.checkpoint, info.data_fingerprint) == (read_card(checkpoint).digest, DATA)
        assert (info.n_images, info.n_unreadable, info.labels, info.seed) == (255, 1, "model", 7)
        assert info.digest == read_content(fisher).digest
        require_own_digest(fisher, info, read_content(fisher).digest)
        for name, values in squares().items():
            assert fisher.read_array(name).tobytes() == values.tobytes()
    assert "true Fisher" in info.describe()


def test_same_values_give_same_bytes_in_any_order(tmp_path: Path) -> None:
    checkpoint, _ = write_pair(tmp_path)
    first = write(tmp_path, checkpoint).read_bytes()
    (tmp_path / "f.safetensors").unlink()
    assert write(tmp_path, checkpoint, dict(reversed(squares().items()))).read_bytes() == first


def test_parameters_without_dimensions_keep_their_shape(tmp_path: Path) -> None:
    checkpoint, _ = write_pair(tmp_path)
    path = write(tmp_path, checkpoint, {"scale": np.array(0.5, np.float32)})
    with open_fisher(path) as fisher:
        assert fisher.tensors["scale"].shape == ()
        assert fisher_info(fisher).digest == read_content(fisher).digest


def test_fisher_of_another_checkpoint_is_rejected_with_both_digests(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    with (
        open_fisher(write(tmp_path, zeroshot)) as fisher,
        open_checkpoint(finetuned) as reader,
        pytest.raises(IncompatibleCheckpointsError) as caught,
    ):
        require_fisher_of(fisher, reader)
    for digest in (read_card(zeroshot).digest, read_card(finetuned).digest):
        assert str(digest) in caught.value.message
    assert "in the order of the checkpoints" in str(caught.value.hint)


def test_checkpoint_without_a_card_is_checked_by_its_digest(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    foreign = write_foreign(tmp_path / "foreign.safetensors", tensors(0))
    with open_fisher(write(tmp_path, zeroshot)) as fisher, open_checkpoint(foreign) as reader:
        info = require_fisher_of(fisher, reader)
        require_fisher_digest(fisher, info, reader, read_content(reader).digest)
        with pytest.raises(IncompatibleCheckpointsError):
            require_fisher_digest(fisher, info, reader, str(read_card(finetuned).digest))


def test_tensors_that_the_checkpoint_does_not_have_are_listed(tmp_path: Path) -> None:
    checkpoint, _ = write_pair(tmp_path)
    wrong = {
        "visual.proj": np.ones((4, 8), np.float32),
        "visual.conv1.weight": np.ones((8, 3, 2, 2), np.float64),
        "other": np.ones(2, np.float32),
    }
    with (
        open_fisher(write(tmp_path, checkpoint, wrong)) as fisher,
        open_checkpoint(checkpoint) as reader,
        pytest.raises(IncompatibleCheckpointsError) as caught,
    ):
        require_fisher_of(fisher, reader)
    text = caught.value.message
    assert "visual.proj: shape (4, 8), expected (8, 4)" in text
    assert "visual.conv1.weight: dtype F64, expected F32" in text
    assert "other: not in" in text


def test_changed_tensors_are_rejected(tmp_path: Path) -> None:
    checkpoint, _ = write_pair(tmp_path)
    path = write(tmp_path, checkpoint)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with (
        open_fisher(path) as fisher,
        pytest.raises(NotACheckpointError, match="do not match its description"),
    ):
        require_own_digest(fisher, fisher_info(fisher), read_content(fisher).digest)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"labels": "guessed"}, "labels is 'guessed', expected model or data"),
        ({"n_images": 0}, "n_images is 0, expected at least 1"),
        ({"n_images": "256"}, "n_images is '256'"),
        ({"seed": True}, "seed is True"),
        ({"checkpoint": None}, "checkpoint is None"),
        ({"role": "merged"}, "role is 'merged', expected 'fisher'"),
        ({"schema": 2}, "has schema 2, this version reads 1"),
        (None, "damaged description"),
        ([], "damaged description"),
    ],
)
def test_damaged_descriptions_are_rejected(tmp_path: Path, change: object, fault: str) -> None:
    checkpoint, _ = write_pair(tmp_path)
    with open_fisher(write(tmp_path, checkpoint)) as fisher:
        document = json.loads(fisher.metadata[FISHER_KEY])
    changed = {**document, **change} if isinstance(change, dict) else change
    path = write_foreign(tmp_path / "x", squares(), {FISHER_KEY: json.dumps(changed)})
    with open_fisher(path) as fisher, pytest.raises(CheckpointError) as caught:
        fisher_info(fisher)
    assert fault in caught.value.message


def test_checkpoint_is_rejected_where_a_fisher_file_is_expected(tmp_path: Path) -> None:
    checkpoint, _ = write_pair(tmp_path)
    with pytest.raises(CheckpointError, match="is a zeroshot checkpoint, expected the Fisher"):
        open_fisher(checkpoint)
    foreign = write_foreign(tmp_path / "foreign.safetensors", tensors(0))
    with pytest.raises(CheckpointError, match="is not a Fisher file") as caught:
        open_fisher(foreign)
    assert "wiseft fisher CHECKPOINT" in str(caught.value.hint)


def test_fisher_file_is_rejected_where_a_checkpoint_is_expected(tmp_path: Path) -> None:
    checkpoint, other = write_pair(tmp_path)
    fisher = write(tmp_path, checkpoint, tensors(4))
    for words in ((checkpoint, fisher), (fisher, other)):
        with pytest.raises(WiseftError, match="is the Fisher information of a checkpoint"):
            merge(*words, tmp_path / "out.safetensors")
    with pytest.raises(NotACheckpointError, match="is the Fisher information") as caught:
        read_card(fisher)
    assert "--fisher" in str(caught.value.hint)
    assert not (tmp_path / "out.safetensors").exists()


def test_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    checkpoint, _ = write_pair(tmp_path)
    path = write(tmp_path, checkpoint)
    before = path.read_bytes()
    with pytest.raises(WiseftError, match="exists"):
        write(tmp_path, checkpoint)
    assert path.read_bytes() == before

"""Merges in shards: names, index, card, digest, and what reads them back."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import load_torch_model
from safetensors.numpy import load_file

from tests.evaluation.tiny import CLASSES, make_images, make_pair
from tests.merging.pairs import write_foreign, write_pair
from wiseft_cli.checkpoint.format import TensorSpec
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.shards import parse_size, plan_shards
from wiseft_cli.cli.app import main
from wiseft_cli.errors import CheckpointError, OutputError, UsageError
from wiseft_cli.evaluation.evaluate import evaluate
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.merging.compatibility import compare
from wiseft_cli.merging.merge import merge
from wiseft_cli.model.classifier import load_classifier

INDEX = "model.safetensors.index.json"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def write_foreign_pair(folder: Path) -> tuple[Path, Path]:
    """Six tensors of 4,000 bytes, one of 20,000, an empty one and an integer."""
    random = np.random.default_rng(0)
    paths = folder / "a.safetensors", folder / "b.safetensors"
    for path in paths:
        arrays = {f"t{i}": random.standard_normal(1000).astype(np.float32) for i in range(6)}
        arrays["t2_large"] = random.standard_normal((50, 100)).astype(np.float32)
        arrays |= {"empty": np.zeros((0, 3), np.float32), "count": np.array(7)}
        write_foreign(path, arrays, {"format": "pt", "author": "me"})
    return paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5 KB", 1500), ("2MiB", 2 << 20), (7, 7)],
)
def test_sizes_are_decimal_unless_the_unit_says_binary(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["5", "5gb", "5Gb", "0GB", "-1GB", "", "5GB ", "0.0001KB", 0])
def test_a_size_that_could_mean_two_things_is_rejected(text: str | int) -> None:
    with pytest.raises(UsageError, match="expected a positive number and a unit, as in 5GB"):
        parse_size(text)


def test_shards_are_filled_in_the_order_of_names_and_a_larger_tensor_is_alone() -> None:
    sizes = {"b": 5, "a": 4, "d": 100, "c": 1, "e": 10, "f": 0, "g": 1}
    shards = plan_shards([TensorSpec(name, "U8", (size,)) for name, size in sizes.items()], 10)
    assert [[spec.name for spec in shard] for shard in shards] == [
        ["a", "b", "c"],
        ["d"],
        ["e", "f"],
        ["g"],
    ]


def test_the_shards_hold_the_tensors_and_the_digest_of_the_single_file(tmp_path: Path) -> None:
    pair = write_foreign_pair(tmp_path)
    single = merge(*pair, tmp_path / "single.safetensors")
    done = merge(*pair, tmp_path / "m", max_shard_size="9KB")
    folder = tmp_path / "m"
    names = [f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)]
    assert sorted(os.listdir(folder)) == [*names, INDEX, "wiseft_merge.json"]
    assert done.digest == single.digest
    index = json.loads((folder / INDEX).read_text())
    found = {}
    for name in names:
        tensors = load_file(folder / name)
        assert {tensor for tensor, shard in index["weight_map"].items() if shard == name} == set(
            tensors
        )
        nbytes = sum(array.nbytes for array in tensors.values())
        assert nbytes <= 9000 or list(tensors) == ["t2_large"]
        found |= tensors
    expected = load_file(tmp_path / "single.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in expected.values())
    with open_checkpoint(folder / names[0]) as shard:
        assert shard.metadata == {"author": "me", "format": "pt"}
        assert shard.card is None


def test_a_loader_of_hugging_face_reads_the_shards(tmp_path: Path) -> None:
    pair = write_foreign_pair(tmp_path)
    merge(*pair, tmp_path / "single.safetensors")
    merge(*pair, tmp_path / "m", max_shard_size="9KB")
    module = torch.nn.Module()
    for name, array in load_file(tmp_path / "single.safetensors").items():
        module.register_buffer(name, torch.zeros(array.shape, dtype=torch.from_numpy(array).dtype))
    load_torch_model(module, tmp_path / "m", strict=True)
    for name, array in load_file(tmp_path / "single.safetensors").items():
        assert torch.equal(module.get_buffer(name), torch.from_numpy(array))


def test_a_merge_that_fits_into_one_shard_is_one_file_with_its_card(tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    single = merge(*pair, tmp_path / "single.safetensors")
    assert merge(*pair, tmp_path / "m", max_shard_size="1GB").digest == single.digest
    assert sorted(os.listdir(tmp_path / "m")) == ["model.safetensors", "wiseft_merge.json"]
    whole = (tmp_path / "single.safetensors").read_bytes()
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == whole


def test_the_card_of_shards_is_that_of_the_single_file(tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    merge(*pair, tmp_path / "single.safetensors")
    merge(*pair, tmp_path / "m", max_shard_size=100)
    card = read_card(tmp_path / "single.safetensors")
    assert read_card(tmp_path / "m") == read_card(tmp_path / "m" / INDEX) == card
    assert main(["inspect", "--verify", str(tmp_path / "m")]) == 0
    with (
        open_checkpoint(tmp_path / "m", allow_shards=True) as shards,
        open_checkpoint(tmp_path / "single.safetensors") as single,
    ):
        found = compare(shards, single)
        assert (found.has_equal_content, found.describe()) == (True, [])


def test_shards_merge_as_the_single_file_does(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    merge(zeroshot, finetuned, tmp_path / "single.safetensors")
    merge(zeroshot, finetuned, tmp_path / "m", max_shard_size=100)
    written = [tmp_path / name for name in ("from_single", "from_shards")]
    for source, path in zip(("single.safetensors", "m"), written, strict=True):
        merge(zeroshot, tmp_path / source, path, strict=True)
    assert written[0].read_bytes() == written[1].read_bytes()


def test_a_changed_byte_in_a_shard_is_found(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    merge(zeroshot, finetuned, tmp_path / "m", max_shard_size=100)
    shard = next((tmp_path / "m").glob("model-00001-of-*.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert main(["inspect", "--verify", str(tmp_path / "m")]) == 1
    with pytest.raises(CheckpointError, match="tensors do not match its card"):
        merge(zeroshot, tmp_path / "m", tmp_path / "out")


@pytest.mark.parametrize("card", [{"schema": 1}, "no JSON", "[]"])
def test_a_damaged_card_in_an_index_is_rejected_with_the_name_of_the_index(
    tmp_path: Path, card: object
) -> None:
    merge(*write_pair(tmp_path), tmp_path / "m", max_shard_size=100)
    index = tmp_path / "m" / INDEX
    document = json.loads(index.read_text())
    document["metadata"]["wiseft"] = card
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=re.escape(f"{index}: damaged card")):
        read_card(tmp_path / "m")


def test_threads_and_processes_write_the_same_shards(tmp_path: Path) -> None:
    pair = write_foreign_pair(tmp_path)
    for threads in (1, 4):
        merge(*pair, tmp_path / f"m{threads}", max_shard_size="9KB", threads=threads)
    for path in (tmp_path / "m1").iterdir():
        assert path.read_bytes() == (tmp_path / "m4" / path.name).read_bytes()


def test_each_alpha_has_a_folder_with_the_files_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    zeroshot, finetuned = write_foreign_pair(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(finetuned, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    words = ["merge", str(zeroshot), "model", "--alpha", "0.25,1", "--max-shard-size", "9KB"]
    assert main([*words, "-o", "at-{alpha}"]) == 0
    assert capsys.readouterr().out == "at-0.25\nat-1\n"
    for name in ("at-0.25", "at-1"):
        assert {"config.json", INDEX, "wiseft_merge.json"} < set(os.listdir(name))
        assert read_card(Path(name)).alpha == name.removeprefix("at-")
    assert main([*words, "--json"]) == 0
    assert [row["path"] for row in json.loads(capsys.readouterr().out)] == [
        "model-wiseft-0.25",
        "model-wiseft-1",
    ]
    before = (Path("at-1") / INDEX).read_bytes()
    assert main([*words, "-o", "at-{alpha}"]) == 1
    assert main([*words, "-o", "at-{alpha}", "--force"]) == 0
    assert (Path("at-1") / INDEX).read_bytes() == before


def test_the_name_of_a_file_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = write_foreign_pair(tmp_path)
    words = ["merge", *map(str, pair), "--max-shard-size", "1GB", "-o", "out.safetensors"]
    assert main(words) == 2
    assert "hint: -o out\n" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is the name of a file"):
        merge(*pair, tmp_path / "out.safetensors", max_shard_size="1GB")


def test_too_many_shards_for_the_limit_on_open_files_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = write_foreign_pair(tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 40))
    with pytest.raises(OutputError) as caught:
        merge(*pair, tmp_path / "m", max_shard_size="1KB")
    assert caught.value.message == ("1 output of 8 shards needs 43 open files, and the limit is 40")
    assert "use a larger --max-shard-size" in str(caught.value.hint)


def test_a_sharded_classifier_is_evaluated_as_the_single_file(tmp_path: Path) -> None:
    zeroshot, finetuned = make_pair(tmp_path)
    images = make_images(tmp_path / "val", [entry.id for entry in CLASSES], per_class=2)
    merge(zeroshot, finetuned, tmp_path / "single.safetensors")
    merge(zeroshot, finetuned, tmp_path / "m", max_shard_size="20KB")
    merge(zeroshot, finetuned, tmp_path / "again", max_shard_size="30KB", alpha=0.75)
    states = [
        load_classifier(tmp_path / name)[0].state_dict() for name in ("single.safetensors", "m")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    lines = [
        evaluate(EvalRequest(paths, images, alpha=alpha, workers=0, device="cpu")).lines
        for paths, alpha in (
            ([tmp_path / "single.safetensors"], []),
            ([tmp_path / "m"], []),
            ([zeroshot, tmp_path / "m"], [0.5]),
            ([zeroshot, tmp_path / "single.safetensors"], [0.5]),
        )
    ]
    for one, other in ((lines[0], lines[1]), (lines[2], lines[3])):
        assert one[-1].metrics == other[-1].metrics
        assert [item.digest for item in one[-1].checkpoints] == [
            item.digest for item in other[-1].checkpoints
        ]
    both = [tmp_path / "m", tmp_path / "again"]
    assert len(evaluate(EvalRequest(both, images, workers=0, device="cpu")).lines) == 2


def test_inputs_of_several_dtypes_are_promoted_with_dtype(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 1000))
    zeroshot = write_foreign(tmp_path / "a", {"w": x.astype(np.float16)})
    finetuned = write_foreign(tmp_path / "b", {"w": y.astype(np.float32)})
    with pytest.raises(CheckpointError) as caught:
        merge(zeroshot, finetuned, tmp_path / "out")
    assert "--dtype" in str(caught.value.hint)
    merge(zeroshot, finetuned, tmp_path / "out", alpha="0.3", dtype="float32")
    wide = (1 - 0.3) * x.astype(np.float16).astype(float) + 0.3 * y.astype(np.float32).astype(float)
    assert load_file(tmp_path / "out")["w"].tobytes() == wide.astype(np.float32).tobytes()
    merge(zeroshot, finetuned, tmp_path / "m", alpha="0.3", dtype="float32", max_shard_size=4000)
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert found["w"].tobytes() == wide.astype(np.float32).tobytes()


def test_a_killed_merge_leaves_no_shard_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        arrays = {f"t{i}": random.random(1_000_000, np.float32) for i in range(4)}
        write_foreign(tmp_path / name, arrays)
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "out0.5", max_shard_size="5MB")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out0.5").iterdir()}
    words = [sys.executable, "-m", "wiseft_cli", "merge", "a", "b", "--force", "--max-shard-size"]
    lasting = ["5MB", "--alpha", "0.5,0:1:0.1", "-o", "out{alpha}", "--threads", "1"]
    process = subprocess.Popen([*words, *lasting], cwd=tmp_path, env=ENVIRONMENT)
    while process.poll() is None and not list(tmp_path.glob(".out*/*")):
        time.sleep(0.001)
    process.kill()
    process.wait(60)
    assert process.returncode == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in (tmp_path / "out0.5").iterdir()} == before
    left = list(tmp_path.glob(".out0.5.*"))
    assert len(left) == 1
    done = subprocess.run([*words, "5MB", "-o", "out0.5"], cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0
    assert not left[0].exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out0.5").iterdir()} == before


FULL_DISK = """
mount -t tmpfs -o size=2m none "$1" || exit 77
cd "$1"
"$2" - <<'END'
from unittest.mock import patch
from wiseft_cli.cli.app import main
from wiseft_cli.merging import outputs
with patch.object(outputs, "require_space", lambda _: None), patch(
    "wiseft_cli.checkpoint.atomic.require_space", lambda _: None
):
    print(main(["merge", "../a", "../b", "-o", "out", "--max-shard-size", "500KB"]))
END
ls -A
"""


def test_a_disk_that_fills_up_between_two_shards_stays_empty(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    for name in ("a", "b"):
        arrays = {f"t{i}": np.full(100_000, i, np.float32) for i in range(8)}
        write_foreign(tmp_path / name, arrays)
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", tmp_path / "disk", sys.executable],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("may not mount a small disk")
    assert done.stdout == "1\n"
    shard = r"error: out/model-0000\d-of-00008\.safetensors: cannot be written: No space left"
    assert re.match(shard, done.stderr)

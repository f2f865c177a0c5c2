"""`wiseft inspect`: its output from the header, and faults that --verify finds in the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunWiseft
from tests.merging.pairs import tensors, write_foreign, write_pair, write_sharded
from wiseft_cli.checkpoint.reader import read_card


def test_the_history_of_a_merged_checkpoint_is_shown_as_a_tree(
    tmp_path: Path, run_wiseft: RunWiseft
) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    run_wiseft("merge", "--alpha", "0.3", zeroshot, finetuned, "-o", "x")
    shown = run_wiseft("inspect", "x")
    short = {
        name: (read_card(tmp_path / name).digest or "").removeprefix("blake3:")[:12]
        for name in ("zs.safetensors", "ft.safetensors", "x")
    }
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        "x\n"
        "  role        merged, alpha 0.3\n"
        f"  digest      {read_card(tmp_path / 'x').digest}\n"
        "  model       tiny (laion2b)\n"
        "  preprocess  mode RGB, size [32, 32]\n"
        "  classes     2: tench, goldfish\n"
        "  templates   1: 'a photo of a {}.'\n"
        "  recipe      epochs 2, lr 3e-05\n"
        "  seed        0\n"
        "  tensors     6 (5 F32, 1 I64)\n"
        "  parameters  139\n"
        f"  size        {(tmp_path / 'x').stat().st_size:,} bytes\n"
        "  history\n"
        f"    {short['x']} merge alpha=0.3\n"
        f"    ├─ zeroshot: {short['zs.safetensors']} zeroshot-head model=tiny\n"
        f"    └─ finetuned: {short['ft.safetensors']} finetune epochs=2\n"
        f"       └─ zeroshot: {short['zs.safetensors']} (above)\n"
    )


def test_a_foreign_file_and_its_tensors_are_shown(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    arrays = {"w": np.zeros((2, 3), np.float16), "scalar": np.array(1)}
    write_foreign(tmp_path / "a", arrays, {"format": "pt", "by": "me"})
    shown = run_wiseft("inspect", "a", "--tensors")
    assert shown.stdout == (
        "a\n"
        "  role        no wiseft card\n"
        "  tensors     2 (1 F16, 1 I64)\n"
        "  parameters  7\n"
        f"  size        {(tmp_path / 'a').stat().st_size:,} bytes\n"
        "  tensors\n"
        "    w  F16  [2, 3]\n"
        "    scalar  I64  []\n"
    )


def test_json_contains_the_whole_card(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    zeroshot, _ = write_pair(tmp_path)
    document = json.loads(run_wiseft("inspect", zeroshot, "--json", "--tensors", "--verify").stdout)
    card = read_card(zeroshot)
    assert document["card"]["digest"] == card.digest
    assert document["card"]["classes"][1] == {"id": "n2", "name": "goldfish"}
    assert (document["n_tensors"], document["n_parameters"]) == (6, 139)
    assert document["content"] == {"digest": card.digest, "matches_card": True, "not_finite": {}}
    assert {row["name"] for row in document["tensors"]} == tensors(0).keys()


def test_verify_finds_a_flipped_byte(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    zeroshot, _ = write_pair(tmp_path)
    assert run_wiseft("inspect", zeroshot, "--verify").returncode == 0
    data = bytearray(zeroshot.read_bytes())
    data[-2] ^= 1
    zeroshot.write_bytes(data)
    assert run_wiseft("inspect", zeroshot).returncode == 0
    done = run_wiseft("inspect", zeroshot, "--verify", "--json")
    content = json.loads(done.stdout)["content"]
    assert done.returncode == 1
    assert content["matches_card"] is False
    assert done.stderr == (
        f"error: {zeroshot}: verification failed:\n"
        f"  content digest {content['digest']}, expected {read_card(zeroshot).digest} "
        "as in the card\n"
    )


def test_verify_finds_values_that_are_not_finite(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    weights = np.array([1, np.inf, np.nan], np.float16)
    write_foreign(tmp_path / "a", {"w": weights, "n": np.array([7]), "ok": np.ones(2)})
    done = run_wiseft("inspect", "a", "--verify")
    assert done.returncode == 1
    assert done.stderr == "error: a: verification failed:\n  w: 2 values infinite or NaN\n"


@pytest.mark.parametrize("name", ["m", "m/model.safetensors.index.json"])
def test_shards_are_one_checkpoint(tmp_path: Path, run_wiseft: RunWiseft, name: str) -> None:
    ones = np.ones(3, np.float32)
    write_sharded(tmp_path / "m", {"1.safetensors": {"a": ones}, "2.safetensors": {"b": ones}})
    shown = run_wiseft("inspect", name, "--json", "--verify")
    assert json.loads(shown.stdout)["n_parameters"] == 6


def test_a_circular_history_is_drawn_once(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    digest = "sha256:" + "0" * 64
    entry = {"command": "merge", "version": "0", "options": {}, "output": digest}
    entry["inputs"] = [{"role": "zeroshot", "digest": digest}] * 2
    card = {"schema": 1, "role": "merged", "digest": digest, "history": [entry]}
    write_foreign(tmp_path / "a", {}, {"wiseft": json.dumps(card)})
    shown = run_wiseft("inspect", "a")
    assert shown.stdout.count("(above)") == 2

"""`wiseft verify` redoes a merge; `wiseft inspect --commands` prints how a file was made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training.tiny import write_images, write_zeroshot, zeroshot_card
from wiseft_cli.checkpoint.card import Card, HistoryEntry, HistoryInput
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.cli.history_script import history_script
from wiseft_cli.errors import escape_controls

Captured = pytest.CaptureFixture[str]
QUIET = ("--workers", "0", "--device", "cpu", "--threads", "1")


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return load_file(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zero-shot checkpoint, three fine-tuned ones without training, and a plain file."""
    monkeypatch.chdir(tmp_path)
    inputs = tmp_path / "inputs" / "deep"
    inputs.mkdir(parents=True)
    tensors = tensors_of(write_zeroshot(inputs / "zeroshot.safetensors"))
    generator = np.random.default_rng(0)
    for number in range(3):
        moved = {
            name: (array + 0.1 * generator.standard_normal(array.shape)).astype(array.dtype)
            for name, array in tensors.items()
        }
        card = replace(zeroshot_card("vit"), role="finetuned", seed=number)
        write_checkpoint(inputs / f"tuned-{number}.safetensors", moved, card)
    write_checkpoint(
        inputs / "plain.safetensors", moved | {"visual.proj": tensors["visual.proj"]}, None
    )
    (inputs / "notes.safetensors").write_bytes(b"not a checkpoint")
    return inputs


MERGES = [
    ("merge", "{z}", "{0}", "--alpha", "0.3"),
    ("merge", "{z}", "{0}", "--alpha", "1.5", "--extrapolate", "--dtype", "bfloat16"),
    ("merge", "{z}", "{2}", "{0}", "{1}", "--weights", "0.5,0.25,0.25"),
    ("merge", "{z}", "{0}", "{1}", "--method", "ties", "--density", "0.4"),
    ("merge", "{z}", "{0}", "{1}", "--method", "dare", "--seed", "7"),
    ("merge", "{z}", "{0}", "{1}", "{2}", "--method", "model-stock"),
    ("merge", "{z}", "{0}", "--layer-alpha", "visual.transformer.*=0.2"),
    ("merge", "{z}", "{plain}", "--alpha", "0.5"),
]


@pytest.mark.parametrize("words", MERGES, ids=" ".join)
def test_merge_is_verified_from_its_card(
    words: tuple[str, ...], place: Path, capsys: Captured
) -> None:
    names = {"{z}": "zeroshot", "{0}": "tuned-0", "{1}": "tuned-1", "{2}": "tuned-2"}
    names["{plain}"] = "plain"
    files = [f"{place}/{names[word]}.safetensors" if word in names else word for word in words]
    assert main([*files, "-o", "out.safetensors"]) == 0
    capsys.readouterr()
    assert main(["verify", "out.safetensors", "--inputs", "inputs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["matches"]
    assert found["has_equal_bytes"]
    assert found["digest"] == found["stated"] == found["redone"]
    assert main(["verify", "out.safetensors", "--inputs", "inputs"]) == 0
    assert "has the same bytes as the merge of" in capsys.readouterr().out

    assert main(["inspect", "out.safetensors", "--commands"]) == 0
    script = capsys.readouterr().out.splitlines()
    command = next(line for line in script if line.startswith("wiseft merge"))
    inputs = {digest[7:19]: path for digest, path in found["inputs"].items()}
    assert all(f"{digest}.safetensors" in command or f"_{digest}" in command for digest in inputs)


def test_changed_file_and_changed_input_are_noticed(place: Path, capsys: Captured) -> None:
    zeroshot, tuned = place / "zeroshot.safetensors", place / "tuned-0.safetensors"
    assert main(["merge", str(zeroshot), str(tuned), "-o", "out.safetensors"]) == 0
    data = bytearray(Path("out.safetensors").read_bytes())
    data[-1] ^= 1
    Path("changed.safetensors").write_bytes(data)
    capsys.readouterr()
    assert main(["verify", "changed.safetensors", "--inputs", "inputs"]) == 1
    err = capsys.readouterr().err
    assert "expected blake3:" in err
    assert "but the merge of its inputs has" in err
    other = bytearray(tuned.read_bytes())
    other[-1] ^= 1
    tuned.write_bytes(other)
    assert main(["verify", "out.safetensors", "--inputs", "inputs"]) == 1
    assert "tuned-0.safetensors" in capsys.readouterr().err
    tuned.unlink()
    assert main(["verify", "out.safetensors", "--inputs", "inputs"]) == 1
    err = capsys.readouterr().err
    assert "no checkpoint with the digest of 1 of 2 inputs" in err
    assert "finetuned blake3:" in err


@pytest.mark.parametrize(
    ("file", "folder", "expected"),
    [
        ("inputs/deep/zeroshot.safetensors", "inputs", "made by wiseft zeroshot-head"),
        ("inputs/deep/plain.safetensors", "inputs", "card"),
        ("inputs/deep/notes.safetensors", "inputs", "notes.safetensors"),
        ("out.safetensors", "nowhere", "nowhere: is not a folder"),
    ],
)
def test_file_that_no_merge_made_is_rejected(
    file: str, folder: str, expected: str, place: Path, capsys: Captured
) -> None:
    zeroshot, tuned = place / "zeroshot.safetensors", place / "tuned-0.safetensors"
    assert main(["merge", str(zeroshot), str(tuned), "-o", "out.safetensors"]) == 0
    capsys.readouterr()
    assert main(["verify", file, "--inputs", folder]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [("--shots", "3", "--val-fraction", "0.25", "--keep", "best"), ("--lp-ft", "1", "--ema", "2")],
    ids=" ".join,
)
def test_commands_make_the_same_file_again(
    more: tuple[str, ...], place: Path, capsys: Captured
) -> None:
    write_images(Path("images"))
    write_images(Path("val"), seed=1)
    zeroshot = str(place / "zeroshot.safetensors")
    words = ["finetune", zeroshot, "--train", "images", "--epochs", "2", "--batch-size", "5"]
    words += ["--lr", "1e-3", "--warmup", "1", "--label-smoothing", "0.1", "--seed", "3", *QUIET]
    assert main([*words, *more, "-o", "tuned.safetensors"]) == 0
    assert main(["merge", zeroshot, "tuned.safetensors", "-o", "out.safetensors"]) == 0
    capsys.readouterr()
    assert main(["inspect", "out.safetensors", "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    digest = (read_card(Path("out.safetensors")).digest or "")[7:19]

    again = Path("again")
    again.mkdir()
    start = next(n for n, line in enumerate(lines) if line.startswith("cat >"))
    script = [line for line in lines if not line.startswith(("WEIGHTS", "CLASSES", "TEMPLATES"))]
    script = ["set -eu", "TRAIN=../images", "VAL=../val", *lines[start:]]
    zeroshot_name = (read_card(Path(zeroshot)).digest or "")[7:19]
    shutil.copy(zeroshot, again / f"{zeroshot_name}.safetensors")
    program = f'wiseft() {{ "{sys.executable}" -m wiseft_cli "$@"; }}'
    text = "\n".join([program, *script]).replace(
        "wiseft finetune", f"wiseft finetune {' '.join(QUIET)}"
    )
    subprocess.run(["sh", "-c", text], cwd=again, check=True, env=_environment())
    made = again / f"{digest}.safetensors"
    assert read_card(made).digest == read_card(Path("out.safetensors")).digest
    if "--lp-ft" not in more:  # whose two steps are one command in the first card
        assert made.read_bytes() == Path("out.safetensors").read_bytes()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_commands_need_a_card(place: Path, capsys: Captured) -> None:
    assert main(["inspect", str(place / "plain.safetensors"), "--commands"]) == 1
    assert "has no card with a history" in capsys.readouterr().err


def test_no_text_of_a_hostile_card_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = "; touch pwned; echo $(touch pwned) `touch pwned`\ntouch pwned\nEND\ntouch pwned"
    recipe = {bad: bad, "END": bad, "lr": bad}
    options = [
        ("zeroshot-head", {"model": bad, "pretrained": bad, "classes": bad, bad: bad}),
        ("finetune", {"recipe": recipe, "train": {"fingerprint": bad}, "selection": {"set": bad}}),
        ("finetune", {"recipe": 1, "train": [bad], bad: [bad], "epoch": bad}),
        ("merge", {"alpha": bad, "method": bad, "weights": [bad], "method_options": {bad: bad}}),
        ("merge", {"method_options": {"layer_alpha": [[bad, bad]]}, "selection": {bad: bad}}),
        (bad, {bad: bad}),
    ]
    history = tuple(
        HistoryEntry(command, bad, given, (HistoryInput(bad, f"{bad}{number}"),), f"{number}{bad}")
        for number, (command, given) in enumerate(options)
    )
    script = "\n".join(map(escape_controls, history_script(Card(role="merged", history=history))))
    program = "wiseft() { :; }; cat() { :; }\n" + script.replace("set -eu", "set +eu")
    subprocess.run(["sh", "-c", program], check=False, capture_output=True)
    assert not (tmp_path / "pwned").exists()


def test_different_image_sets_are_different_variables() -> None:
    history = tuple(
        HistoryEntry("finetune", "0.1.0", {"train": {"fingerprint": name}}, (), f"blake3:{name}")
        for name in ("a1", "b2", "a1")
    )
    script = "\n".join(history_script(Card(role="finetuned", history=history)))
    assert "TRAIN=  # a1," in script
    assert "TRAIN_2=  # b2," in script
    assert "TRAIN_3" not in script

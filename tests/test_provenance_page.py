"""The commands of docs/provenance.md work as they are printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.tiny import write_zeroshot
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main

PAGE = (Path(__file__).parents[1] / "docs" / "provenance.md").read_text()
PATHS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
ENVIRONMENT = {**os.environ, "PATH": PATHS, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    zeroshot = write_zeroshot(folder / "zeroshot.safetensors")
    with open_checkpoint(zeroshot) as reader:
        arrays = {name: reader.read_array(name) * 1.5 for name in reader.tensors}
    card = replace(read_card(zeroshot), role="finetuned")
    write_checkpoint(folder / "finetuned.safetensors", arrays, card)
    inputs = ["checkpoints/zeroshot.safetensors", "checkpoints/finetuned.safetensors"]
    assert main(["merge", *inputs, "-o", "merged.safetensors"]) == 0
    return tmp_path


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_merge_is_checked_and_redone(merged: Path) -> None:
    for line in shell_lines():
        if line.startswith("wiseft "):
            words = line.partition(" > ")[0].split()[1:]
            assert main(words) == 0, line


def test_signature_covers_the_card(merged: Path) -> None:
    pytest.importorskip("model_signing")
    pytest.importorskip("OpenSSL")
    for line in shell_lines():
        if line.startswith(("openssl", "model_signing")):
            run(line)
    check = next(line for line in shell_lines() if line.startswith("model_signing verify"))
    data = Path("merged.safetensors").read_bytes()
    Path("merged.safetensors").write_bytes(
        data.replace(b'\\"alpha\\":\\"0.5\\"', b'\\"alpha\\":\\"0.4\\"')
    )
    assert Path("merged.safetensors").read_bytes() != data
    with pytest.raises(subprocess.CalledProcessError):
        run(check)


def run(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", line], check=True, env=ENVIRONMENT, capture_output=True, text=True
    )


def test_bill_of_materials_lists_every_input(merged: Path) -> None:
    pytest.importorskip("cyclonedx")
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    Path("bom.py").write_text(program)
    wiseft = f"{sys.executable} -m wiseft_cli"
    (pipe,) = re.findall(r"`(wiseft inspect [^`]*bom\.py)`", PAGE.replace("\n", " "))
    done = run(pipe.replace("wiseft", wiseft, 1).replace("python bom", f"{sys.executable} bom"))
    bom = json.loads(done.stdout)
    card = read_card(Path("merged.safetensors"))
    assert bom["metadata"]["component"]["bom-ref"] == card.digest
    found = {part["bom-ref"] for part in bom["components"]}
    assert found == {item.digest for item in card.history[-1].inputs}
    assert {part["type"] for part in bom["components"]} == {"machine-learning-model"}
    (dependency,) = (row for row in bom["dependencies"] if row["ref"] == card.digest)
    assert set(dependency["dependsOn"]) == found

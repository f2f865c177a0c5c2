"""The examples of docs/evaluation.md and the job of docs/ci.md run as they are written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import wiseft_cli
from tests.evaluation.tiny import PREPROCESS, make_pair
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.merge import merge_checkpoints
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform

DOCS = Path(__file__).parents[2] / "docs"
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SETS = ("mnist/test", "mnist/val", "colored", "thin")


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the demo's layout, with pictures that the merge of two random models gets right."""
    theta_0, theta_1 = make_pair(tmp_path, classes=[ClassEntry(name, name) for name in DIGITS])
    half, transform = tmp_path / "half.safetensors", eval_transform(PREPROCESS)
    alphas = [(parse_alphas(["0.5"])[0], half)]
    merge_checkpoints(theta_0, theta_1, alphas)
    # The bias of the fine-tuned side takes out of the merge's logits what all pictures share.
    noise = torch.stack([transform(picture(seed)) for seed in range(64)])
    with torch.no_grad():
        shared = load_classifier(half)[0](noise).mean(dim=0)
    with open_checkpoint(theta_1) as reader:
        tensors = {name: reader.read_array(name) for name in reader.tensors}
        card = reader.card
    assert card is not None
    tensors["classification_head.bias"] -= 2 * shared.numpy()
    write_checkpoint(theta_1, tensors, card, force=True)
    merge_checkpoints(theta_0, theta_1, alphas, force=True)
    classifier = load_classifier(half)[0]
    for at, name in enumerate(SETS):
        for seed in range(64 * at, 64 * at + 40):
            with torch.no_grad():
                logits = classifier(transform(picture(seed))[None])
            path = tmp_path / "data" / name / DIGITS[int(logits.argmax())] / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_of_the_page_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wiseft_cli.evaluation.evaluate.default_workers", lambda *_: 0)
    page = (DOCS / "evaluation.md").read_text()
    commands = re.findall(r"^\$ wiseft (.*)$", page, re.M)
    assert len(commands) == 5
    (models,) = re.findall(r"^```text\n(model,.*?)^```$", page, re.M | re.S)
    (folder / "models.csv").write_text(models)
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert (folder / "best.safetensors").exists()
    assert (folder / "curve.png").exists()
    assert (folder / "predictions" / "thin.zeroshot.jsonl").exists()


def steps_of_the_job() -> list[str]:
    (job,) = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "ci.md").read_text(), re.M | re.S)
    steps = [step for job in yaml.safe_load(job)["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step and "pip install" not in step["run"]]


def test_job_of_the_page_installs_the_documented_wheel() -> None:
    page = (DOCS / "ci.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    workflow = yaml.safe_load(text)
    wheel = f"wheels/wiseft_cli-{wiseft_cli.__version__}-py3-none-any.whl"
    assert workflow["env"] == {"WISEFT": wheel}
    (slim,) = re.findall(r"^```sh\n(pip install .*?)^```$", page, re.M | re.S)
    merge, evaluate = (
        step["run"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "pip install" in step.get("run", "")
    )
    assert merge == slim.replace(wheel, '"$WISEFT"')
    everything, for_the_report = evaluate.splitlines()
    assert everything.startswith("pip install ")
    assert everything.endswith(' "$WISEFT"')
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    extra = {re.split("[>=]", one)[0] for one in project["optional-dependencies"]["report"]}
    named = set(for_the_report.partition("  #")[0].split()[2:])
    assert "jinja2" in named
    assert named <= extra
    assert set(re.findall(r"[\w/.-]+\.whl", page)) == {wheel}


def test_job_of_the_page_passes_and_its_gate_can_fail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = folder / "bin"
    programs.mkdir()
    (programs / "wiseft").write_text(f'#!/bin/sh\nexec {sys.executable} -m wiseft_cli "$@"\n')
    (programs / "wiseft").chmod(0o755)
    paths = ":".join(filter(None, sys.path))
    prefix = f'export PATH="{programs}:$PATH" PYTHONPATH="{paths}"\n'
    prefix += "export GITHUB_STEP_SUMMARY=summary.md\n"
    merge, evaluate, report = steps_of_the_job()

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", prefix + script],
            capture_output=True,
            text=True,
        )

    done = run(merge)
    assert done.returncode == 0, done.stderr
    done = run(evaluate)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("gate holds: ") == 2
    assert len((folder / "results.jsonl").read_text().splitlines()) == 6
    assert (folder / "summary.md").stat().st_size > 0
    done = run(report)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").stat().st_size > 0
    (folder / "merged.safetensors").unlink()
    (folder / "finetuned.safetensors").rename(folder / "merged.safetensors")
    words = shlex.split(evaluate.replace("\\\n", " ").replace("$GITHUB_STEP_SUMMARY", "s.md"))
    assert main([*words[1:], "--workers", "0", "--force"]) == 3
    assert "gates failed for merged:\n  mnist:top1>=0.95: " in capsys.readouterr().err

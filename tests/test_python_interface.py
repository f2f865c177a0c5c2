"""The public Python names: listed, lazy, typed, documented, and working as docs/python.md shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wiseft_cli
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.demo.embedded import embedded_model_folder
from wiseft_cli.demo.image_folders import write_image_folders
from wiseft_cli.model.zeroshot_checkpoint import build_zeroshot_checkpoint

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"

PUBLIC_NAMES = [
    "EvalRequest",
    "Evaluation",
    "ImageClassifier",
    "LoadedCheckpoint",
    "MergedFile",
    "Prediction",
    "RankedClass",
    "Soup",
    "WiseftError",
    "ZeroshotCheckpoint",
    "__version__",
    "build_zeroshot_checkpoint",
    "evaluate",
    "load_checkpoint",
    "merge",
    "predict",
    "soup",
]


def run(program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def test_public_names_are_pinned() -> None:
    assert wiseft_cli.__all__ == PUBLIC_NAMES
    assert dir(wiseft_cli) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_each_public_name_can_be_imported_and_is_documented(name: str) -> None:
    value = getattr(wiseft_cli, name)
    assert f"`{name}`" in PAGE.read_text()
    if name != "__version__":
        assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'finetunes'"):
        getattr(wiseft_cli, "finetunes")  # noqa: B009


def test_importing_wiseft_loads_nothing_heavy() -> None:
    program = (
        "import sys, wiseft_cli; print(sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'torch', 'numpy', 'open_clip', 'typer', 'rich', 'scipy', 'yaml', 'PIL'}))"
    )
    assert run(program, ROOT).stdout == "[]\n"


def test_merging_loads_no_torch(demo_folder: Path) -> None:
    done = run(
        "import sys; sys.modules['torch'] = None; from wiseft_cli import merge;"
        "merge('zeroshot.safetensors', 'finetuned.safetensors', 'no-torch.safetensors', alpha='1')",
        demo_folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with (
        open_checkpoint(demo_folder / "no-torch.safetensors") as merged,
        open_checkpoint(demo_folder / "finetuned.safetensors") as finetuned,
    ):
        assert merged.card
        assert finetuned.card
        assert merged.card.digest == finetuned.card.digest


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `wiseft demo`, with two zero-shot heads in place of a fine-tuned model."""
    folder = tmp_path_factory.mktemp("demo")
    write_image_folders(folder)
    shutil.copytree(embedded_model_folder(), folder / "tiny-clip")
    model = f"local-dir:{folder / 'tiny-clip'}"
    for name, template in (("zeroshot", "a photo of the {}."), ("finetuned", "{}")):
        build_zeroshot_checkpoint(
            folder / f"{name}.safetensors",
            model=model,
            classes=folder / "classes.txt",
            templates=[template],
            device="cpu",
        )
    wiseft_cli.merge(
        folder / "zeroshot.safetensors",
        folder / "finetuned.safetensors",
        folder / "merged.safetensors",
    )
    return folder


EXAMPLES = re.findall(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)

EXPECTED_OUTPUT = {
    "Load a checkpoint": r"three\n",
    "Predict images": r"(data/\S+ \w+ [\d.]+\n)+",
    "Evaluate checkpoints": r"(?s)checkpoint .*optdigits 1 [\d.]+\n",
    "Merge by a method": r"ties\.safetensors blake3:[0-9a-f]{64}\n",
    "Merge files": r"python\.safetensors blake3:[0-9a-f]{64}\n",
    "Average several checkpoints": r"(\w+\.safetensors [\d.]+ [\d.]+ (True|False)\n){2}",
    "Build a zero-shot classifier": r"letters\.safetensors blake3:[0-9a-f]{64}\n",
    "Errors": r"classes\.txt.*\n.*\n",
}


@pytest.mark.parametrize(("title", "program"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_examples_of_the_page_run(title: str, program: str, demo_folder: Path) -> None:
    done = run(program, demo_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(EXPECTED_OUTPUT[title], done.stdout), done.stdout


USER_PROGRAM = """
from pathlib import Path
from wiseft_cli import EvalRequest, evaluate, load_checkpoint, merge, predict

def best_class(path: Path) -> str:
    names: list[str] = [item.top[0].name for item in predict(path, ["a.png"]) if item.top]
    return names[0]

def accuracy(path: str) -> float:
    lines = evaluate(EvalRequest(path, data="val")).lines
    value: float = lines[0].metrics["top1"].value
    return value

digest: str = merge("a", "b", "c", alpha=0.5).digest
names: tuple[str, ...] = load_checkpoint("c").class_names
"""


def mypy(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Check a program strictly; packages behind wiseft are not read, which takes a minute."""
    (folder / "user.py").write_text(program)
    lines = ["[mypy]", "strict = true", "follow_imports = silent"]
    for name in ("torch", "torchvision", "open_clip", "timm", "scipy", "matplotlib", "PIL"):
        lines += [f"[mypy-{name}.*]", "follow_imports = skip"]
    (folder / "mypy.ini").write_text("\n".join(lines))
    return subprocess.run(
        [sys.executable, "-m", "mypy", "user.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
    )


def test_a_user_program_is_checked_against_the_types(tmp_path: Path) -> None:
    done = mypy(tmp_path, USER_PROGRAM)
    assert done.returncode == 0, done.stdout
    wrong = USER_PROGRAM.replace("value: float", "value: str").replace(
        "digest: str", "digest: bytes"
    )
    errors = re.findall(r"^user.py:\d+: error: .*", mypy(tmp_path, wrong).stdout, re.M)
    assert len(errors) == 3, errors  # the number, the function that returns it, and the digest


@pytest.mark.parametrize("precision", ["float32", "FP16", ""])
def test_an_unknown_precision_is_rejected(precision: str, demo_folder: Path) -> None:
    checkpoint = demo_folder / "zeroshot.safetensors"
    request = wiseft_cli.EvalRequest(
        checkpoint, data=demo_folder / "data" / "optdigits", precision=precision
    )
    with pytest.raises(wiseft_cli.WiseftError, match=r"expected one of fp32, bf16, fp16"):
        wiseft_cli.evaluate(request)
    with pytest.raises(wiseft_cli.WiseftError, match=r"expected one of fp32, bf16, fp16"):
        list(wiseft_cli.predict(checkpoint, demo_folder / "data", precision=precision))


def test_an_unknown_dtype_of_a_merge_is_rejected(demo_folder: Path) -> None:
    output = demo_folder / "int8.safetensors"
    with pytest.raises(wiseft_cli.WiseftError, match=r"dtype 'int8': expected one of float32"):
        wiseft_cli.merge(
            demo_folder / "zeroshot.safetensors",
            demo_folder / "finetuned.safetensors",
            output,
            dtype="int8",
        )
    assert not output.exists()

"""`wiseft doctor`, and the message of a slim installation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.tiny import CLASSES, make_images, make_pair
from wiseft_cli import __version__

ROOT = Path(__file__).parents[2]


def run(*arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run wiseft in a process where some packages cannot be found."""
    program = (
        "import sys\n"
        f"blocked = {without!r}\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in blocked:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "import wiseft_cli.cli.app as app\n"
        "app.find_spec = lambda name: None if name in blocked else found(name)\n"
        "sys.exit(app.main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_versions_and_hardware_are_shown() -> None:
    done = run("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["wiseft"].startswith(f"{__version__} in ")
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert found["torch"] != "not installed"
    assert {"cpu", "memory", "/dev/shm", "this folder", "CUDA", "cuda:0"} <= found.keys()


def test_missing_torch_is_shown_and_is_not_an_error() -> None:
    done = run("doctor", without=("torch",))
    assert (done.returncode, done.stderr) == (0, "")
    assert "torch import" in done.stdout


@pytest.fixture(scope="module")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zero-shot checkpoint, an image and results lines, as a slim installation may meet them."""
    folder = tmp_path_factory.mktemp("slim")
    make_pair(folder)
    make_images(folder / "val", [entry.id for entry in CLASSES], per_class=1, seed=1)
    done = run(
        *("eval", str(folder / "zeroshot.safetensors"), str(folder / "finetuned.safetensors")),
        *("--alpha", "0,1", "--data", f"a={folder / 'val'}", "--data", f"b={folder / 'val'}"),
        *("--results", str(folder / "results.jsonl"), "--workers", "0"),
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("words", "module", "package"),
    [
        ("plot {}/results.jsonl -o {}/curve.png", "matplotlib", "matplotlib"),
        ("predict {}/zeroshot.safetensors {}/val --workers 0", "torch", "torch"),
        ("predict {}/zeroshot.safetensors {}/val --workers 0", "PIL", "pillow"),
        ("eval {}/zeroshot.safetensors --data {}/val --workers 0", "torch", "torch"),
        ("eval {}/zeroshot.safetensors --data {}/val --workers 0", "open_clip", "open_clip_torch"),
        ("export {}/zeroshot.safetensors --model RN50 -o {}/out", "open_clip", "open_clip_torch"),
        ("datasets list", "yaml", "pyyaml"),
    ],
)
def test_a_slim_installation_names_the_package_to_install(
    words: str, module: str, package: str, demo_files: Path
) -> None:
    done = run(*words.replace("{}", str(demo_files)).split(), without=(module,))
    assert done.returncode == 1
    assert f"error: this command needs the package {package}, which is not" in done.stderr
    assert f"pip install {package}\n" in done.stderr
    assert "Traceback" not in done.stderr

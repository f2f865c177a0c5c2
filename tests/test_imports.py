"""The house's walls: imports go one way, and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import wiseft_cli

PACKAGE = Path(wiseft_cli.__file__).parent

MAY_IMPORT = {
    "errors": set(),
    "compute": {"errors"},
    "checkpoint": {"compute", "errors"},
    "prompts": {"checkpoint", "errors"},
    "merging": {"prompts", "checkpoint", "compute", "errors"},
    "convert": {"merging", "checkpoint", "compute", "errors"},
    "data": {"prompts", "checkpoint", "compute", "errors"},
    "reporting": {"checkpoint", "errors"},
    "model": {
        "data",
        "convert",
        "merging",
        "reporting",
        "prompts",
        "checkpoint",
        "compute",
        "errors",
    },
    "evaluation": {
        "model",
        "data",
        "reporting",
        "convert",
        "merging",
        "checkpoint",
        "compute",
        "errors",
    },
    "training": {
        "evaluation",
        "model",
        "data",
        "merging",
        "prompts",
        "checkpoint",
        "compute",
        "errors",
    },
    "demo": {"reporting", "errors"},
}
TORCH_FREE = {"checkpoint", "prompts", "merging", "reporting", "convert", "errors"}
TORCH_FREE_MODULES = {"compute/torchrun.py", "compute/disk.py", "compute/workers.py"}
HEAVY = {"torch", "torchvision", "open_clip", "timm"}
COMMANDS = (
    "zeroshot-head",
    "finetune",
    "merge",
    "soup",
    "fisher",
    "eval",
    "plot",
    "report",
    "predict",
    "export",
    "convert",
    "inspect",
    "diff",
    "datasets",
    "demo",
    "doctor",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards_only(path: Path) -> None:
    room = room_of(path)
    if room in ("cli", "__init__", "__main__"):
        return
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] == "wiseft_cli" and len(parts) > 1 and parts[1] not in ("__version__", room):
            assert parts[1] in MAY_IMPORT[room], f"{room} must not import {name}"


def test_no_modules_import_each_other_wherever_the_imports_stand() -> None:
    known = {name_of(path): path for path in modules()}
    graph = {name: imported_modules(path) & known.keys() for name, path in known.items()}
    assert len(graph["wiseft_cli.data.published_set"]) > 5
    TopologicalSorter(graph).prepare()  # raises where there is a circle, and names it


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """What a module may be run with: names for the type checker alone import nothing."""
    tree = ast.parse(path.read_text())
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    froms = [at for at in ast.walk(tree) if isinstance(at, ast.ImportFrom) and at not in unseen]
    return {
        name
        for at in froms
        for name in (f"{at.module}", *(f"{at.module}.{of.name}" for of in at.names))
    }


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_and_open_clip_stay_in_their_rooms(path: Path) -> None:
    room = room_of(path)
    roots = {name.split(".")[0] for name in imported_names(path)}
    if room in TORCH_FREE or str(path.relative_to(PACKAGE)) in TORCH_FREE_MODULES:
        assert not roots & HEAVY
    if room != "model":
        assert "open_clip" not in roots
    if path.name == "__init__.py" and path.parent != PACKAGE:
        # The public names of the package itself are lazy: tests/test_python_interface.py.
        assert not roots, "a package's __init__ imports nothing"


def run_without_heavy_packages(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys\n"
        f"for name in {sorted(HEAVY)!r}: sys.modules[name] = None\n"
        "from wiseft_cli.cli.app import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_works_where_torch_cannot_be_imported(command: str) -> None:
    done = run_without_heavy_packages(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: wiseft" in done.stdout


def test_help_lists_every_command() -> None:
    listed = run_without_heavy_packages("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command}" in listed


@pytest.mark.parametrize("words", ["", "show dtd", "show torchvision:GTSRB"])
def test_cards_are_listed_and_shown_where_torch_cannot_be_imported(words: str) -> None:
    done = run_without_heavy_packages("datasets", *words.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert "Describable Textures" in done.stdout or "GTSRB" in done.stdout


def test_a_card_that_needs_torchvision_says_so_where_it_cannot_be_imported() -> None:
    done = run_without_heavy_packages("datasets", "show", "torchvision:KMNIST")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: torchvision, which reads KMNIST, is not installed",
        "hint: pip install torchvision",
    ]


def test_help_imports_neither_numpy_nor_rich() -> None:
    program = (
        "import sys; from wiseft_cli.cli.app import main; main(['--help']);"
        "print([n for n in ('numpy', 'rich', 'torch', 'scipy', 'yaml') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.stdout.splitlines()[-1] == "[]"

"""Every imported package is declared in pyproject.toml, and the wheel contains only wiseft_cli."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS_FOR_TESTS = {"test", "wilds"}


def distribution_name(requirement: str) -> str:
    """Return the normalised name of a requirement such as `Open_CLIP-torch>=3.3`."""
    name = re.split(r"[<>=~!\[; ]", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Return the distributions that installing the package with these extras declares."""
    lists = (PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in extras))
    return {distribution_name(requirement) for listed in lists for requirement in listed}


def imported_roots(path: Path) -> set[str]:
    """Return the top-level packages that a module imports anywhere, standard library aside."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).split(".")[0])
    return roots - sys.stdlib_module_names


def undeclared(paths: list[Path], *, own: set[str], allowed: set[str]) -> dict[str, set[str]]:
    """Return packages that are neither `own` nor `allowed`, by module."""
    distributions = packages_distributions()
    found: dict[str, set[str]] = {}
    for path in paths:
        for root in imported_roots(path) - own:
            if not {distribution_name(name) for name in distributions.get(root, [root])} & allowed:
                found.setdefault(str(path.relative_to(ROOT)), set()).add(root)
    return found


def test_every_package_that_wiseft_imports_is_declared() -> None:
    modules = sorted((ROOT / "wiseft_cli").rglob("*.py"))
    extras = PROJECT["optional-dependencies"].keys() - EXTRAS_FOR_TESTS
    assert undeclared(modules, own={"wiseft_cli"}, allowed=declared(*extras)) == {}


def test_every_package_that_the_tests_import_is_declared() -> None:
    benchmarks = ROOT / "tests" / "benchmarks"  # these compare with programs installed by hand
    modules = [path for path in (ROOT / "tests").rglob("*.py") if benchmarks not in path.parents]
    allowed = declared(*PROJECT["optional-dependencies"])
    assert undeclared(modules, own={"wiseft_cli", "tests"}, allowed=allowed) == {}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel that is built from a copy of the repository."""
    copy = tmp_path_factory.mktemp("repository")
    for name in ("wiseft_cli", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    program = "from setuptools import build_meta; build_meta.build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", program], cwd=copy, check=True, capture_output=True)
    (wheel,) = (copy / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_contains_every_module_of_wiseft_and_nothing_else(wheel_names: list[str]) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "wiseft_cli").rglob("*.py")}
    assert {name for name in wheel_names if name.endswith(".py")} == modules
    roots = {name.split("/")[0] for name in wheel_names}
    assert {re.sub(r"-.*\.dist-info$", ".dist-info", root) for root in roots} == {
        "wiseft_cli",
        "wiseft_cli.dist-info",
    }
    assert not any("makers" in name for name in wheel_names)


def test_wheel_contains_the_files_that_wiseft_reads(wheel_names: list[str]) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "wiseft_cli").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert {name for name in wheel_names if name.startswith("wiseft_cli/")} >= files
    assert "wiseft_cli/demo/assets/digits.npz" in files

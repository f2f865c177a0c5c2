"""Imported packages are declared; the wheel and the sdist hold what they should, reproducibly."""

from __future__ import annotations

import ast
import re
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

import wiseft_cli
from tests.packages import EPOCH, FILES, FOLDERS, build_packages

ROOT = Path(__file__).parents[1]
PACKAGE = Path(wiseft_cli.__file__).parent
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
                found.setdefault(str(path), set()).add(root)
    return found


def test_every_package_that_wiseft_imports_is_declared() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    extras = PROJECT["optional-dependencies"].keys() - EXTRAS_FOR_TESTS
    assert undeclared(modules, own={"wiseft_cli"}, allowed=declared(*extras)) == {}


def test_every_package_that_the_tests_import_is_declared() -> None:
    # Benchmarks compare with programs that are installed by hand, as atheris is.
    by_hand = {ROOT / "tests" / "benchmarks", ROOT / "tests" / "fuzz" / "__main__.py"}
    modules = [
        path for path in (ROOT / "tests").rglob("*.py") if not by_hand & {path, *path.parents}
    ]
    allowed = declared(*PROJECT["optional-dependencies"])
    assert undeclared(modules, own={"wiseft_cli", "tests"}, allowed=allowed) == {}


DATA_FILES = {
    "wiseft_cli": {".typed"},
    "wiseft_cli/data/cards": {".yaml"},
    "wiseft_cli/data/cards/classes": {".txt", ".yaml"},
    "wiseft_cli/data/cards/maps": {".yaml"},
    "wiseft_cli/data/cards/templates": {".yaml"},
    "wiseft_cli/data/suites": {".yaml"},
    "wiseft_cli/demo/assets": {".npz"},
    "wiseft_cli/demo/assets/tiny-clip": {".gz", ".json", ".safetensors"},
    "wiseft_cli/training/presets": {".yaml"},
    "wiseft_cli/reporting/assets": (".css", ".j2", ".js", ".txt"),
    "wiseft_cli/reporting/schemas": (".json",),
}
"""Folders of the package with files other than modules, and the types of these files."""
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
OF_SETUPTOOLS = {
    "PKG-INFO",
    "setup.cfg",
    *(
        f"wiseft_cli.egg-info/{name}.txt"
        for name in ("SOURCES", "dependency_links", "entry_points", "requires", "top_level")
    ),
    "wiseft_cli.egg-info/PKG-INFO",
}
MAX_BYTES = 6_000_000


class Packages(NamedTuple):
    """A wheel and an sdist, with the names of their files; those of the sdist lack its root."""

    wheel: Path
    sdist: Path

    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            names = archive.namelist()
        assert len(names) == len(set(names))
        return set(names)

    def sdist_names(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    if not (ROOT / "wiseft_cli").is_dir():
        pytest.skip("these tests build the packages, and the sources are out of reach")
    return Packages(*build_packages(tmp_path_factory.mktemp("packages")))


def files_below(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_contains_the_package_and_its_metadata_and_nothing_else(packages: Packages) -> None:
    version = wiseft_cli.__version__
    metadata = {f"wiseft_cli-{version}.dist-info/{name}" for name in METADATA}
    assert packages.wheel_names() == files_below("wiseft_cli") | metadata
    assert "wiseft_cli/demo/assets/digits.npz" in packages.wheel_names()


def test_package_holds_modules_and_known_types_of_data() -> None:
    for path in PACKAGE.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            folder = path.parent.relative_to(PACKAGE.parent).as_posix()
            assert path.suffix in DATA_FILES.get(folder, ()), path


def test_sdist_contains_the_package_tests_and_documents(packages: Packages) -> None:
    expected = set().union(*map(files_below, FOLDERS))
    assert packages.sdist_names() == {*expected, *FILES, *OF_SETUPTOOLS}


def test_packages_are_small(packages: Packages) -> None:
    assert max(path.stat().st_size for path in packages) < MAX_BYTES


def test_two_builds_have_the_same_bytes(packages: Packages, tmp_path: Path) -> None:
    again = Packages(*build_packages(tmp_path))
    for one, other in zip(packages, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_neither_package_names_the_machine_that_built_it(packages: Packages) -> None:
    with tarfile.open(packages.sdist) as archive:
        owners = {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in archive}
    assert owners == {(0, 0, "", "", EPOCH)}
    with zipfile.ZipFile(packages.wheel) as archive:
        assert {one.date_time for one in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_installing_without_extras_pulls_nothing_for_tests_or_makers() -> None:
    for_tests = declared("test", "wilds") - declared()
    runtime = {distribution_name(requirement) for requirement in PROJECT["dependencies"]}
    assert not runtime & {*for_tests, "pytest", "hypothesis", "scikit-learn", "fonttools", "h5py"}
    modules = sorted(PACKAGE.rglob("*.py"))
    extras = PROJECT["optional-dependencies"].keys() - EXTRAS_FOR_TESTS
    used = set().union(*map(imported_roots, modules)) - {"wiseft_cli"}
    distributions = packages_distributions()
    needed = {distribution_name(name) for root in used for name in distributions.get(root, [root])}
    # open_clip imports torchvision; Pillow and safetensors read files for it too.
    unused = runtime - needed
    assert unused <= {"torchvision", "safetensors"}, f"declared, and never imported: {unused}"
    assert not needed & (for_tests - declared(*extras))

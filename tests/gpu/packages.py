"""Print the wheels of a folder that this Python needs: packages that are missing or too old.

python -m tests.gpu.packages WHEELS
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def wheels_to_install(wheels: Iterable[Path], requirements: Iterable[str]) -> list[Path]:
    """Return the wheels whose package is missing, or installed in a version that is not allowed.

    Args:
        wheels: Wheel files.
        requirements: Such as `torch>=2.6`.
    """
    parsed = map(Requirement, requirements)
    allowed = {canonicalize_name(one.name): one.specifier for one in parsed}
    needed = []
    for wheel in sorted(wheels):
        name = parse_wheel_filename(wheel.name)[0]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            needed.append(wheel)
            continue
        if not allowed.get(name, SpecifierSet()).contains(version, prereleases=True):
            needed.append(wheel)
    return needed


if __name__ == "__main__":
    required = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    for wheel in wheels_to_install(Path(sys.argv[1]).glob("*.whl"), required):
        print(wheel)

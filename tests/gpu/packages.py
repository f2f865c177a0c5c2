"""Find the wheels to install where packages that wiseft needs are missing or too old.

    python -m tests.gpu.packages WHEELS

Prints the path of each wheel in the folder WHEELS that this Python needs, one per line. Packages
that are missing and have no wheel there are listed on stderr, and the exit code is 1. Only
pyproject.toml and the metadata of packages are read.
"""

from __future__ import annotations

import sys
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def wheels_to_install(
    requirements: Iterable[str], wheels: dict[str, Path]
) -> tuple[list[Path], list[str]]:
    """Follow requirements through installed packages and wheels.

    Args:
        requirements: Such as `torch>=2.6`.
        wheels: Wheel files by canonical package name.
    Returns:
        The wheels needed, and the requirements that neither an installed package nor a wheel
        satisfies.
    """
    needed: dict[str, Path] = {}
    unmet: list[str] = []
    queue, seen = list(requirements), set()
    while queue:
        text = queue.pop()
        if text in seen:
            continue
        seen.add(text)
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        found = None if name in needed else _installed(requirement)
        if found is None:
            if name not in wheels:
                unmet.append(text)
                continue
            if parse_wheel_filename(wheels[name].name)[1] not in requirement.specifier:
                unmet.append(f"{text}, found {wheels[name].name}")
            needed[name] = wheels[name]
            found = _requirements_of(wheels[name])
        queue += found
    return sorted(needed.values()), sorted(unmet)


def _installed(requirement: Requirement) -> list[str] | None:
    """Return what an installed package requires, or None where the requirement is not met."""
    try:
        found = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return None
    if not requirement.specifier.contains(found.version, prereleases=True):
        return None
    return found.requires or []


def _requirements_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def main() -> int:
    """Print the wheels to install."""
    wheels = {parse_wheel_filename(p.name)[0]: p for p in Path(sys.argv[1]).glob("*.whl")}
    required = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    needed, unmet = wheels_to_install(required, {str(key): p for key, p in wheels.items()})
    for wheel in needed:
        print(wheel)
    for text in unmet:
        print(f"missing: {text}", file=sys.stderr)
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())

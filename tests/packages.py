"""Build the wheel and the sdist: `python -m tests.packages FOLDER`.

The bytes depend only on the tracked files and on the version of setuptools, not on times, users or
permissions.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("wiseft_cli", "tests", "docs", ".ci", ".github")
FILES = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
EPOCH = 315_532_800
"""1980-01-01, the first time that a zip file can hold."""
_CALL = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


def build_packages(folder: Path) -> tuple[Path, Path]:
    """Build both packages from a copy of the repository; return the wheel and the sdist."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        _copy_sources(source)
        for function in ("build_wheel", "build_sdist"):
            subprocess.run(
                [sys.executable, "-c", _CALL, function, str(folder.resolve())],
                cwd=source,
                env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)},
                check=True,
                capture_output=True,
            )
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    sdist.write_bytes(_without_circumstances(sdist))
    return wheel, sdist


def _copy_sources(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis")
    folder.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / name)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.parent.name == ".ci" else 0o644)


def _without_circumstances(sdist: Path) -> bytes:
    """Return the bytes of an sdist without users and times; setuptools 84 keeps both."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", mtime=EPOCH, fileobj=packed) as stream,
        tarfile.open(sdist) as old,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid = EPOCH, 0, 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


if __name__ == "__main__":
    for built in build_packages(Path(sys.argv[1])):
        print(built)

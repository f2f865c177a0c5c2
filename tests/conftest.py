"""Fixtures shared by the rooms' tests: the command line, in process and as a subprocess."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.training.fork_server import ForkServer
from wiseft_cli.cli.app import main
from wiseft_cli.compute.workers import default_workers

# One thread: results are compared to the bit, and the suite may share its cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test never reaches a hub; a forgotten download must fail, not hang.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# A test keeps nothing at home, and finds nothing there.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="wiseft-tests-")
os.environ["HF_HOME"] = os.path.join(os.environ["XDG_CACHE_HOME"], "huggingface")
os.environ["HF_HUB_CACHE"] = os.path.join(os.environ["HF_HOME"], "hub")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# A background shell ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Seeded, and without a clock: a busy machine must not fail a property.
settings.register_profile(
    "wiseft", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("wiseft")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the processes of `-n auto`: each loads torch, and takes about a gigabyte."""
    return default_workers()


RunWiseft = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_wiseft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunWiseft:
    """Run the command in this process, by default in `tmp_path`."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(cwd or tmp_path)
            code = main([*map(str, arguments)])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture
def run_wiseft_process(tmp_path: Path) -> RunWiseft:
    """Run the real command in a process of its own, by default in `tmp_path`."""

    def run(
        *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "wiseft_cli", *map(str, arguments)],
            cwd=cwd or tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """A process with torch loaded that forks others."""
    with ForkServer() as server:
        yield server

"""What every part of the check shares, and the ways it runs `wiseft`."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.gpu.figures import Figures


@dataclass(frozen=True)
class Context:
    """Where a part runs.

    Attributes:
        device: `cuda` or `cpu`.
        work: Folder for files of all parts.
        figures: Takes what the part measures.
        is_reduced: Whether to run on a small scale, and to fork commands from this process, which
            has loaded torch, in place of starting each as `python -m wiseft_cli`.
    """

    device: str
    work: Path
    figures: Figures
    is_reduced: bool

    def folder(self, name: str) -> Path:
        """Return a new folder of this part."""
        path = self.work / self.figures.part / name
        path.mkdir(parents=True)
        return path


@dataclass(frozen=True)
class Result:
    """How a command ended; a negative exit code is the number of a signal."""

    words: tuple[str, ...]
    exit_code: int
    seconds: float
    stdout: str
    stderr: str


class Command:
    """`wiseft` in a process of its own.

    Args:
        words: Words of the command line.
        setup: Python statements that the process runs first.
    """

    def __init__(self, context: Context, words: Sequence[object], *, setup: str = "") -> None:
        self.words = tuple(map(str, words))
        folder = context.work / context.figures.part
        folder.mkdir(parents=True, exist_ok=True)
        stem = tempfile.mktemp(prefix=f"{self.words[0]}-", dir=folder)
        self._streams = (Path(f"{stem}.out"), Path(f"{stem}.err"))
        self._begin = time.monotonic()
        self.pid = (_fork if context.is_reduced else _spawn)(self.words, setup, self._streams)

    def wait(self, seconds: float = 150) -> Result:
        """Wait for the end.

        Raises:
            TimeoutError: It took longer; the process was killed.
        """
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() - self._begin > seconds:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"wiseft {' '.join(self.words)}: not done after {seconds} s")
            time.sleep(0.02)
        lasted = time.monotonic() - self._begin
        texts = [path.read_text(errors="replace") for path in self._streams]
        return Result(self.words, os.waitstatus_to_exitcode(found[1]), lasted, *texts)

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


def _spawn(words: Sequence[str], setup: str, streams: tuple[Path, Path]) -> int:
    program = ["-m", "wiseft_cli"]
    if setup:
        program = ["-c", f"{setup}\nfrom wiseft_cli.__main__ import run\nrun()"]
    flags = os.O_WRONLY | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, at + 1, str(p), flags, 0o644) for at, p in enumerate(streams)]
    arguments = [sys.executable, *program, *words]
    return os.posix_spawn(sys.executable, arguments, os.environ, file_actions=actions)


def _fork(words: Sequence[str], setup: str, streams: tuple[Path, Path]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for at, path in enumerate(streams):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), at + 1)
        from wiseft_cli.cli.app import main

        exec(setup, {})
        code = main(list(words))
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(context: Context, words: Sequence[object], *, setup: str = "") -> Result:
    """Run a command that must succeed.

    Raises:
        RuntimeError: It failed; the message has the end of its stderr.
    """
    result = Command(context, words, setup=setup).wait()
    if result.exit_code:
        line = " ".join(result.words)
        raise RuntimeError(f"wiseft {line}: exit code {result.exit_code}\n{result.stderr[-2000:]}")
    return result


def call(words: Sequence[object]) -> str:
    """Run a command in this process, and return its stdout.

    Raises:
        RuntimeError: It failed.
    """
    from wiseft_cli.cli.app import main

    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = main(list(map(str, words)))
    signal.signal(signal.SIGTERM, handler)
    if code:
        raise RuntimeError(f"wiseft {' '.join(map(str, words))}: exit code {code}")
    return stdout.getvalue()


def side_by_side(context: Context, *jobs: Callable[[], Any]) -> list[Any]:
    """Run jobs that only wait for commands: at once, or one by one on a small scale."""
    if context.is_reduced:
        return [job() for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def guarded(context: Context, checks: Mapping[str, Callable[[], None]]) -> None:
    """Run named checks side by side; one that raises fails alone."""

    def run_one(name: str, check: Callable[[], None]) -> None:
        try:
            check()
        except Exception as error:
            context.figures.holds(f"{name}: ran to its end", False, note=str(error)[-400:])

    side_by_side(context, *(partial(run_one, *item) for item in checks.items()))


def read_log(path: Path, event: str = "step") -> list[dict[str, Any]]:
    """Return the events of one kind in a log of `wiseft finetune`; a cut last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return [entry for entry in entries if entry["event"] == event]


def accuracies(results: Path) -> dict[tuple[str, str], float]:
    """Return the primary metric of each row (its alpha, or its checkpoint) and set."""
    lines = map(json.loads, results.read_text().splitlines())
    return {
        (line["alpha"] or line["checkpoints"][0]["name"], line["set"]): line["metrics"][
            line["primary"]
        ]["value"]
        for line in lines
    }


def data_options(sets: dict[str, Path]) -> list[str]:
    """Return the `--data` words of image sets."""
    pairs = (("--data", f"{name}={folder}") for name, folder in sets.items())
    return list(itertools.chain.from_iterable(pairs))

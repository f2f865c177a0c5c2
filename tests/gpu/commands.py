"""What all parts of the check share, and the ways they run `wiseft`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.gpu.figures import Figures

Job = Callable[[], Any]


@dataclass(frozen=True)
class Context:
    """Where a part runs.

    Attributes:
        device: `cuda` or `cpu`.
        work: Folder for the files of all parts.
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


class Result(NamedTuple):
    """How a command ended; the exit code is negative after a signal."""

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

    def __init__(self, context: Context, words: Sequence[object], setup: str = "") -> None:
        self.line = list(map(str, words))
        stem = tempfile.mktemp(prefix=f"{context.figures.part}-{self.line[0]}-", dir=context.work)
        self._streams = [Path(f"{stem}.out"), Path(f"{stem}.err")]
        self._begin = time.monotonic()
        self.pid = (_fork if context.is_reduced else _spawn)(self.line, setup, self._streams)

    def wait(self, seconds: float = 150) -> Result:
        """Wait for the end.

        Raises:
            TimeoutError: It took longer; the process was killed.
        """
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() - self._begin > seconds:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"killed after {seconds} s: wiseft {' '.join(self.line)}")
            time.sleep(0.02)
        lasted = time.monotonic() - self._begin
        texts = (path.read_text(errors="replace") for path in self._streams)
        return Result(os.waitstatus_to_exitcode(found[1]), lasted, *texts)


def _spawn(words: Sequence[str], setup: str, streams: Sequence[Path]) -> int:
    program = ["-m", "wiseft_cli"]
    if setup:
        program = ["-c", f"{setup}\nfrom wiseft_cli.__main__ import run\nrun()"]
    flags = os.O_WRONLY | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, at, str(p), flags, 0o644) for at, p in enumerate(streams, 1)]
    arguments = [sys.executable, *program, *words]
    return os.posix_spawn(sys.executable, arguments, os.environ, file_actions=actions)


def _fork(words: Sequence[str], setup: str, streams: Sequence[Path]) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        for at, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), at)
        from wiseft_cli.cli.app import main

        exec(setup, {})
        code = main(list(words))
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(context: Context, words: Sequence[object], setup: str = "") -> Result:
    """Run a command that must succeed.

    Raises:
        RuntimeError: It failed; the message has the end of its stderr.
    """
    command = Command(context, words, setup)
    result = command.wait()
    if result.exit_code:
        line = f"exit code {result.exit_code}: wiseft {' '.join(command.line)}"
        raise RuntimeError(f"{line}\n{result.stderr[-1000:]}")
    return result


def call(words: Sequence[object]) -> str:
    """Run a command that must succeed in this process, and return its stdout."""
    from wiseft_cli.cli.app import main

    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = main(list(map(str, words)))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if code:
        raise RuntimeError(f"exit code {code}: wiseft {' '.join(map(str, words))}")
    return stdout.getvalue()


def side_by_side(context: Context, jobs: Mapping[str, Job]) -> dict[str, Any]:
    """Run jobs that mostly wait for commands, and return what each returned.

    One after another on a small scale, else at once. A job that raises fails as a check and is
    left out of the result.
    """
    returned = {}

    def run_one(name: str) -> None:
        try:
            returned[name] = jobs[name]()
        except Exception as error:
            note = f"{type(error).__name__}: {error}"
            context.figures.holds(f"{name}: ran to its end", False, note=note[-800:])

    if context.is_reduced:
        list(map(run_one, jobs))  # a fork is safe in the only thread
    else:
        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(run_one, jobs))
    return returned


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the steps in a log of `wiseft finetune`; a cut last line is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return [entry for entry in entries if entry["event"] == "step"]


def read_accuracies(results: Path) -> dict[tuple[str, str], float]:
    """Return top-1 accuracy by alpha (or checkpoint) and set."""
    return {
        (line["alpha"] or line["checkpoints"][0]["name"], line["set"]): line["metrics"]["top1"][
            "value"
        ]
        for line in map(json.loads, results.read_text().splitlines())
    }

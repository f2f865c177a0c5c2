"""A process with torch loaded that forks the processes of tests.

A new process imports torch, which takes most of the time of a test; torchrun imports it once more
for itself. A fork takes a tenth of a second. `test_torchrun.py` still starts torchrun where the
start, a signal or a second node matters.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn


class ForkServer:
    """A process that forks others on request; a context that ends it."""

    def __enter__(self) -> ForkServer:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.fork_server"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate()

    def call(self, target: str, *arguments: Any, folders: list[Path]) -> tuple[list[int], str, str]:
        """Call a function in new processes.

        Args:
            target: `module:function`; it is called with the rank and the arguments, and returns
                an exit code or None.
            arguments: Values that JSON can hold.
            folders: Working directory of each process; more than one process share a run, as if
                torchrun had started them.
        Returns:
            The exit codes, and what the processes wrote to stdout and stderr.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = json.dumps([target, arguments, list(map(str, folders))])
        print(request, file=self._server.stdin, flush=True)
        codes: list[int] = json.loads(self._server.stdout.readline())
        paths = [folders[0] / name for name in ("fork.out", "fork.err")]
        out, err = (path.read_text() for path in paths)
        for path in paths:
            path.unlink()
        return codes, out, err

    def run_two_ranks(
        self, *words: str, folder: Path, other_folder: Path | None = None
    ) -> tuple[int, str, str]:
        """Run a command in two processes that share a run; return what torchrun would return.

        Args:
            words: The words after `wiseft`.
            folder: Working directory.
            other_folder: Working directory of the second process, if it is another one.
        """
        target, folders = f"{__name__}:run_command", [folder, other_folder or folder]
        codes, out, err = self.call(target, *words, folders=folders)
        return int(any(codes)), out, err


def run_command(_rank: int, *words: str) -> int:
    """Run a command in this process."""
    from wiseft_cli.cli.app import main

    return main(words)


def _serve() -> None:
    import torch.distributed as dist

    import wiseft_cli.cli.finetune_report
    import wiseft_cli.cli.torchrun
    import wiseft_cli.training.estimate  # noqa: F401
    from wiseft_cli.cli.app import main

    with contextlib.redirect_stdout(sys.stderr):
        main(["finetune", "--print-recipe"])  # loads the modules that read options
    for line in sys.stdin:
        target, arguments, folders = json.loads(line)
        port = 0
        if len(folders) > 1:
            # As with torchrun, the parent owns the store, so that no other program takes its port.
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            port = store.port
        ranks = {}
        for rank in range(len(folders)):
            if (child := os.fork()) == 0:
                _run_child(rank, port, target, arguments, folders)
            ranks[child] = rank
        print(json.dumps(_wait(ranks)), flush=True)


def _run_child(
    rank: int, port: int, target: str, arguments: list[Any], folders: list[str]
) -> NoReturn:
    code = 1
    try:
        for descriptor, name in ((1, "fork.out"), (2, "fork.err")):
            flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
            os.dup2(os.open(f"{folders[0]}/{name}", flags), descriptor)
        os.chdir(folders[rank])
        if port:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(len(folders)),
                LOCAL_WORLD_SIZE=str(len(folders)),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                TORCHELASTIC_USE_AGENT_STORE="True",
            )
        module, function = target.split(":")
        code = getattr(importlib.import_module(module), function)(rank, *arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # torch never frees DDP's reducer, so gloo's threads live until the end, and the teardown
        # of an interpreter beside them is aborted about once in a hundred runs.
        os._exit(code)


def _wait(ranks: dict[int, int]) -> list[int]:
    """Return the exit codes by rank; as torchrun does, end the others after a failure."""
    codes = [0] * len(ranks)
    while ranks:
        child, status = os.wait()
        codes[ranks.pop(child)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    return codes


if __name__ == "__main__":
    _serve()

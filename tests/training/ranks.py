"""Two processes of a run, forked from a process that has torch loaded.

torchrun and its two processes import torch three times, which takes most of the time of a test.
A fork takes a tenth of a second. `test_torchrun.py` starts torchrun where the start itself, a
signal or a second node matters.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

WORLD_SIZE = 2


class Ranks:
    """A process that forks the two processes of each run; a context that ends it."""

    def __enter__(self) -> Ranks:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.ranks"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate()

    def call(
        self, target: str, *arguments: Any, folder: Path, other_folder: Path | None = None
    ) -> tuple[list[int], str, str]:
        """Call a function in two processes.

        Args:
            target: `module:function`; it is called with the rank and the arguments.
            arguments: Values that JSON can hold.
            folder: Working directory.
            other_folder: Working directory of the second process, if it is another one.
        Returns:
            The exit codes, and what both wrote to stdout and stderr.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        folders = [str(folder), str(other_folder or folder)]
        print(json.dumps([target, arguments, folders]), file=self._server.stdin, flush=True)
        codes: list[int] = json.loads(self._server.stdout.readline())
        texts = [Path(folder, name) for name in ("ranks.out", "ranks.err")]
        out, err = (path.read_text() for path in texts)
        for path in texts:
            path.unlink()
        return codes, out, err

    def wiseft(
        self, *words: str, folder: Path, other_folder: Path | None = None
    ) -> tuple[int, str, str]:
        """Run a command in two processes; return the exit code as torchrun does, and the output."""
        codes, out, err = self.call(
            "tests.training.ranks:run_command",
            *words,
            folder=folder,
            other_folder=other_folder,
        )
        return int(any(codes)), out, err


def run_command(_rank: int, *words: str) -> int:
    """Run a command in this process."""
    from wiseft_cli.cli.app import main

    return main(words)


def _serve() -> None:
    import torch.distributed as dist

    import wiseft_cli.cli.finetune_report
    import wiseft_cli.training.finetune
    import wiseft_cli.training.recipe_file  # noqa: F401

    for line in sys.stdin:
        target, arguments, folders = json.loads(line)
        # As with torchrun, the parent owns the store, so that no other program can take its port.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        children = {}
        for rank in range(WORLD_SIZE):
            if (child := os.fork()) == 0:
                _run_rank(rank, store.port, target, arguments, folders)
            children[child] = rank
        print(json.dumps(_wait(children)), flush=True)


def _run_rank(rank: int, port: int, target: str, arguments: list[Any], folders: list[str]) -> None:
    code = 1
    try:
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
        for descriptor, name in ((1, "ranks.out"), (2, "ranks.err")):
            os.dup2(os.open(f"{folders[0]}/{name}", flags), descriptor)
        os.chdir(folders[rank])
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(WORLD_SIZE),
            LOCAL_WORLD_SIZE=str(WORLD_SIZE),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        module, function = target.split(":")
        code = getattr(importlib.import_module(module), function)(rank, *arguments) or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # torch never frees DDP's reducer, so gloo's threads live until the end, and the teardown
        # of an interpreter beside them is aborted about once in a hundred runs.
        os._exit(code)


def _wait(children: dict[int, int]) -> list[int]:
    """Return the exit codes by rank; as torchrun does, end the others after a failure."""
    codes = [0] * WORLD_SIZE
    while children:
        child, status = os.wait()
        codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in children:
                os.kill(other, signal.SIGTERM)
    return codes


if __name__ == "__main__":
    _serve()

"""Run the parts of the check, each in a process of its own with a time limit; see check.sh.

The process that runs this loads torch once and never touches the GPU, so that parts can be forked
from it. Figures are merged into gpu.json and gpu.md while parts run: a part that dies or takes too
long leaves what it measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.commands import Context
from tests.gpu.figures import Figures, failed, not_run, read_figures, summarize

NO_GPU = 2
POLL_SECONDS = 0.2
RESERVE_SECONDS = 5


@dataclass(frozen=True)
class Part:
    """A module and function of this package, and the seconds it may take."""

    name: str
    function: str
    seconds: float


STAGES = (
    (Part("machine", "machine:describe", 60),),
    (Part("digits", "inputs:write_digits", 60),),
    (
        Part("right", "right:measure", 150),
        Part("contracts", "contracts:measure", 150),
        Part("photos", "inputs:write_photos", 90),
    ),
    (Part("finetune", "speed:measure_finetune", 120),),
    (Part("bounds", "bounds:measure", 45),),
    (Part("eval", "speed:measure_eval", 75),),
    (Part("head", "head:measure", 60),),
    (Part("compile", "speed:measure_compile", 60),),
)
"""Parts of a stage run side by side, stages one after another, the most telling first."""

INPUTS = {"machine", "digits", "photos"}


class Check:
    """One run of the check.

    Args:
        out: Folder of gpu.json and gpu.md.
        work: Folder for everything else.
        is_reduced: Whether to run on a small scale on the CPU.
        seconds: For everything.
        only: Names of the parts to run, beside those that write inputs; empty for all.
    """

    def __init__(
        self, out: Path, work: Path, *, is_reduced: bool, seconds: float, only: Sequence[str]
    ) -> None:
        self._out, self._work, self._is_reduced = out, work, is_reduced
        self._deadline = time.monotonic() + seconds
        self._only = only
        self._running: dict[int, tuple[Part, float, Figures]] = {}
        self._figures = work / "figures"
        self._figures.mkdir(parents=True)

    def run(self) -> int:
        """Run all stages and return the exit code."""
        try:
            for number, stage in enumerate(STAGES):
                for part in stage:
                    if not self._only or part.name in {*self._only, *INPUTS}:
                        self._start(number, part)
                while self._running:
                    self._poll()
                    if (self._figures / "no-gpu").exists():
                        return NO_GPU
        finally:
            for pid in self._running:
                _kill_group(pid)
            self._write()
        return 1 if failed(read_figures(self._figures)) else 0

    def _start(self, stage: int, part: Part) -> None:
        figures = Figures(part.name, self._figures / f"{stage}-{part.name}.jsonl")
        seconds = min(part.seconds, self._deadline - time.monotonic() - RESERVE_SECONDS)
        if seconds <= 0:
            figures.skip("all", "the time was used up")
            return
        print(f"== {part.name}, at most {seconds:.0f} s", flush=True)
        device = "cpu" if self._is_reduced else "cuda"
        context = Context(device, self._work, figures, self._is_reduced)
        pid = os.fork()
        if pid == 0:
            os._exit(_run_part(part, context))
        self._running[pid] = (part, time.monotonic() + seconds, figures)

    def _poll(self) -> None:
        time.sleep(POLL_SECONDS)
        for pid, (part, end, figures) in list(self._running.items()):
            is_late = time.monotonic() > end
            if is_late:
                _kill_group(pid)
            found, status = os.waitpid(pid, 0 if is_late else os.WNOHANG)
            if not found:
                continue
            del self._running[pid]
            _kill_group(pid)
            code = os.waitstatus_to_exitcode(status)
            if is_late:
                figures.skip("the rest", "the part took too long")
            elif code == NO_GPU and part.name == "machine":
                (self._figures / "no-gpu").touch()
            elif code:
                figures.holds("the part ran to its end", False, note=f"exit code {code}, see log")
            print(f"== {part.name} ended", flush=True)
        self._write()

    def _write(self) -> None:
        figures = read_figures(self._figures)
        if not figures:
            return
        (self._out / "gpu.json").write_text(json.dumps(figures, indent=1) + "\n")
        card = next((f["value"] for f in figures if f["check"] == "card"), "unknown card")
        (self._out / "gpu.md").write_text(summarize(figures, f"GPU check: {card}"))


def _run_part(part: Part, context: Context) -> int:
    """Run a part in this process, the leader of a group, and return its exit code."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    module, function = part.function.split(":")
    begin = time.monotonic()
    try:
        getattr(importlib.import_module(f"tests.gpu.{module}"), function)(context)
    except SystemExit as leave:
        return int(leave.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    context.figures.add("the whole part", time.monotonic() - begin, "s")
    return 0


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def load_everything() -> None:
    """Import what forked parts and commands need."""
    import wiseft_cli

    for module in pkgutil.walk_packages(wiseft_cli.__path__, "wiseft_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def main() -> int:
    """Run the check that the command line asks for."""
    parser = argparse.ArgumentParser(prog="check.sh")
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--cpu", action="store_true", help="small scale, without a GPU")
    parser.add_argument("--minutes", type=float, default=6.0, help="for everything")
    parser.add_argument("--only", default="", metavar="PART,PART")
    options = parser.parse_args()
    begin = time.monotonic()
    only = [name for name in options.only.split(",") if name]
    names = {part.name for stage in STAGES for part in stage}
    if unknown := set(only) - names:
        parser.error(f"--only: unknown parts {', '.join(sorted(unknown))}")
    check = Check(
        options.out,
        options.work,
        is_reduced=options.cpu,
        seconds=60 * options.minutes,
        only=only,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load_everything()
    print(f"== torch and wiseft loaded in {time.monotonic() - begin:.0f} s", flush=True)
    code = check.run()
    figures = read_figures(options.work / "figures")
    for figure in failed(figures):
        print(f"FAILED   {figure['part']}: {figure['check']}: {figure.get('note', '')}")
    for figure in not_run(figures):
        print(f"NOT RUN  {figure['part']}: {figure['check']}: {figure.get('note', '')}")
    print(f"== {time.monotonic() - begin:.0f} s, exit code {code}; see {options.out}/gpu.md")
    return code


if __name__ == "__main__":
    sys.exit(main())

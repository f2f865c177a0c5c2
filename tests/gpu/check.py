"""Run the parts of the check, each in a process of its own with a time limit; see check.sh.

This process loads torch once and never touches the GPU, so that parts can be forked from it.
Figures are merged into gpu.json and gpu.md while parts run: a part that dies or takes too long
leaves what it measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from pathlib import Path

from tests.gpu.commands import Context
from tests.gpu.figures import Figure, Figures, failed, not_run, read_figures, summarize

NO_GPU = 2
STAGES = (
    {"machine": ("inputs:describe_machine", 60)},
    {"digits": ("inputs:write_digits", 60)},
    {
        "right": ("right:measure", 150),
        "contracts": ("contracts:measure", 150),
        "photos": ("inputs:write_photos", 90),
    },
    {"finetune": ("speed:measure_finetune", 140)},
    {"bounds": ("bounds:measure", 45)},
    {"eval": ("speed:measure_eval", 90)},
    {"head": ("head:measure", 60)},
    {"compile": ("speed:measure_compile", 60)},
)
"""Stages one after another, the most telling first; of each the parts that run side by side, with
their function and the seconds that they may take."""
INPUTS = ("machine", "digits", "photos")


def run_stage(stage: dict[str, tuple[str, float]], options: argparse.Namespace) -> None:
    """Run the parts of a stage, and merge their figures as they come."""
    running: dict[int, tuple[Figures, float]] = {}
    try:
        for name, (function, limit) in stage.items():
            figures = Figures(name, options.figures / f"{time.monotonic():013.3f}-{name}.jsonl")
            slower = 4 if options.cpu else 1
            seconds = min(limit * slower, options.deadline - time.monotonic())
            if seconds <= 0:
                figures.skip("all of it", "the time was used up")
                continue
            print(f"== {name}, at most {seconds:.0f} s", flush=True)
            device = "cpu" if options.cpu else "cuda"
            context = Context(device, options.work, figures, is_reduced=options.cpu)
            pid = os.fork()
            if pid == 0:
                os._exit(run_part(function, context))
            running[pid] = (figures, time.monotonic() + seconds)
        while running:
            time.sleep(0.2)
            for pid, (figures, end) in list(running.items()):
                if is_ended(pid, figures, is_late=time.monotonic() > end):
                    del running[pid]
            write_report(options)
    finally:
        for pid in running:
            kill_group(pid)


def run_part(function: str, context: Context) -> int:
    """Run a part in this process, the first of a process group, and return its exit code."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    module, name = function.split(":")
    begin = time.monotonic()
    try:
        getattr(importlib.import_module(f"tests.gpu.{module}"), name)(context)
        note = f"{sum(os.times()[:4]):.1f} s of CPU time"
        context.figures.add("the whole part", time.monotonic() - begin, "s", note=note)
        return 0
    except SystemExit as leave:
        return int(leave.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def is_ended(pid: int, figures: Figures, *, is_late: bool) -> bool:
    """Return whether a part has ended; one that is late is killed."""
    if is_late:
        kill_group(pid)
    found, status = os.waitpid(pid, 0 if is_late else os.WNOHANG)
    if not found:
        return False
    kill_group(pid)
    code = os.waitstatus_to_exitcode(status)
    if is_late:
        figures.skip("the rest", "the part took too long")
    elif code == NO_GPU and figures.part == "machine":
        sys.exit(NO_GPU)
    elif code:
        figures.holds("the part ran to its end", False, f"exit code {code}, see the log")
    print(f"== {figures.part} ended", flush=True)
    return True


def kill_group(pid: int) -> None:
    """Kill what a part has left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def write_report(options: argparse.Namespace) -> list[Figure]:
    """Write gpu.json and gpu.md from the figures there are, and return these."""
    figures = read_figures(options.figures)
    (options.out / "gpu.json").write_text(json.dumps(figures, indent=1) + "\n")
    (options.out / "gpu.md").write_text(summarize(figures))
    return figures


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
    parser.add_argument("--minutes", type=float, help="for everything; 6, with --cpu 30")
    parser.add_argument("--only", default="", metavar="PART,PART", help="beside the inputs")
    options = parser.parse_args()
    begin = time.monotonic()
    options.deadline = begin + 60 * (options.minutes or (30 if options.cpu else 6))
    options.figures = options.work / "figures"
    options.figures.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.cpu:
        os.environ["OMP_NUM_THREADS"] = "1"  # forks and OpenMP's threads do not mix
    load_everything()
    print(f"== torch and wiseft loaded in {time.monotonic() - begin:.0f} s", flush=True)
    only = options.only.split(",") if options.only else [name for stage in STAGES for name in stage]
    for stage in STAGES:
        run_stage({name: stage[name] for name in stage if name in (*only, *INPUTS)}, options)
    figures = write_report(options)
    for title, rows in (("FAILED", failed(figures)), ("NOT RUN", not_run(figures))):
        for row in rows:
            print(f"{title}  {row['part']}: {row['check']}: {row.get('note', '')}")
    code = 1 if failed(figures) else 0
    print(f"== {time.monotonic() - begin:.0f} s, exit code {code}; see {options.out}/gpu.md")
    return code


if __name__ == "__main__":
    sys.exit(main())

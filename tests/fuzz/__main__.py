"""Fuzz the parsers: `python -m tests.fuzz --minutes 10 [TARGET...]`.

Uses the coverage-guided fuzzer atheris if it is installed (`pip install atheris`), and random
mutations otherwise. Each target runs in a process of its own and gets an equal share of the time.
A case that fails is kept in `tests/fuzz/corpus/TARGET`, where the ordinary tests run it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import cases
from tests.fuzz.coverage import lines_covered
from tests.fuzz.targets import TARGETS, dictionary


def main() -> int:
    """Run the fuzzer; return 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10, help="time for all targets together")
    parser.add_argument("--engine", choices=("atheris", "random"), default=_default_engine())
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    seconds = options.minutes * 60 / len(names)
    if options.in_process:
        engine = _run_atheris if options.engine == "atheris" else _run_random
        return engine(names[0], seconds)
    failed = [name for name in names if not _run_apart(name, seconds, options.engine)]
    print(f"{len(names) - len(failed)} targets passed, {len(failed)} failed", *failed)
    return 1 if failed else 0


def _default_engine() -> str:
    return "atheris" if importlib.util.find_spec("atheris") else "random"


def _run_apart(name: str, seconds: float, engine: str) -> bool:
    arguments = [name, "--minutes", str(seconds / 60), "--engine", engine, "--in-process"]
    if subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments]).returncode:
        return False
    cases.ignore_warnings()
    covered, total = lines_covered(TARGETS[name].module, lambda: _replay(name))
    print(f"  {covered} of {total} lines of {TARGETS[name].module} run", flush=True)
    return True


def _run_random(name: str, seconds: float) -> int:
    cases.ignore_warnings()
    target, source = TARGETS[name], random.Random(os.urandom(16))
    n_cases, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = cases.mutate(target, source)
        try:
            cases.run_case(target, data)
        except BaseException as error:
            print(f"{name}: {error!r} in {_keep(name, data)}", flush=True)
            return 1
        n_cases += 1
    print(f"{name}: {n_cases} cases passed", flush=True)
    return 0


def _run_atheris(name: str, seconds: float) -> int:
    import atheris  # type: ignore[import-untyped]

    cases.ignore_warnings()
    target = TARGETS[name]
    with atheris.instrument_imports(include=["wiseft_cli", "yaml", "json", "tarfile"]):
        importlib.import_module(target.module)
    n_cases = 0

    def run(data: bytes) -> None:
        nonlocal n_cases
        try:
            cases.run_case(target, data)
        except BaseException as error:
            print(f"{name}: {error!r} in {_keep(name, data)}", flush=True)
            os._exit(1)
        n_cases += 1
        if time.monotonic() > end:  # libFuzzer ends the process without a report
            print(f"{name}: {n_cases} cases passed", flush=True)
            os._exit(0)

    folder = Path(tempfile.mkdtemp(prefix="wiseft-fuzz-corpus-"))
    for number, data in enumerate(cases.starting_cases(target)):
        (folder / str(number)).write_bytes(data)
    words = folder.with_suffix(".dict")
    words.write_text("".join(f'"{_escape(word)}"\n' for word in dictionary(target)))
    limits = ["-timeout=20", "-rss_limit_mb=4096", f"-max_len={1 << 16}", "-verbosity=0"]
    end = time.monotonic() + seconds
    atheris.Setup([sys.argv[0], *limits, f"-dict={words}", str(folder)], run)
    atheris.Fuzz()
    return 0


def _escape(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _keep(name: str, data: bytes) -> Path:
    path = cases.CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _replay(name: str) -> None:
    target, source = TARGETS[name], random.Random(0)
    for data in [
        *cases.starting_cases(target),
        *(cases.mutate(target, source) for _ in range(300)),
    ]:
        cases.run_case(target, data)


if __name__ == "__main__":
    sys.exit(main())

"""Every parser survives its seeds, earlier findings, and random mutations."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.fuzz.cases import FindingError, corpus_of, mutate, run_case
from tests.fuzz.targets import TARGETS, Target
from wiseft_cli.errors import WiseftError

FINDINGS = [(name, path) for name in TARGETS for path in corpus_of(name)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_parser_accepts_or_rejects_mutated_inputs(name: str) -> None:
    target, source = TARGETS[name], random.Random(20260101)
    for data in target.seeds:
        run_case(target, data)
    for _ in range(50):
        run_case(target, mutate(target, source))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "path"), FINDINGS, ids=[f"{name}-{path.name}" for name, path in FINDINGS]
)
def test_earlier_findings_stay_mended(name: str, path: Path) -> None:
    run_case(TARGETS[name], path.read_bytes())


def _write_outside(_folder: Path, data: bytes) -> None:
    Path("escaped.txt").write_bytes(data)


def _print_escape(_folder: Path, _data: bytes) -> None:
    error = WiseftError("")
    error.message = "\x1b[2J"
    raise error


def _run_program(_folder: Path, _data: bytes) -> None:
    import os

    os.system("true")


def _need_memory(_folder: Path, _data: bytes) -> None:
    assert len(b"x" * (600 << 20)) > 0


@pytest.mark.parametrize("parse", [_write_outside, _print_escape, _run_program, _need_memory])
def test_harness_notices_what_a_parser_must_not_do(
    parse: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FindingError):
        run_case(Target(parse, (), "tests.fuzz"), b"case")  # type: ignore[arg-type]
    assert sys.exc_info()[0] is None

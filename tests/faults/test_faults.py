"""Whatever file operation fails, an output is whole or absent, and an older one is untouched."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.commands import COMMANDS, WritingCommand, make_inputs
from tests.faults.injector import SHORT, FaultInjector
from wiseft_cli.cli.app import main

FAULTS = (errno.ENOSPC, errno.EIO, errno.EACCES)
SOME, ALL = 6, pytest.param(None, marks=pytest.mark.exhaustive, id="all")
Captured = pytest.CaptureFixture[str]
Files = dict[str, bytes]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(inputs, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def files_of(name: str) -> Files:
    """Return the content of an output, or of every file in it."""
    found = [path for path in (Path(name), *Path(name).rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in found if ".wiseft-tmp-" not in path.name}


def names_here() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def leftovers(names: set[str], operation: str) -> set[str]:
    """Return files that must not be left: all but a run's states and what could not be removed."""
    names = {name for name in names if not name.startswith("out.safetensors.state")}
    is_removal = operation in ("unlink", "remove", "rmdir")
    return {name for name in names if not (is_removal and ".wiseft-tmp-" in name)}


def remove(names: set[str]) -> None:
    for name in sorted(names, reverse=True):
        if Path(name).is_dir():
            Path(name).rmdir()
        else:
            Path(name).unlink()


def run(command: WritingCommand, injector: FaultInjector, *more: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        injector.install(patch)
        return main([*command.words, *more])


def faults_of(operations: list[str], count: int | None) -> list[tuple[int, int]]:
    """Return operations with an error each, and short writes; all of them, or a random sample."""
    faults = [(number, FAULTS[number % 3]) for number in range(len(operations))]
    faults += [(n, SHORT) for n, name in enumerate(operations) if name in ("write", "pwrite")]
    return faults if count is None else random.Random(7).sample(faults, min(count, len(faults)))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [SOME, ALL])
@pytest.mark.parametrize("name", COMMANDS)
def test_new_output_is_whole_or_absent(
    name: str, count: int | None, place: Path, capsys: Captured
) -> None:
    command = COMMANDS[name]
    command.prepare()
    before = names_here()
    assert main([*command.words]) == 0  # matplotlib writes a list of fonts in its first run
    remove(names_here() - before)
    whole_run = FaultInjector(None)
    assert run(command, whole_run) == 0
    after = names_here()
    whole = {output: files_of(output) for output in command.outputs}
    assert all(whole.values())
    for number, fault in faults_of(whole_run.done, count):
        remove(names_here() - before)
        capsys.readouterr()
        injector = FaultInjector(number, fault)
        code = run(command, injector)
        err = capsys.readouterr().err
        operation = injector.done[number]
        where = f"{operation}, number {number}, {os.strerror(abs(fault))}: {err}"
        left = {output: files_of(output) for output in command.outputs}
        assert all(left[output] in ({}, whole[output]) for output in left), where
        assert leftovers(names_here() - after, operation) == set(), where
        if code == 0:
            assert left == whole, where
        else:
            assert code == 1, where
            assert "out" in err or "at-" in err, where
            assert "nothing was kept" not in err or not all(left.values()), where


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [SOME, ALL])
@pytest.mark.parametrize("name", COMMANDS)
def test_existing_output_is_untouched_or_replaced_whole(
    name: str, count: int | None, place: Path, capsys: Captured
) -> None:
    command = COMMANDS[name]
    command.prepare()
    before = names_here()
    assert main([*command.words]) == 0
    whole_run = FaultInjector(None)
    assert run(command, whole_run, *command.force) == 0
    after = names_here()
    whole = {output: files_of(output) for output in command.outputs}
    for number, fault in faults_of(whole_run.done, count):
        remove(names_here() - before)
        assert main([*command.words]) == 0
        capsys.readouterr()
        injector = FaultInjector(number, fault)
        code = run(command, injector, *command.force)
        err = capsys.readouterr().err
        operation = injector.done[number]
        where = f"{operation}, number {number}, {os.strerror(abs(fault))}: {err}"
        assert code in (0, 1), where
        assert {output: files_of(output) for output in command.outputs} == whole, where
        assert leftovers(names_here() - after, operation) == set(), where


@pytest.mark.parametrize("name", ["merge at three alphas", "merge to a folder", "finetune"])
def test_interrupted_system_calls_change_nothing(name: str, place: Path) -> None:
    command = COMMANDS[name]
    before = names_here()
    assert main([*command.words]) == 0
    whole = {output: files_of(output) for output in command.outputs}
    remove(names_here() - before)
    interruptions = []
    former = signal.signal(signal.SIGALRM, lambda *_: interruptions.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        assert main([*command.words]) == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert len(interruptions) > 5
    assert {output: files_of(output) for output in command.outputs} == whole


@pytest.mark.parametrize("name", ["merge", "merge to a folder", "eval --results"])
def test_disk_without_locks_works_and_keeps_files_of_other_processes(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    command = COMMANDS[name]
    other = Path(f".{command.outputs[0]}.wiseft-tmp-0123456789ab")
    other.write_bytes(b"in use")
    assert main([*command.words]) == 0
    assert all(files_of(output) for output in command.outputs)
    assert other.read_bytes() == b"in use"


def test_disk_that_returns_other_bytes_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    command = COMMANDS["merge"]
    read = os.preadv

    def read_wrongly(descriptor: int, buffers: list[memoryview], position: int) -> int:
        count = read(descriptor, buffers, position)
        if position > 20_000:
            buffers[0][0] ^= 1
        return count

    monkeypatch.setattr(os, "preadv", read_wrongly)
    assert main([*command.words]) == 1
    assert "digest" in capsys.readouterr().err
    assert files_of("out.safetensors") == {}

"""Run one case of a target, and fail if the parser does anything but parse or reject it."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS, Target, dictionary
from wiseft_cli.errors import WiseftError, escape_controls

CORPUS = Path(__file__).with_name("corpus")
MAX_SECONDS = 5.0
MAX_MEMORY_BYTES = 500 << 20
MAX_CASE_BYTES = 1 << 20

_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class FindingError(AssertionError):
    """A case that a parser handles wrongly."""


class _Guard:
    """An audit hook that rejects what no parser may do while a case runs."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.installed = False

    def install(self) -> None:
        if not self.installed:  # an audit hook cannot be removed
            sys.addaudithook(self)
            self.installed = True

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event.startswith(_FORBIDDEN):
            raise FindingError(f"the parser calls {event} with {arguments!r}")
        if event == "open":
            path, _, flags = arguments
            is_outside = isinstance(path, str) and not path.startswith((self.folder, "/dev/"))
            if flags & _WRITING and is_outside:
                raise FindingError(f"the parser writes {path}")


_GUARD = _Guard()


def run_case(target: Target, data: bytes) -> None:
    """Parse one case.

    Raises:
        FindingError: The parser raised an error other than `WiseftError`, needed too much time or
            memory, printed control characters, started a program, opened a connection, or wrote
            outside of its folder.
    """
    _GUARD.install()
    folder = Path(tempfile.mkdtemp(prefix="wiseft-fuzz-"))
    began, before = time.process_time(), _reset_peak()
    try:
        _GUARD.folder = str(folder)
        try:
            texts = _texts(target.parse(folder, data))
        except WiseftError as error:
            texts = [*error.message.split("\n  "), error.hint or ""]
        finally:
            _GUARD.folder = None
        for text in texts:
            if escape_controls(text) != text:
                raise FindingError(f"control characters in {text!r}")
        if (seconds := time.process_time() - began) > MAX_SECONDS:
            raise FindingError(f"took {seconds:.1f} s")
        if (grown := _status_bytes("VmHWM") - before) > MAX_MEMORY_BYTES:
            raise FindingError(f"took {grown >> 20} MiB of memory")
    finally:
        shutil.rmtree(folder)


def _texts(result: object) -> list[str]:
    """Return the texts that a target returns; whoever prints them escapes them."""
    if result is None:
        return []
    assert isinstance(result, Iterable)
    return [escape_controls(str(text)) for text in result]


def _reset_peak() -> int:
    """Return the resident bytes, from which the next peak counts if the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def mutate(target: Target, source: random.Random) -> bytes:
    """Return a seed or a finding of a target with a few random changes."""
    data = bytearray(source.choice(starting_cases(target)))
    words = dictionary(target)
    for _ in range(source.randint(1, 6)):
        begin, end = sorted(source.randrange(len(data) + 1) for _ in range(2))
        end = min(end, begin + source.choice((1, 4, 64, 4096)))
        match source.randrange(5):
            case 0:
                data[begin:end] = b""
            case 1:
                data[begin:begin] = source.choice(words)
            case 2:
                data[begin:end] = source.choice(words)
            case 3:
                data[begin:begin] = bytes(data[begin:end]) * source.choice((1, 2, 100))
            case _:
                data[begin:end] = source.randbytes(end - begin)
        del data[MAX_CASE_BYTES:]
    return bytes(data)


def starting_cases(target: Target) -> list[bytes]:
    """Return the seeds of a target and the findings in its corpus."""
    name = next(name for name, known in TARGETS.items() if known is target)
    return [*target.seeds, *(path.read_bytes() for path in corpus_of(name))]


def corpus_of(name: str) -> list[Path]:
    """Return the files with earlier findings of a target."""
    return sorted((CORPUS / name).glob("*"))


def ignore_warnings() -> None:
    """Ignore warnings, which libraries raise for many malformed files."""
    warnings.simplefilter("ignore")

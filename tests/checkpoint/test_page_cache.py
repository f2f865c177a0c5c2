"""Direct writes give the same bytes as the page cache, whatever the file system can do."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from wiseft_cli.checkpoint import page_cache
from wiseft_cli.checkpoint.atomic import AtomicFile
from wiseft_cli.checkpoint.page_cache import PAGE_BYTES, DirectPages
from wiseft_cli.errors import OutputError

SIZE = 40 * PAGE_BYTES + 123


def page_aligned(nbytes: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


def pieces(seed: int) -> list[tuple[int, int]]:
    """Cut SIZE bytes at random places, a few of them within a page, and shuffle the pieces."""
    generator = np.random.default_rng(seed)
    cuts = np.unique(generator.integers(1, SIZE, 12))
    edges = [0, *cuts.tolist(), SIZE]
    found = list(itertools.pairwise(edges))
    generator.shuffle(found)
    return [(int(begin), int(end)) for begin, end in found]


def write_in_pieces(path: Path, content: np.ndarray, seed: int) -> AtomicFile:
    with AtomicFile(path) as file:
        file.reserve(SIZE)
        file.bypass_page_cache()
        for begin, end in pieces(seed):
            buffer = page_aligned(end - begin + PAGE_BYTES)
            offset = begin % PAGE_BYTES
            part = buffer[offset : offset + end - begin]
            part[:] = content[begin:end]
            file.write_at(begin, part.data)
        file.flush()
        file.commit()
    return file


@pytest.mark.parametrize("seed", range(8))
def test_pieces_of_any_size_and_order_give_the_same_bytes(tmp_path: Path, seed: int) -> None:
    content = np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)
    write_in_pieces(tmp_path / "f", content, seed)
    assert (tmp_path / "f").read_bytes() == content.tobytes()


def test_memory_aligned_differently_from_the_file_gives_the_same_bytes(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    with AtomicFile(tmp_path / "f") as file:
        file.bypass_page_cache()
        for begin, end in pieces(0):
            shifted = page_aligned(end - begin + 2 * PAGE_BYTES)
            offset = begin % PAGE_BYTES + 8
            part = shifted[offset : offset + end - begin]
            part[:] = content[begin:end]
            file.write_at(begin, part.data)
        file.commit()
    assert (tmp_path / "f").read_bytes() == content.tobytes()


def test_a_file_system_without_direct_writes_is_written_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refuse_direct(path: object, flags: int, *rest: object, **named: object) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse_direct)
    content = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    write_in_pieces(tmp_path / "f", content, 1)
    assert (tmp_path / "f").read_bytes() == content.tobytes()


def test_a_system_without_o_direct_is_written_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    pages = DirectPages(tmp_path / "absent")
    assert pages.is_refused
    assert pages.write(0, memoryview(bytes(3 * PAGE_BYTES))) == (0, 0)
    pages.close()


def test_a_direct_write_that_was_refused_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").touch()
    pages = DirectPages(tmp_path / "f")
    tries = []

    def refuse(*_: object) -> int:
        tries.append(1)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(page_cache.os, "pwrite", refuse)
    monkeypatch.setattr(pages, "is_refused", False)
    for _ in range(3):
        begin, end = pages.write(0, memoryview(bytes(3 * PAGE_BYTES)))
        assert begin == end
    pages.close()
    assert len(tries) == 1


def test_a_full_disk_raises_an_error_that_names_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with AtomicFile(tmp_path / "f") as file:
        file.bypass_page_cache()
        monkeypatch.setattr(page_cache.os, "pwrite", full)
        with pytest.raises(OutputError, match=r"f: cannot be written: No space left on device"):
            file.write_at(0, bytes(2 * PAGE_BYTES))
    assert list(tmp_path.iterdir()) == []

"""Hostile and damaged files: one message that names the file, before any tensor is read."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import RunWiseft
from tests.merging.pairs import write_foreign, write_pair
from wiseft_cli.checkpoint.format import read_header
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.errors import CheckpointError, NotACheckpointError, WiseftError


def container(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = container({"w": entry([2], [0, 8])}, b"\0" * 8)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes, a safetensors file has at least 10"),
    "seven bytes": (b"1234567", "7 bytes, a safetensors file has at least 10"),
    "header beyond the file": (
        (1000).to_bytes(8, "little") + b"{}",
        "truncated: the header ends at byte 1008, the file at byte 10",
    ),
    "header over the cap": (
        (100_000_001).to_bytes(8, "little") + b"{}",
        "not a safetensors file: its header would have 100000001 bytes, the maximum is 100000000",
    ),
    "header length of all ones": (
        b"\xff" * 8 + b"{}",
        "not a safetensors file: its header would have 18446744073709551615 bytes, "
        "the maximum is 100000000",
    ),
    "not JSON": (
        container(b"{nonsense"),
        "damaged header: not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ),
    "no header": (
        container(b""),
        "damaged header: not JSON: Expecting value: line 1 column 1 (char 0)",
    ),
    "a list": (container([]), "damaged header: expected a JSON object"),
    "bad UTF-8": (
        container(b'{"\xff": 1}'),
        "damaged header: 'utf-8' codec can't decode byte 0xff",
    ),
    "unpaired surrogate": (
        container(b'{"\\ud800": 1}'),
        "damaged header: 'utf-8' codec can't encode character '\\ud800'",
    ),
    "name used twice": (
        container(b'{"w": {}, "v": {}, "w": {}, "v": {}}'),
        "damaged header: duplicate names: 'v', 'w'",
    ),
    "field used twice": (
        container(b'{"w": {"dtype": "F32", "dtype": "F32", "shape": [], "data_offsets": [0, 4]}}'),
        "damaged header: duplicate names: 'dtype'",
    ),
    "metadata of numbers": (
        container({"__metadata__": {"step": 3}}),
        "damaged header: __metadata__ must map strings to strings",
    ),
    "metadata a list": (
        container({"__metadata__": []}),
        "damaged header: __metadata__ must map strings to strings",
    ),
    "entry without shape": (
        container({"w": {"dtype": "F32", "data_offsets": [0, 4]}}),
        "damaged header: tensor 'w': expected exactly dtype, shape and data_offsets",
    ),
    "entry a string": (
        container({"w": "F32"}),
        "damaged header: tensor 'w': expected exactly dtype, shape and data_offsets",
    ),
    "unknown dtype": (
        container({"w": entry([1], [0, 4], "F33")}),
        "damaged header: tensor 'w': unknown dtype 'F33'",
    ),
    "dtype a list": (
        container({"w": entry([1], [0, 4], ["F32"])}),
        "damaged header: tensor 'w': unknown dtype ['F32']",
    ),
    "negative extent": (
        container({"w": entry([-1], [0, 4])}),
        "damaged header: tensor 'w': shape [-1], expected a list of integers from 0",
    ),
    "fractional extent": (
        container({"w": entry([1.0], [0, 4])}),
        "damaged header: tensor 'w': shape [1.0], expected a list of integers from 0",
    ),
    "boolean extent": (
        container({"w": entry([True], [0, 4])}),
        "damaged header: tensor 'w': shape [True], expected a list of integers from 0",
    ),
    "negative offset": (
        container({"w": entry([1], [-4, 0])}),
        "damaged header: tensor 'w': data_offsets [-4, 0], expected a start and an end",
    ),
    "offsets in the wrong order": (
        container({"w": entry([1], [4, 0])}, b"\0" * 4),
        "damaged header: tensor 'w': data_offsets [4, 0], expected a start and an end",
    ),
    "three offsets": (
        container({"w": entry([1], [0, 4, 8])}, b"\0" * 8),
        "damaged header: tensor 'w': data_offsets [0, 4, 8], expected a start and an end",
    ),
    "wrong size for the shape": (
        container({"w": entry([3], [0, 8])}, b"\0" * 8),
        "damaged header: tensor 'w': 8 bytes of data, expected 12 for F32 of shape [3]",
    ),
    "half a byte": (
        container({"w": entry([3], [0, 2], "F4")}, b"\0" * 2),
        "damaged header: tensor 'w': 2 bytes of data, expected 1.5 for F4 of shape [3]",
    ),
    "a size that overflows to the right one": (
        container({"w": entry([2**62 + 1, 4], [0, 16])}, b"\0" * 16),
        "damaged header: tensor 'w': 16 bytes of data, expected more than any file holds "
        "for F32 of shape [4611686018427387905, 4]",
    ),
    "overlapping tensors": (
        container({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, b"\0" * 12),
        "damaged header: tensor 'b' overlaps the previous tensor "
        "(begins at byte 135, expected 139)",
    ),
    "a gap": (
        container({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, b"\0" * 12),
        "damaged header: tensor 'b' follows a gap (begins at byte 139, expected 135)",
    ),
    "truncated data": (
        GOOD[:-1],
        "truncated: the tensors end at byte 77, the file at byte 76",
    ),
    "trailing bytes": (GOOD + b"\0", "damaged: 1 byte after the last tensor"),
    "GGUF": (
        b"GGUF\x03\0\0\0" + bytes(8),
        "is a GGUF file of quantized weights, expected a safetensors file",
    ),
    "git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "is a Git LFS pointer, expected a safetensors file",
    ),
    "HTML page": (
        b"\n<!DOCTYPE html><html><body>404</body></html>",
        "is an HTML or XML page, expected a safetensors file",
    ),
    "HTML page with a byte order mark": (
        b"\xef\xbb\xbf<html><body>502</body></html>",
        "is an HTML or XML page, expected a safetensors file",
    ),
    "a message": (b'{"error": "Repository not found"}', "is a text file, expected a safetensors"),
    "pickle": (
        pickle.dumps({"state_dict": {}}),
        "is a pickle (an old torch.save), expected a safetensors file",
    ),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("tensors", [{}, {"w": entry([1], [0, 4])}, {"": entry([], [0, 4])}])
def test_null_metadata_is_accepted_as_none(tmp_path: Path, tensors: dict[str, Any]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(container({"__metadata__": None, **tensors}, b"\0" * 4 * len(tensors)))
    header = read_header(path)
    assert (header.metadata, header.tensors.keys()) == ({}, tensors.keys())
    with safetensors.safe_open(path, "np") as reference:
        assert set(reference.keys()) == tensors.keys()


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_with_one_message(path: Path, case: str) -> None:
    data, expected = HOSTILE[case]
    path.write_bytes(data)
    with pytest.raises(NotACheckpointError) as caught:
        read_header(path)
    assert caught.value.message.startswith(f"{path}: {expected}")
    assert "\n" not in caught.value.message


def test_a_zip_archive_of_torch_save_is_recognized(path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(NotACheckpointError) as caught:
        read_header(path)
    assert caught.value.message == (
        f"{path}: is a zip archive (torch.save writes these), expected a safetensors file"
    )
    command = shlex.join(["wiseft", "convert", str(path), "-o", "model-converted.safetensors"])
    assert caught.value.hint == f"write its weights as safetensors first: {command}"


def test_a_folder_a_pipe_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (
        ("", "is a folder, expected a safetensors file"),
        ("pipe", "is not a regular file, expected a safetensors file"),
        ("none", "no such file"),
    ):
        with pytest.raises(NotACheckpointError) as caught:
            read_header(tmp_path / name)
        assert caught.value.message == f"{tmp_path / name}: {expected}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(path: Path) -> None:
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(NotACheckpointError) as caught:
        read_header(path)
    assert caught.value.message == f"{path}: cannot be opened: Permission denied"


def test_a_long_name_is_shortened_in_the_message(path: Path) -> None:
    path.write_bytes(container({"x" * 10_000_000: entry([1], [0, 5])}))
    with pytest.raises(NotACheckpointError) as caught:
        read_header(path)
    assert len(caught.value.message) < len(str(path)) + 300


def test_a_shape_with_a_huge_product_is_refused_immediately(path: Path) -> None:
    path.write_bytes(container({"w": entry([10**4000] * 2000, [0, 4])}))
    with pytest.raises(NotACheckpointError, match="more than any file holds"):
        read_header(path)


def test_deep_nesting_is_refused(path: Path) -> None:
    path.write_bytes(container(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))
    with pytest.raises(NotACheckpointError, match="damaged header: not JSON"):
        read_header(path)


def test_a_hundred_thousand_tensors_are_read(path: Path) -> None:
    header = {f"t{i}": entry([1], [i, i + 1], "U8") for i in range(100_000)}
    path.write_bytes(container(header, bytes(100_000)))
    assert len(read_header(path).tensors) == 100_000


def test_a_file_truncated_after_its_header_was_read_raises(path: Path) -> None:
    path.write_bytes(GOOD)
    with open_checkpoint(path) as reader:
        os.truncate(path, len(GOOD) - 4)
        with pytest.raises(CheckpointError) as caught:
            reader.read_array("w")
    assert caught.value.message == f"{path}: was truncated while it was being read"


CARD = {"schema": 1, "role": "zeroshot", "digest": "sha256:" + "0" * 64}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("not JSON", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", "expected a JSON object"),
        ('{"by": "someone else"}', "schema is None, expected 1 to 2"),
        (json.dumps({**CARD, "logit_scale": float("nan")}), "Out of range float values are not"),
        (json.dumps(CARD)[:-1] + ', "logit_scale": 1e999}', "Out of range float values are not"),
        (json.dumps({**CARD, "note": "\ud800"}), "'utf-8' codec can't encode character"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
    ],
)
def test_a_damaged_or_foreign_card_is_refused(path: Path, text: str, what: str) -> None:
    write_foreign(path, {"w": np.zeros(1)}, {"wiseft": text})
    with (
        open_checkpoint(path) as source,
        pytest.raises(CheckpointError) as caught,
    ):
        source.card  # noqa: B018
    begin = f"{path}: damaged card (metadata key 'wiseft'): {what}"
    assert caught.value.message.startswith(begin)


@given(data=st.data())
def test_changed_bytes_raise_nothing_but_wiseft_errors_that_name_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    good = write_pair(folder)[0].read_bytes()
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(good) - 1))
        broken[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(good))))
    (folder / "broken").write_bytes(broken[:cut])
    refusals = []
    try:
        with open_checkpoint(folder / "broken") as source:
            _ = source.card
    except WiseftError as error:
        refusals.append(error.message)
    assert all(str(folder / "broken") in message for message in refusals)


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 3), max_size=4), st.binary(max_size=16))
def test_a_file_is_refused_exactly_when_the_official_reader_refuses_it(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int], tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("pair") / "x"
    position, header = 0, {}
    for name, size in sizes.items():
        header[name] = entry([size], [position, position + size], "U8")
        position += size
    path.write_bytes(container(header, tail))
    try:
        with safetensors.safe_open(path, "np"):
            pass
    except Exception:
        with pytest.raises(NotACheckpointError):
            read_header(path)
    else:
        read_header(path)


@pytest.mark.parametrize("case", ["truncated data", "git LFS pointer", "name used twice"])
@pytest.mark.parametrize("command", ["merge", "inspect", "diff"])
def test_every_command_reports_the_damage_and_writes_nothing(
    tmp_path: Path, run_wiseft: RunWiseft, case: str, command: str
) -> None:
    write_foreign(tmp_path / "good", {"w": np.zeros(2, np.float32)})
    (tmp_path / "bad").write_bytes(HOSTILE[case][0])
    files = ("bad",) if command == "inspect" else ("good", "bad")
    done = run_wiseft(command, *files)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: bad: {HOSTILE[case][1]}")
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["bad", "good"]

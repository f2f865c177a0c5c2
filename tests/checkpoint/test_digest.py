"""Content digests: BLAKE3, the documented ways to compute them, and files with SHA-256 digests.

The files in `schema_1/` are a tiny classifier, one fine-tuned from it and their merge at 0.5,
written by the version that hashed with SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from blake3 import blake3

from tests.evaluation.tiny import CLASSES, make_images
from tests.merging.pairs import finetuned_card, tensors, write_pair
from wiseft_cli.checkpoint.card import card_document
from wiseft_cli.checkpoint.digest import algorithm_of, hash_bytes, shorten
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card, read_content
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.errors import CheckpointError
from wiseft_cli.evaluation.evaluate import evaluate
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.merging.compatibility import compare
from wiseft_cli.merging.merge import merge
from wiseft_cli.reporting.results import read_result_lines

SCHEMA_1 = Path(__file__).parent / "schema_1"
ZEROSHOT, FINETUNED, MERGED = (
    SCHEMA_1 / f"{name}.safetensors" for name in ("zeroshot", "finetuned", "merged")
)
OLD = [ZEROSHOT, FINETUNED, MERGED]
PAGE = Path(__file__).parents[2] / "docs" / "checkpoint-format.md"


def digest_by_hand(path: Path, algorithm: str) -> str:
    """The content digest of a file as the format's page describes it."""
    new: Callable[..., Any] = {"blake3": blake3, "sha256": hashlib.sha256}[algorithm]
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    del header["__metadata__"]
    lines = []
    for name in sorted(header, key=lambda name: name.encode()):
        begin, end = header[name]["data_offsets"]
        row = [name, header[name]["dtype"], header[name]["shape"]]
        row.append(new(raw[start + begin : start + end]).hexdigest())
        lines.append(json.dumps(row, separators=(",", ":")) + "\n")
    return f"{algorithm}:{new(''.join(lines).encode()).hexdigest()}"


def documented(language: str) -> str:
    """The only code block in one language on the format's page."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return str(block)


def test_the_hash_is_blake3() -> None:
    # From the test vectors of the specification: no bytes, and 1023 bytes that count to 250.
    assert hash_bytes(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    counted = bytes(index % 251 for index in range(1023))
    assert hash_bytes(counted) == "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"


def test_a_digest_is_shown_without_its_hash_whichever_it_is() -> None:
    digits = "0123456789abcdef" * 4
    assert shorten(f"blake3:{digits}") == shorten(f"sha256:{digits}") == digits[:12]
    assert [shorten(None), shorten("odd")] == ["unknown", "odd"]
    assert [algorithm_of(text) for text in (None, "odd", f"sha256:{digits}")] == [
        *["blake3"] * 2,
        "sha256",
    ]


def test_new_files_have_schema_2_and_a_blake3_digest(tmp_path: Path) -> None:
    path, _ = write_pair(tmp_path)
    with open_checkpoint(path) as reader:
        assert json.loads(reader.metadata["wiseft"])["schema"] == 2
    assert read_card(path).digest == digest_by_hand(path, "blake3")


def test_the_documented_shell_commands_give_the_digest(tmp_path: Path) -> None:
    path, _ = write_pair(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    if shutil.which("b3sum") is None:  # the same hash under the same name
        program = (
            f"#!{sys.executable}\nimport sys\nfrom blake3 import blake3\n"
            "assert sys.argv[1:] == ['--no-names']\n"
            "print(blake3(sys.stdin.buffer.read()).hexdigest())\n"
        )
        (programs / "b3sum").write_text(program)
        (programs / "b3sum").chmod(0o755)
    search = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    for file, algorithm, replaced in (
        (path, "blake3", "b3sum --no-names"),
        (ZEROSHOT, "sha256", "sha256sum | cut -c-64"),
    ):
        script = documented("sh").replace("merged.safetensors", str(file))
        script = script.replace("b3sum --no-names", replaced)
        done = subprocess.run(["bash", "-c", script], env=search, capture_output=True, text=True)
        assert f"{algorithm}:{done.stdout.strip()}" == read_card(file).digest


def test_the_documented_python_function_gives_the_digest(tmp_path: Path) -> None:
    path, _ = write_pair(tmp_path)
    names: dict[str, Any] = {}
    exec(documented("python"), names)
    with open_checkpoint(path) as reader:
        found = {
            name: (info.dtype, info.shape, reader.read_array(name).tobytes())
            for name, info in reader.tensors.items()
        }
    assert names["content_digest"](found) == read_card(path).digest


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_a_file_of_schema_1_is_read_and_verified(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_checkpoint(path) as reader:
        assert json.loads(reader.metadata["wiseft"])["schema"] == 1
        report = read_content(reader)
        assert report.digest == digest_by_hand(path, "sha256")
        assert report.find_faults(reader.card) == []
    assert main(["inspect", "--verify", "--json", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["card"]["schema"] == 1
    assert shown["content"]["digest"].startswith("sha256:")
    assert shown["content"]["matches_card"] is True


def test_a_changed_byte_in_a_file_of_schema_1_is_found(tmp_path: Path) -> None:
    raw = bytearray(FINETUNED.read_bytes())
    raw[-9] ^= 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(raw)
    assert main(["inspect", "--verify", str(damaged)]) == 1
    with pytest.raises(CheckpointError, match="do not match its card: content digest sha256:"):
        merge(ZEROSHOT, damaged, tmp_path / "out.safetensors")


def test_a_merge_of_schema_1_has_the_old_tensors_and_keeps_the_names_of_its_parents(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.safetensors"
    done = merge(ZEROSHOT, FINETUNED, path, strict=True)
    new, old = (safetensors.numpy.load_file(file) for file in (path, MERGED))
    assert new.keys() == old.keys()
    assert all(new[name].tobytes() == old[name].tobytes() for name in old)
    assert digest_by_hand(path, "sha256") == read_card(MERGED).digest
    assert done.digest == digest_by_hand(path, "blake3") == read_card(path).digest
    written, before = (card_document(read_card(file)) for file in (path, MERGED))
    assert written["schema"] == 2
    assert [item["digest"] for item in written["history"][-1]["inputs"]] == [
        digest_by_hand(ZEROSHOT, "sha256"),
        digest_by_hand(FINETUNED, "sha256"),
    ]
    assert written["history"] == before["history"]


def test_the_raw_bytes_of_a_merge_differ_from_schema_1_in_digest_and_schema_only(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.safetensors"
    merge(ZEROSHOT, FINETUNED, path)
    digests = [str(read_card(file).digest).encode() for file in (path, MERGED)]
    expected = MERGED.read_bytes().replace(digests[1], digests[0])
    assert path.read_bytes() == expected.replace(b'\\"schema\\":1', b'\\"schema\\":2')


def test_files_of_both_schemas_merge_and_the_history_names_each_by_its_own_hash(
    tmp_path: Path,
) -> None:
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    merge(ZEROSHOT, FINETUNED, once)
    merge(ZEROSHOT, once, twice)
    names = [item.digest for item in read_card(twice).history[-1].inputs]
    assert names == [digest_by_hand(ZEROSHOT, "sha256"), digest_by_hand(once, "blake3")]
    assert main(["inspect", "--verify", str(twice)]) == 0


def test_digests_by_two_hashes_are_not_compared(tmp_path: Path) -> None:
    zeroshot, _ = write_pair(tmp_path)
    stranger = tmp_path / "stranger.safetensors"
    write_checkpoint(stranger, tensors(1), finetuned_card("sha256:" + "ab" * 32))
    (warning,) = merge(zeroshot, stranger, tmp_path / "out.safetensors").warnings
    assert warning.endswith("digests by two hashes cannot be compared")
    copy = tmp_path / "copy.safetensors"
    merge(ZEROSHOT, FINETUNED, copy)
    with open_checkpoint(MERGED) as old, open_checkpoint(copy) as new:
        assert compare(old, new).has_equal_content is None
        assert compare(old, old).has_equal_content is True


def test_files_of_schema_1_are_evaluated_as_their_copies_of_schema_2(tmp_path: Path) -> None:
    images = make_images(tmp_path / "val", [entry.id for entry in CLASSES[:3]], per_class=4)
    copy = tmp_path / "merged.safetensors"
    merge(ZEROSHOT, FINETUNED, copy)
    results = tmp_path / "results.jsonl"
    options: dict[str, Any] = {"workers": 0, "device": "cpu"}
    old = evaluate(
        EvalRequest([ZEROSHOT, FINETUNED], images, alpha=[0.5], results=results, **options)
    ).lines
    new = evaluate(EvalRequest(copy, images, **options)).lines
    assert old[-1].metrics == new[-1].metrics
    assert [item.digest for item in old[-1].checkpoints] == [
        digest_by_hand(ZEROSHOT, "sha256"),
        digest_by_hand(FINETUNED, "sha256"),
    ]
    again: list[int] = []
    request = EvalRequest([ZEROSHOT, FINETUNED], images, alpha=[0.5], results=results, **options)
    evaluate(request, on_progress=again.append)
    assert sum(again) == 0
    assert len(read_result_lines(results)) == len(old)

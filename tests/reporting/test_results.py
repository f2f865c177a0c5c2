from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.lines import FINETUNED, ZEROSHOT, digest, line, sweep_lines
from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.results import (
    CheckpointName,
    MergedBy,
    Metric,
    add_result_lines,
    read_result_lines,
    result_document,
)


def test_line_has_exactly_the_documented_fields(tmp_path: Path) -> None:
    fields = {"alpha": "0.3", "reference": True, "data_fingerprint": digest("f")}
    add_result_lines(tmp_path / "r.jsonl", [line("val", 772, **fields)])
    text = (tmp_path / "r.jsonl").read_text()
    document = json.loads(text)
    low, high = (document["metrics"]["top1"][end] for end in ("low", "high"))
    assert document == {
        "schema": 1,
        "checkpoints": [
            {"name": "zeroshot", "role": "zeroshot", "digest": digest("0")},
            {"name": "finetuned", "role": "finetuned", "digest": digest("1")},
        ],
        "alpha": "0.3",
        "set": "val",
        "role": "reference",
        "reference": True,
        "data_fingerprint": digest("f"),
        "n_images": 1000,
        "n_unreadable": 0,
        "n_classes": 10,
        "join": "id",
        "primary": "top1",
        "metrics": {"top1": {"value": 0.772, "low": low, "high": high}},
        "precision": "fp32",
        "version": "0.1.0",
        "ensemble": False,
        "protocol": "",
    }
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n"


def test_lines_are_read_back_as_written(tmp_path: Path) -> None:
    lines = [*sweep_lines(select_on="shift-a"), line("naïve\u2028set", 3)]
    lines += [line("x", 1, extra={"group": "a"}), line("y", 1, reference=True, selection=True)]
    add_result_lines(tmp_path / "r.jsonl", lines)
    assert list(read_result_lines(tmp_path / "r.jsonl")) == lines


@pytest.mark.parametrize(
    ("fields", "role"),
    [
        ({}, "shift"),
        ({"reference": True}, "reference"),
        ({"selection": True}, "selection"),
        ({"reference": True, "selection": True}, "selection"),
    ],
)
def test_role_is_written_and_read_back(tmp_path: Path, fields: dict[str, bool], role: str) -> None:
    add_result_lines(tmp_path / "r.jsonl", [line("a", 5, **fields)])
    assert json.loads((tmp_path / "r.jsonl").read_text())["role"] == role
    (found,) = read_result_lines(tmp_path / "r.jsonl")
    assert (found.role, found.reference) == (role, fields.get("reference", False))


@pytest.mark.parametrize("is_reference", [False, True])
def test_line_without_role_is_a_reference_or_a_shift(tmp_path: Path, is_reference: bool) -> None:
    document = result_document(line("a", 5, reference=is_reference))
    del document["role"]
    (tmp_path / "r.jsonl").write_text(json.dumps(document))
    (found,) = read_result_lines(tmp_path / "r.jsonl")
    assert found.role == ("reference" if is_reference else "shift")


@pytest.mark.parametrize("role", ["reference", "validation", 3])
def test_unknown_or_contradicting_role_is_an_error(tmp_path: Path, role: object) -> None:
    document = {**result_document(line("a", 5)), "role": role}
    (tmp_path / "r.jsonl").write_text(json.dumps(document))
    with pytest.raises(ResultsError, match="role is"):
        read_result_lines(tmp_path / "r.jsonl")


def test_repeated_measurement_replaces_its_line_in_place(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    add_result_lines(path, [line("a", 1), line("b", 2)])
    add_result_lines(path, [line("c", 4), line("a", 3)])
    assert [(x.set_name, x.value) for x in read_result_lines(path)] == [
        ("a", 0.003),
        ("b", 0.002),
        ("c", 0.004),
    ]
    before = path.read_bytes()
    add_result_lines(path, list(read_result_lines(path)))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": "0.5"},
        {"set_name": "other"},
        {"data_fingerprint": digest("e")},
        {"precision": "bf16"},
        {"join": "name"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_measurements_have_different_keys(change: dict[str, Any]) -> None:
    first = line("val", 5, alpha="0.1")
    assert replace(first, **change).key != first.key
    assert replace(first, reference=True, version="9").key == first.key


TIES = MergedBy("ties", {"density": "0.2", "trim_scope": "model"}, ("1/2", "1/2"))
SEEDS = tuple(CheckpointName(f"seed{at}", "finetuned", digest(str(at))) for at in (1, 2))
THREE = (ZEROSHOT, *SEEDS)


def test_line_of_a_method_is_read_back_and_refused_by_readers_of_schema_1(tmp_path: Path) -> None:
    merged = line("val", 5, alpha="0.3", checkpoints=THREE, merged_by=TIES)
    without_alpha = line("val", 5, checkpoints=THREE, merged_by=MergedBy("model-stock"))
    plain = line("val", 5, alpha="0.3")
    add_result_lines(tmp_path / "r.jsonl", [merged, without_alpha, plain])
    assert read_result_lines(tmp_path / "r.jsonl") == (merged, without_alpha, plain)
    documents = [json.loads(text) for text in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [document["schema"] for document in documents] == [2, 2, 1]
    assert "method" not in documents[2]
    assert documents[0]["method"] == "ties"
    assert documents[0]["method_options"] == {"density": "0.2", "trim_scope": "model"}
    assert documents[0]["weights"] == ["1/2", "1/2"]


@pytest.mark.parametrize(
    "other",
    [
        None,
        replace(TIES, method="dare"),
        replace(TIES, options={"density": "0.3", "trim_scope": "model"}),
        replace(TIES, weights=("0.4", "0.6")),
        replace(TIES, fisher=(digest("a"),)),
    ],
)
def test_another_merge_of_the_same_checkpoints_is_another_measurement(
    other: MergedBy | None,
) -> None:
    first = line("val", 5, alpha="0.3", merged_by=TIES)
    assert replace(first, merged_by=other).key != first.key
    assert replace(first, merged_by=other).weights_key != first.weights_key


def test_merges_have_names_that_a_person_would_say() -> None:
    merged = line("val", 5, alpha="0.3", checkpoints=THREE, merged_by=TIES)
    assert merged.weights_name == (
        "zeroshot to seed1 and seed2 by ties (density 0.2, trim scope model) at alpha 0.3"
    )
    weighted = replace(merged, merged_by=MergedBy("linear", {}, ("0.4", "0.6")))
    assert weighted.checkpoints_name == "zeroshot to seed1 and seed2 by linear (weights 0.4 0.6)"
    soup = line("val", 5, checkpoints=SEEDS, merged_by=MergedBy("soup", {}, ("1/2", "1/2")))
    assert soup.weights_name == "soup of seed1 and seed2"


def test_fields_of_other_programs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    document = result_document(line("val", 5)) | {"note": "night run"}
    path.write_text("\n" + json.dumps(document))  # without a newline at the end
    add_result_lines(path, [line("other", 6)])
    first, second = path.read_text().splitlines()
    assert (json.loads(first)["note"], json.loads(second)["set"]) == ("night run", "other")


def edited(**changes: Any) -> str:
    return json.dumps(result_document(line("val", 5)) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a results line: Expecting property name"),
        ("[]", "not a results line: expected a JSON object"),
        (edited(schema=3), "has schema 3, this version reads 2"),
        (edited(schema=2), "not a results line: schema is 2, expected 1"),
        (edited(method="ties"), "not a results line: schema is 1, expected 2"),
        (edited(schema=2, method="ties"), "field 'weights' is missing"),
        (
            edited(schema=2, method="ties", method_options={}, weights=[], fisher=[]),
            "not a results line: 1 checkpoints with alpha None",
        ),
        (edited(schema=None), "not a results line: schema is None, expected 1"),
        ('{"schema": 1}', "field 'alpha' is missing"),
        (edited(n_images="7"), "not a results line: n_images is '7'"),
        (edited(n_images=True), "not a results line: n_images is True"),
        (edited(alpha="zzz"), "not a results line: alpha is 'zzz', expected a decimal number"),
        (edited(alpha="inf"), "not a results line: alpha is 'inf', expected a decimal number"),
        (edited(primary="f1"), "not a results line: primary is 'f1', expected one of ['top1']"),
        (edited(alpha="0.5"), "not a results line: 1 checkpoints with alpha '0.5'"),
        (
            edited(metrics={"top1": {"value": 77.2, "low": 0, "high": 1}}),
            "not a results line: value is 77.2, expected a fraction in [0, 1]",
        ),
        (
            edited(metrics={"top1": {"value": float("nan"), "low": 0, "high": 1}}),
            "not a results line: value is nan, expected a fraction in [0, 1]",
        ),
        (edited(checkpoints=["a"]), "not a results line: string indices must be integers"),
    ],
)
def test_malformed_line_is_reported_by_its_number(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"{edited()}\n{text}\n")
    before = path.read_bytes()
    with pytest.raises(ResultsError) as caught:
        read_result_lines(path)
    assert caught.value.message.startswith(f"{path}, line 2: {message}")
    with pytest.raises(ResultsError):
        add_result_lines(path, [line("b", 1)])
    assert path.read_bytes() == before


def test_missing_or_binary_results_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"no\.jsonl: cannot be read: No such file"):
        read_result_lines(tmp_path / "no.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match=r"b\.jsonl: is not text"):
        read_result_lines(tmp_path / "b.jsonl")


PROGRAM = """
import sys
from pathlib import Path
from tests.reporting.lines import line
from wiseft_cli.reporting.results import add_result_lines
for at in range(int(sys.argv[3])):
    add_result_lines(Path(sys.argv[1]), [line(f"{sys.argv[2]}-{at}", 5)])
"""


@pytest.fixture
def start_writer(tmp_path: Path) -> Callable[[str, int], subprocess.Popen[bytes]]:
    def start(name: str, count: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path / "r.jsonl", name, str(count)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    return start


def test_killed_writer_leaves_the_file_intact(
    tmp_path: Path, start_writer: Callable[[str, int], subprocess.Popen[bytes]]
) -> None:
    path = tmp_path / "r.jsonl"
    add_result_lines(path, [line(f"first-{at}", 5) for at in range(50)])
    for _ in range(3):
        process = start_writer("killed", 10**6)
        size = path.stat().st_size
        while path.stat().st_size == size and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(read_result_lines(path)) > 50
    add_result_lines(path, [line("last", 5)])
    assert os.listdir(tmp_path) == ["r.jsonl"]


def test_concurrent_writers_lose_no_line(
    tmp_path: Path, start_writer: Callable[[str, int], subprocess.Popen[bytes]]
) -> None:
    writers = [start_writer(name, 40) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(read_result_lines(tmp_path / "r.jsonl")) == 80


def test_ensemble_has_two_checkpoints_and_no_alpha(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    ensemble = line("val", 5, checkpoints=(ZEROSHOT, FINETUNED), ensemble=True, protocol="sha256:1")
    add_result_lines(path, [ensemble])
    assert read_result_lines(path) == (ensemble,)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "alpha": "0.5"}) + "\n")
    with pytest.raises(ResultsError, match=r"an ensemble with alpha '0\.5'$"):
        read_result_lines(path)
    path.write_text(json.dumps({**document, "ensemble": False}) + "\n")
    with pytest.raises(ResultsError, match=r"2 checkpoints with alpha None$"):
        read_result_lines(path)


def test_metric_may_have_no_interval(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    without = line("val", 5, metrics={"top1": Metric(0.5, 0.4, 0.6), "macro_f1": Metric(0.5)})
    add_result_lines(path, [without])
    assert read_result_lines(path) == (without,)
    assert without.metrics["macro_f1"].interval == (0.5, 0.5)


def test_lines_with_different_protocols_are_different_measurements(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    lines = [line("val", 5, protocol=text) for text in ("sha256:1", "sha256:2", "sha256:1")]
    add_result_lines(path, lines)
    assert [item.protocol for item in read_result_lines(path)] == ["sha256:1", "sha256:2"]


def test_pm10_is_a_fraction_of_the_anchor_frames_and_top1_of_the_images() -> None:
    plain = line("val", 3, extra={"n_anchors": 40})
    assert plain.n_counted == plain.n_images == 1000
    metrics = {name: Metric(0.5, 0.4, 0.6) for name in ("top1", "pm0", "pm10")}
    of_frames = replace(plain, metrics=metrics, primary="pm10")
    assert of_frames.n_counted == 40
    for odd in ({}, {"n_anchors": "40"}):
        assert replace(of_frames, extra=odd).n_counted == 1000

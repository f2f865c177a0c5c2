"""The published JSON Schema of results lines, and the lines that wiseft writes and reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.reporting.lines import line, sweep_lines
from wiseft_cli.cli.app import main
from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.results import MergedBy, read_result_lines, result_document

SCHEMA = json.loads(
    (resources.files("wiseft_cli.reporting") / "schemas" / "results-line.schema.json").read_text()
)
VALIDATOR = Draft202012Validator(SCHEMA)


def test_schema_is_valid_and_describes_every_field() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    fields = SCHEMA["properties"]
    assert all("description" in field or "$ref" in field for field in fields.values())
    for written in (result_document(item) for item in sweep_lines(select_on="shift-b")):
        assert written.keys() <= fields.keys()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"alpha": "0.5"},
        {"ensemble": True, "checkpoints": line("x", 1, alpha="0").checkpoints},
        {"alpha": "0.25", "merged_by": MergedBy("ties", {"density": "0.2"}, ("1/2",))},
        {"extra": {"n_anchors": 5, "worst_group": "g", "anything": [1]}},
    ],
)
def test_lines_of_every_kind_of_row_are_valid(fields: dict[str, Any]) -> None:
    VALIDATOR.validate(json.loads(json.dumps(result_document(line("val", 500, **fields)))))


def test_lines_of_a_real_evaluation_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.evaluation.tiny import CLASSES, make_images, make_pair

    make_pair(tmp_path)
    make_images(tmp_path / "val", [entry.id for entry in CLASSES], per_class=1, seed=1)
    monkeypatch.chdir(tmp_path)
    words = ["zeroshot.safetensors", "finetuned.safetensors", "--alpha", "0,0.5", "--data", "val"]
    words += ["--output-ensemble", "--save-predictions", "p", "--results", "r.jsonl"]
    assert main(["eval", *words, "--workers", "0"]) == 0
    lines = [json.loads(text) for text in Path("r.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for item in lines:
        VALIDATOR.validate(item)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item.pop("metrics"),
        lambda item: item.update(schema=9),
        lambda item: item.update(schema=2),
        lambda item: item.update(alpha=0.5),
        lambda item: item.update(n_images="5"),
        lambda item: item.update(role="other"),
        lambda item: item["metrics"]["top1"].update(value=77.0),
        lambda item: item["metrics"]["top1"].pop("low"),
        lambda item: item["checkpoints"][0].pop("digest"),
        lambda item: item.update(checkpoints=item["checkpoints"] * 2),
        lambda item: item.update(method="ties", method_options={}, weights=[], fisher=[]),
    ],
)
def test_what_the_reader_rejects_is_invalid_too(change: Change, tmp_path: Path) -> None:
    document = json.loads(json.dumps(result_document(line("val", 500, alpha="0.5"))))
    assert VALIDATOR.is_valid(document)
    change(document)
    assert not VALIDATOR.is_valid(document)
    (tmp_path / "r.jsonl").write_text(json.dumps(document))
    with pytest.raises(ResultsError):
        read_result_lines(tmp_path / "r.jsonl")


def test_lines_of_the_first_version_are_valid() -> None:
    document = result_document(line("val", 500))
    for name in ("role", "protocol", "ensemble"):
        del document[name]
    VALIDATOR.validate(json.loads(json.dumps(document)))
    assert replace(line("val", 500), protocol="").role == "shift"

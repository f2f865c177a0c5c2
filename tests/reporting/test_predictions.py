from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.lines import line
from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.paired import PairedCounts
from wiseft_cli.reporting.predictions import pair_predictions, predictions_path, read_predictions


def image(at: int, right: bool, **fields: Any) -> dict[str, Any]:
    label, other = "cat", "dog"
    name = label if right else other
    return {
        "group": None,
        "id": name,
        "label": label,
        "name": name,
        "path": f"cat/{at}.png",
        "probability": 0.9,
        "right": right,
    } | fields


def write(path: Path, images: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in images))
    return path


def pattern(text: str) -> list[dict[str, Any]]:
    return [image(at, letter == "+") for at, letter in enumerate(text)]


def of(path: Path, text: str) -> Any:
    n_right = text.count("+")
    return read_predictions(write(path, pattern(text)), line("val", n_right, len(text)))


def test_images_that_only_one_row_predicts_correctly_are_counted(tmp_path: Path) -> None:
    one, other = of(tmp_path / "1.jsonl", "++--+"), of(tmp_path / "2.jsonl", "-+++-")
    assert pair_predictions(one, other) == PairedCounts(5, n_gained=2, n_lost=2)


def test_order_of_the_images_does_not_matter(tmp_path: Path) -> None:
    one = of(tmp_path / "1.jsonl", "++--+")
    images = pattern("-+++-")[::-1]
    other = read_predictions(write(tmp_path / "2.jsonl", images), line("val", 3, 5))
    assert pair_predictions(one, other) == PairedCounts(5, n_gained=2, n_lost=2)


def test_files_about_different_images_are_not_paired(tmp_path: Path) -> None:
    one = of(tmp_path / "1.jsonl", "+-")
    images = [image(7, True), image(8, False)]
    other = read_predictions(write(tmp_path / "2.jsonl", images), line("val", 1, 2))
    with pytest.raises(ResultsError, match="different images"):
        pair_predictions(one, other)


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    damaged = {"path": "cat/9.png", "label": "cat", "group": None, "error": "damaged"}
    path = write(tmp_path / "1.jsonl", [*pattern("++-"), damaged])
    assert read_predictions(path, line("val", 2, 3)).right.tolist() == [True, True, False]


@pytest.mark.parametrize(("n_right", "n_images"), [(2, 5), (3, 6)])
def test_file_of_another_evaluation_is_rejected(
    n_right: int, n_images: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "1.jsonl", pattern("+++--"))
    with pytest.raises(ResultsError, match="has 3 right predictions of 5 images, but") as caught:
        read_predictions(path, line("val", n_right, n_images))
    assert "--save-predictions" in str(caught.value.hint)


def test_parts_of_several_processes_are_read_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    images = pattern("+-+-+")
    for rank, share in enumerate((images[:3], images[3:])):
        write(tmp_path / f"val.a[1].part-{rank}-of-2.jsonl", share)
    read = read_predictions(tmp_path / "val.a[1].jsonl", line("val", 3, 5))
    assert [item["path"] for item in read.images] == [item["path"] for item in images]


def test_missing_part_of_another_machine_is_named(tmp_path: Path) -> None:
    write(tmp_path / "val.a.part-0-of-2.jsonl", pattern("+"))
    with pytest.raises(ResultsError, match=r"val\.a\.part-1-of-2\.jsonl: cannot be read"):
        read_predictions(tmp_path / "val.a.jsonl", line("val", 1, 2))


@pytest.mark.parametrize(
    "second",
    ["{", "[]", "1", '{"path": "x"}', '{"path": 1, "label": "a", "error": ""}', "]", "1,2"],
)
def test_line_that_is_no_prediction_is_named(second: str, tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_text(json.dumps(image(0, True)) + f"\n{second}\n")
    with pytest.raises(ResultsError, match=r"1\.jsonl, line 2: not a prediction"):
        read_predictions(path, line("val", 1, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {"label": ["cat"]},
        {"label": 3},
        {"probability": float("nan")},
        {"probability": 1.5},
        {"probability": -0.1},
        {"path": "cat/\0.png"},
    ],
)
def test_field_of_another_type_or_range_is_named_by_its_line(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "1.jsonl", [image(0, True), image(1, True) | fields])
    with pytest.raises(ResultsError, match=r"1\.jsonl, line 2: not a prediction"):
        read_predictions(path, line("val", 2, 2))


@pytest.mark.parametrize("name", ["../x.jsonl", "/etc/x.jsonl", "a/b.jsonl", "x.txt", 3, ""])
def test_name_outside_the_folder_is_rejected(name: object, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="predictions is"):
        predictions_path(tmp_path, line("val", 1, extra={"predictions": name}))


def test_line_without_predictions_has_no_path(tmp_path: Path) -> None:
    assert predictions_path(tmp_path, line("val", 1)) is None

from __future__ import annotations

import csv
import json
import os

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.reporting.prediction_text import (
    CSV_HEADER,
    Prediction,
    RankedClass,
    as_csv_rows,
    as_json_lines,
    text_renderer,
)

CLASSES = (ClassEntry("n1", "crane"), ClassEntry("n2", "crane"), ClassEntry("n3", 'a "b", c'))
BAD_NAME = os.fsdecode(b"x\xff\n.png")
PREDICTIONS = (
    Prediction("a.png", (RankedClass("n1", "crane", 1 / 3), RankedClass("n3", 'a "b", c', 1e-9))),
    Prediction(BAD_NAME, (), "cannot read it"),
)


def test_json_lines_have_every_path_as_it_is_and_six_digits() -> None:
    good, bad = map(json.loads, as_json_lines(PREDICTIONS))
    assert good == {
        "path": "a.png",
        "top": [
            {"id": "n1", "name": "crane", "probability": 0.333333},
            {"id": "n3", "name": 'a "b", c', "probability": 1e-9},
        ],
    }
    assert bad == {"path": BAD_NAME, "error": "cannot read it"}


def test_csv_reads_back_with_a_row_a_class() -> None:
    rows = list(csv.DictReader([CSV_HEADER, *as_csv_rows(PREDICTIONS)]))
    assert [tuple(row.values()) for row in rows] == [
        ("a.png", "1", "n1", "crane", "0.333333", ""),
        ("a.png", "2", "n3", 'a "b", c', "1e-09", ""),
        (rows[2]["path"], "", "", "", "", "cannot read it"),
    ]
    "\n".join(as_csv_rows(PREDICTIONS)).encode("utf-8")
    assert as_csv_rows(()) == []


def test_people_get_a_line_an_image_in_columns_with_equal_names_told_apart() -> None:
    assert text_renderer(CLASSES)(PREDICTIONS) == [
        'a.png           33.33 % crane (n1)      0.00 % a "b", c',
        "x\\udcff\\n.png    -.-- % (unreadable)",
    ]

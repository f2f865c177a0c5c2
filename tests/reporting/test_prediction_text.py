from __future__ import annotations

import csv
import json
import os

from wiseft_cli.reporting.prediction_text import (
    CSV_HEADER,
    Prediction,
    RankedClass,
    as_csv_rows,
    as_json_lines,
    as_text,
)

CRANE = RankedClass("n1", "crane", 1 / 3, is_ambiguous=True)
BAD_NAME = os.fsdecode(b"x\xff\n.png")
PREDICTIONS = (
    Prediction("a.png", (CRANE, RankedClass("n3", 'a "b", c', 1e-9))),
    Prediction(BAD_NAME, (), "cannot read it"),
)


def test_json_lines_keep_paths_and_six_significant_digits() -> None:
    good, bad = map(json.loads, as_json_lines(PREDICTIONS))
    assert good == {
        "path": "a.png",
        "top": [
            {"id": "n1", "name": "crane", "probability": 0.333333},
            {"id": "n3", "name": 'a "b", c', "probability": 1e-9},
        ],
    }
    assert bad == {"path": BAD_NAME, "error": "cannot read it"}


def test_csv_has_one_row_per_class() -> None:
    rows = list(csv.DictReader([CSV_HEADER, *as_csv_rows(PREDICTIONS)]))
    assert [tuple(row.values()) for row in rows] == [
        ("a.png", "1", "n1", "crane", "0.333333", ""),
        ("a.png", "2", "n3", 'a "b", c', "1e-09", ""),
        (rows[2]["path"], "", "", "", "", "cannot read it"),
    ]
    "\n".join(as_csv_rows(PREDICTIONS)).encode("utf-8")
    assert as_csv_rows(()) == as_text(()) == []


def test_text_has_one_line_per_image_and_adds_ids_to_ambiguous_names() -> None:
    assert as_text(PREDICTIONS) == [
        'a.png           33.33 % crane (n1)      0.00 % a "b", c',
        "x\\udcff\\n.png    -.-- % (unreadable)",
    ]

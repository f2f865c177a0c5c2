from __future__ import annotations

from pathlib import Path

import pytest

from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.baselines import read_baselines

SETS = ("val", "sketch", "r")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "models.csv"


def test_columns_of_other_sets_empty_cells_and_empty_lines_are_passed_over(table: Path) -> None:
    table.write_text('\ufeffmodel,params, val,sketch\nA,3M,0.5,\n\n"B, large",,1,0.25\n')
    first, second = read_baselines(table, SETS)
    assert (first.name, first.accuracies) == ("A", {"val": 0.5})
    assert (second.name, second.accuracies) == ("B, large", {"val": 1.0, "sketch": 0.25})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its header lacks model, val, sketch or r; it has none"),
        ("model,val\nA,0.5\n", "its header lacks sketch or r; it has model, val"),
        ("name,val,r\nA,0.5,0.2\n", "its header lacks model; it has name, val, r"),
        ("model,val,val,r\n", "columns of one name: val"),
        ("model,val,r\n", "holds no model"),
        ("model,val,r\nA,77,nan\nB,0.5\n", "3 cells or lines are wrong:\n  line 2, column val"),
        ('model,val,r\n"A,1\n', "no CSV: unexpected end of data"),
    ],
)
def test_wrong_files_are_told(table: Path, text: str, message: str) -> None:
    table.write_text(text)
    with pytest.raises(ResultsError) as caught:
        read_baselines(table, SETS)
    assert str(table) in str(caught.value)
    assert message in str(caught.value)


def test_files_that_are_no_text_or_not_there_are_told(table: Path) -> None:
    with pytest.raises(ResultsError, match="cannot be read: No such file"):
        read_baselines(table, SETS)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="is not text; expected a CSV file"):
        read_baselines(table, SETS)

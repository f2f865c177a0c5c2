"""Names from files cannot forge a line of the output or change the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.merging.pairs import CONFIG, tensors, write_foreign, zeroshot_card
from wiseft_cli.checkpoint.card import ClassEntry, ModelSpec
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.errors import WiseftError, escape_controls

HOSTILE = {
    "w\nerror: forged": r"w\nerror: forged",
    "w\r  digest      sha256:0": r"w\r  digest      sha256:0",
    "w\x1b[2K\x1b[1A": r"w\u001b[2K\u001b[1A",
    "w\x9b31m": r"w\u009b31m",
    "w\u202egnp.\u2066x": r"w\u202egnp.\u2066x",
    "w\u2028x\x85y\x00": r"w\u2028x\u0085y\u0000",
}
EVERY = pytest.mark.parametrize(("name", "shown"), HOSTILE.items(), ids=range(len(HOSTILE)))
Captured = pytest.CaptureFixture[str]


def write(path: Path, name: str, values: list[float]) -> str:
    return str(write_foreign(path, {name: np.array(values, np.float32)}))


@EVERY
def test_inspect_escapes_tensor_names(
    tmp_path: Path, capsys: Captured, name: str, shown: str
) -> None:
    assert main(["inspect", "--tensors", write(tmp_path / "a", name, [1])]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[-2:] == [f"    {shown}  F32  [1]", ""]
    assert len(lines) == 8


@EVERY
def test_inspect_escapes_the_names_of_a_card(
    tmp_path: Path, capsys: Captured, name: str, shown: str
) -> None:
    card = replace(
        zeroshot_card(),
        model=ModelSpec(name, name, CONFIG),
        classes=(ClassEntry("1", name), ClassEntry("2", "شیر‌ماهی")),
    )
    write_checkpoint(tmp_path / "c", tensors(0), card)
    assert main(["inspect", str(tmp_path / "c")]) == 0
    out = capsys.readouterr().out
    assert f"\n  model       {shown} ({shown})\n" in out
    assert f"\n  classes     2: {shown}, شیر‌ماهی\n" in out


@EVERY
def test_merge_escapes_the_names_in_errors_and_warnings(
    tmp_path: Path, capsys: Captured, name: str, shown: str
) -> None:
    a, b = write(tmp_path / "a", name, [1]), write(tmp_path / "b", "other", [1, 2])
    assert main(["merge", a, b, "-o", str(tmp_path / "x")]) == 1
    error = capsys.readouterr().err.split("\n")
    assert error[1] == f"  {shown}: only in {a}"
    assert len(error) == 5
    c = write(tmp_path / "c", name, [float("nan")])
    assert main(["merge", a, c, "-o", str(tmp_path / "x")]) == 0
    warning = f"warning: {c}: values are infinite or NaN: {shown} (1 value)\n"
    assert capsys.readouterr() == (f"{tmp_path / 'x'}\n", warning)


@EVERY
def test_diff_escapes_names_and_json_keeps_them(
    tmp_path: Path, capsys: Captured, name: str, shown: str
) -> None:
    a, b = write(tmp_path / "a", name, [1]), write(tmp_path / "b", name, [1, 2])
    assert main(["diff", a, b]) == 0
    assert f"\n  {shown}: shape (2,), expected (1,)\n" in capsys.readouterr().out
    assert main(["inspect", "--tensors", "--json", a]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["tensors"][0]["name"] == name
    assert escape_controls(line) == line


@given(st.text())
def test_escaped_text_reads_as_the_same_json_string(text: str) -> None:
    shown = escape_controls(text)
    assert escape_controls(shown) == shown
    assert "\n" not in shown
    if "\\" not in text and '"' not in text:
        assert json.loads(f'"{shown}"') == text


def test_an_error_has_only_the_lines_of_its_own_faults() -> None:
    error = WiseftError("a\nb", faults=["c\n  d", "e"], hint="f\ng")
    assert error.message == "a\\nb:\n  c\\n  d\n  e"
    assert error.hint == "f\\ng"
    assert WiseftError(error.message).message == error.message

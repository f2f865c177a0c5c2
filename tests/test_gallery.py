"""The gallery shows a small picture for each of its commands, and each command draws one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gallery import BASELINES, MAX_BYTES, PAGE, PICTURES, commands, draw
from tests.reporting.lines import line
from wiseft_cli.reporting.results import add_result_lines

SETS = ("mnist", "optdigits", "fonts", "colored")


def test_every_picture_has_its_command_and_is_small() -> None:
    shown = re.findall(r"\]\(gallery/([^)]+)\)", PAGE.read_text())
    assert sorted(shown) == sorted(commands()) == sorted(path.name for path in PICTURES.iterdir())
    assert all(path.stat().st_size < MAX_BYTES for path in PICTURES.iterdir())
    for words in commands().values():
        assert words[:2] == ["plot", "results.jsonl"]


def test_every_command_draws_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line(name, 600 + 20 * at + row, alpha=alpha, reference=name == "mnist")
        for row, alpha in enumerate(("0", "0.5", "1"))
        for at, name in enumerate(SETS)
    ]
    add_result_lines(tmp_path / "results.jsonl", lines)
    draw(tmp_path, tmp_path)
    assert (tmp_path / "models.csv").read_text() == BASELINES
    for name in commands():
        assert (tmp_path / name).stat().st_size > 1000

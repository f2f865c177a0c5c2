"""The figures of a check: one JSON line each while it runs, and a summary in Markdown."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Figure = dict[str, Any]
"""Keys part, check, value, unit, and where they apply limit, passed, note."""


class Figures:
    """Append the figures of one part to a file, a line as soon as a figure is known.

    Args:
        part: Name of the part.
        path: File to append to.
    """

    def __init__(self, part: str, path: Path) -> None:
        self.part = part
        self._path = path
        self._lock = threading.Lock()

    def add(self, check: str, value: Any, unit: str = "", **more: Any) -> None:
        """Record a value; `limit`, `passed` and `note` may be given too."""
        figure = {"part": self.part, "check": check, "value": value, "unit": unit}
        figure |= {key: given for key, given in more.items() if given is not None}
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps(figure) + "\n")

    def at_most(self, check: str, value: float, limit: float, unit: str = "", **more: Any) -> None:
        """Record a value that passes up to `limit`; NaN fails."""
        self.add(check, value, unit, limit=f"<= {limit:g}", passed=bool(value <= limit), **more)

    def at_least(self, check: str, value: float, limit: float, unit: str = "", **more: Any) -> None:
        """Record a value that passes from `limit` on; NaN fails."""
        self.add(check, value, unit, limit=f">= {limit:g}", passed=bool(value >= limit), **more)

    def holds(self, check: str, passed: bool, **more: Any) -> None:
        """Record whether a claim holds."""
        self.add(check, bool(passed), passed=bool(passed), **more)

    def skip(self, check: str, why: str) -> None:
        """Record that a check did not run."""
        self.add(check, None, note=f"did not run: {why}")


def read_figures(folder: Path) -> list[Figure]:
    """Return the figures of all parts; a line that a killed part cut short is left out."""
    figures = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                figures.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return figures


def failed(figures: Sequence[Figure]) -> list[Figure]:
    """Return the figures that miss their limit."""
    return [figure for figure in figures if figure.get("passed") is False]


def not_run(figures: Sequence[Figure]) -> list[Figure]:
    """Return the checks that did not run."""
    return [figure for figure in figures if figure["value"] is None]


def summarize(figures: Sequence[Figure], title: str) -> str:
    """Return the summary: what failed, what did not run, then a table per part."""
    n_passed = sum(figure.get("passed") is True for figure in figures)
    lines = [
        f"# {title}",
        "",
        f"{n_passed} checks passed, {len(failed(figures))} failed,"
        f" {len(not_run(figures))} did not run; {len(figures)} figures in all.",
    ]
    for heading, chosen in (("Failed", failed(figures)), ("Did not run", not_run(figures))):
        if chosen:
            lines += ["", f"## {heading}", "", *_table(chosen, names_part=True)]
    for part in dict.fromkeys(figure["part"] for figure in figures):
        of_part = [figure for figure in figures if figure["part"] == part]
        lines += ["", f"## {part}", "", *_table(of_part)]
    return "\n".join(lines) + "\n"


def _table(figures: Sequence[Figure], *, names_part: bool = False) -> list[str]:
    rows = [["check", "value", "limit", "result", "note"]]
    for figure in figures:
        check = f"{figure['part']}: {figure['check']}" if names_part else figure["check"]
        result = {True: "pass", False: "FAIL"}.get(figure.get("passed"), "")  # type: ignore[arg-type]
        value = f"{_text(figure['value'])} {figure['unit']}".strip()
        rows.append([check, value, figure.get("limit", ""), result, figure.get("note", "")])
    rows.insert(1, ["---"] * len(rows[0]))
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

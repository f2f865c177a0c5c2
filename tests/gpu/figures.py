"""The figures of a check: one JSON line each while it runs, and a summary in Markdown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Figure = dict[str, Any]
"""Keys part, check, value, unit, and where they apply limit, passed, note."""


class Figures:
    """Append the figures of one part to a file, each as soon as it is known.

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

    def holds(self, check: str, passed: bool, note: str | None = None) -> None:
        """Record whether a claim holds."""
        self.add(check, passed, passed=passed, note=note)

    def skip(self, check: str, why: str) -> None:
        """Record that a check did not run."""
        self.add(check, None, note=f"did not run: {why}")


def read_figures(folder: Path) -> list[Figure]:
    """Return the figures of all parts; a line that a killed part cut short is left out."""
    figures = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text().splitlines(keepends=True)
        figures += [json.loads(line) for line in lines if line.endswith("\n")]
    return figures


def failed(figures: Iterable[Figure]) -> list[Figure]:
    """Return the figures that miss their limit."""
    return [figure for figure in figures if figure.get("passed") is False]


def not_run(figures: Iterable[Figure]) -> list[Figure]:
    """Return the checks that did not run."""
    return [figure for figure in figures if figure["value"] is None]


def summarize(figures: Sequence[Figure]) -> str:
    """Return the summary: what failed, what did not run, then a table per part."""
    card = next((figure["value"] for figure in figures if figure["check"] == "card"), "unknown")
    n_passed = sum(figure.get("passed") is True for figure in figures)
    counts = f"{len(failed(figures))} failed, {len(not_run(figures))} did not run"
    lines = [f"# GPU check: {card}", "", f"{n_passed} checks passed, {counts}."]
    tables = {"Failed": failed(figures), "Did not run": not_run(figures)}
    for figure in figures:
        tables.setdefault(figure["part"], []).append(figure)
    for heading, rows in tables.items():
        if rows:
            lines += ["", f"## {heading}", "", "| check | value | limit | result | note |"]
            lines += ["|---|---|---|---|---|", *(_row(row, heading) for row in rows)]
    return "\n".join(lines) + "\n"


def _row(figure: Figure, heading: str) -> str:
    check = figure["check"] if heading == figure["part"] else f"{figure['part']}: {figure['check']}"
    value = figure["value"]
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, float):
        value = f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    result = "" if "passed" not in figure else "pass" if figure["passed"] else "FAIL"
    cells = (check, f"{value} {figure['unit']}", figure.get("limit", ""), result)
    texts = (" ".join(str(cell).split()) for cell in (*cells, figure.get("note", "")))
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

"""Write the list of modules in docs/architecture.md: `python -m tests.module_list`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import wiseft_cli

ROOT = Path(__file__).parents[1]
PACKAGE = Path(wiseft_cli.__file__).parent
PAGE = ROOT / "docs" / "architecture.md"
ROOMS = (
    "cli",
    "training",
    "evaluation",
    "demo",
    "model",
    "data",
    "merging",
    "convert",
    "reporting",
    "prompts",
    "checkpoint",
    "compute",
)
_BLOCK = re.compile(r"(?<=<!-- modules -->\n)```\n.*?^```", re.M | re.S)


def render_list() -> str:
    """Return the rooms and their modules, each with the first line of its docstring."""
    lines = [_line(path, 0) for path in sorted(PACKAGE.glob("*.py"))]
    for room in ROOMS:
        lines += _folder(PACKAGE / room, 0)
    return "\n".join(["```", *lines, "```"])


def _folder(folder: Path, depth: int) -> list[str]:
    lines = [
        f"{'  ' * depth}{folder.name + '/':<{26 - 2 * depth}}{_summary(folder / '__init__.py')}"
    ]
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name != "__init__.py":
            lines.append(_line(path, depth + 1))
        elif (path / "__init__.py").exists():
            lines += _folder(path, depth + 1)
    return lines


def _line(path: Path, depth: int) -> str:
    return f"{'  ' * depth}{path.name:<{26 - 2 * depth}}{_summary(path)}"


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].rstrip(".")


def with_list(page: str) -> str:
    """Return the text of the page with its list of modules brought up to date."""
    return _BLOCK.sub(lambda _: render_list(), page)


if __name__ == "__main__":
    PAGE.write_text(with_list(PAGE.read_text()))

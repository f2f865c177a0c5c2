"""The documents say what is so: the reference equals `--help`, links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.cli_reference import COMMANDS, PAGE, render_page
from tests.module_list import with_list

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def quick_start_lines() -> list[str]:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^## Quick start\n.*?^```\w*\n(.*?)^```", text, re.M | re.S)
    assert block, "README.md has no code block under Quick start"
    return block.group(1).splitlines()


def test_the_command_line_reference_equals_the_help() -> None:
    assert PAGE.read_text() == render_page(), "run `python -m tests.cli_reference`"


def test_quick_start_is_two_lines_the_demo_and_the_tests() -> None:
    demo, tests = quick_start_lines()
    assert "wiseft demo" in demo
    assert "&& pytest -n auto --dist loadfile" in tests
    assert all("pip install" in line for line in (demo, tests))


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"wiseft {command}" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_option_a_document_names_exists(document: Path) -> None:
    known = set(re.findall(r"--[a-z][a-z0-9-]+", PAGE.read_text()))
    # Options of other programs that the documents quote.
    known |= {"--extra-index-url", "--index-url", "--no-deps", "--nproc-per-node", "--bind"}
    text = document.read_text()
    if document.name == "coming-from.md":  # the first column of its tables is other programs'
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.M)
    for line in re.findall(r"^.*wiseft (?!cli).*$", text, re.M):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line):
            assert option in known, f"{document.name}: {option} in {line!r}"


def test_every_dependency_has_its_line_in_the_architecture() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "architecture.md").read_text()
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=~!\[ ]", requirement)[0]
        assert f"| {name} |" in text, f"docs/architecture.md has no line for {name}"


def test_the_list_of_modules_is_up_to_date() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert page == with_list(page), "run `python -m tests.module_list`"

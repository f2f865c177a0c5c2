"""`.ci/run` is the whole check, and the workflow runs it on the Pythons that the README names."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PYTHONS = ["3.11", "3.12", "3.13"]


def workflow() -> dict[str, object]:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    document: dict[str, object] = yaml.safe_load(text)
    return document


def test_workflow_runs_the_local_check_and_nothing_else() -> None:
    (job,) = workflow()["jobs"].values()  # type: ignore[attr-defined]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert job["strategy"]["matrix"] == {"python": PYTHONS}
    uses = [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step]
    assert uses == ["actions/checkout", "actions/setup-python"]


def test_the_pythons_of_the_workflow_are_the_declared_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={PYTHONS[0]}"
    classifiers = [f"Programming Language :: Python :: {version}" for version in PYTHONS]
    assert [line for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)] == (
        classifiers
    )
    assert f"Python {', '.join(PYTHONS[:-1])} and {PYTHONS[-1]}" in (ROOT / "README.md").read_text()


def test_the_scripts_can_be_executed_and_stop_at_the_first_error() -> None:
    for name in ("run", "package", "oldest"):
        script = ROOT / ".ci" / name
        assert os.access(script, os.X_OK)
        assert re.search(r"^set -euo pipefail$", script.read_text(), re.M)

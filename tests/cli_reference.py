"""Write docs/cli.md from the commands' own `--help`: `python -m tests.cli_reference`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from wiseft_cli.cli.app import COMMANDS

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def help_of(*command: str) -> str:
    """Return the help text of a command at a fixed width."""
    done = subprocess.run(
        [sys.executable, "-m", "wiseft_cli", *command, "--help"],
        env={**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100"},
        cwd=PAGE.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def render_page() -> str:
    """Return the whole page."""
    parts = [
        "# Command-line reference",
        "Made from `--help` by `python -m tests.cli_reference`; a test keeps it true.\n\n"
        "Results go to stdout, progress and warnings to stderr. Exit codes: 0 done; 1 the input\n"
        "or the environment is wrong; 2 usage; 3 a gate failed; 130 interrupted; 141 nobody reads\n"
        "the output any more; 143 terminated.",
        "`wiseft --install-completion` installs completion for bash, zsh, fish or PowerShell:\n"
        "commands, options, and the names that ship with the package (recipes, template sets,\n"
        "data sets, suites). Where no such name matches, the shell completes file names.\n"
        "`--show-completion` prints the script instead.",
        f"```\n{help_of()}\n```",
    ]
    for command in COMMANDS:
        parts += [f"## wiseft {command}", f"```\n{help_of(command)}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render_page())

"""Layout of `--help`: options under headings, full summaries, examples at the end.

typer draws headings only with rich, which doubles the time that `--help` takes.
"""

from __future__ import annotations

import re
from typing import Any

import typer.core

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_SET_OPTIONS = ("--train", "--val", "--test", "--shift", "--dataset", "--images")
"""What other commands and programs call `--data`."""

NARROW = 70
"""Columns below which option names take less of a line."""


class HelpCommand(typer.core.TyperCommand):
    """A subcommand whose options stand under the headings of their `rich_help_panel`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words; suggest --data for the name of an image set's purpose.

        Without the words that pydantic, which newer versions of typer use, puts before a message.
        """
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # typer exports no class for unknown options
            options = {option for param in self.params for option in param.opts}
            if getattr(error, "option_name", None) in _SET_OPTIONS and "--data" in options:
                vars(error)["possibilities"] = ["--data"]
            if isinstance(text := getattr(error, "message", None), str):
                vars(error)["message"] = text.removeprefix("Value error, ")
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line, without braces around required arguments."""
        return [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per heading, in the order in which the headings first appear."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                if isinstance(param, typer.core.TyperArgument):
                    heading, record = "Arguments", (record[0].split(" ")[0], record[1])
                else:
                    heading = getattr(param, "rich_help_panel", None) or "Other options"
                sections.setdefault(heading, []).append(_plain(record))
        for heading in sorted(sections, key=["Other options"].count):  # stable: last, others stay
            with formatter.section(heading):
                formatter.write_dl(sections[heading], col_max=_first_column(formatter))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples as they are, one command per line."""
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line.strip()}\n")


class HelpGroup(typer.core.TyperGroup):
    """The command `wiseft`; the summaries of its subcommands are not cut short."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the first line of each subcommand's help."""
        rows = [
            (name, (self.commands[name].help or "").strip().splitlines()[0].rstrip("."))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows, col_max=_first_column(formatter))


def _first_column(formatter: Any) -> int:
    return 18 if formatter.width < NARROW else 28


_PLACEHOLDERS = {
    "int": "N",
    "int range": "N",
    "float": "X",
    "float range": "X",
    "str": "TEXT",
    "path": "PATH",
}


def _plain(record: tuple[str, str]) -> tuple[str, str]:
    """Return a help record with plain placeholders and defaults, and without ranges."""
    names, text = record
    names = re.sub(r"<([^>]*)>", lambda at: _PLACEHOLDERS.get(at[1], at[1]), names)
    text = re.sub(r"\[default: \((.*)\)(.*)\]$", r"[default: \1\2]", text, flags=re.DOTALL)
    text = re.sub(r"(\[|; )[^][;]*\bx\b[<>=]+[\d.]+\]$", r"\1]", text)
    return names, text.replace("; ]", "]").removesuffix("[]").rstrip()

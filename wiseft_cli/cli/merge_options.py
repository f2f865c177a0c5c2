"""The options of merge methods, which `wiseft merge` and `wiseft eval` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wiseft_cli.cli.completion import complete_method
from wiseft_cli.merging.methods import METHODS, list_methods

METHOD_PANEL = "Method"


def describe_default_alphas() -> str:
    """Return the default alpha of the methods, for the help."""
    others = [
        f"{row['name']} {row['default_alpha'] or 'has none'}"
        for row in list_methods()
        if row["default_alpha"] != "0.5"
    ]
    return f"0.5; {', '.join(others)}"


def _describe_methods() -> str:
    """Return the names and papers of the methods, for the help."""
    return ", ".join(f"{row.name} ({row.paper})" for row in METHODS.values() if row.has_base)


def _option_help(name: str) -> str:
    """Return the help of an option that some methods have."""
    owners = [
        (method.name, option)
        for method in METHODS.values()
        for option in method.options
        if option.name == name
    ]
    _, option = owners[0]
    default = "Required" if option.default is None else f"Default: {option.default}"
    text = f"{option.help[0].lower()}{option.help[1:]}"
    return f"{', '.join(owner for owner, _ in owners)}: {text} {default}."


def _method_option(name: str, metavar: str) -> Any:
    return typer.Option(metavar=metavar, rich_help_panel=METHOD_PANEL, help=_option_help(name))


Method = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        rich_help_panel=METHOD_PANEL,
        help=f"Merge method: {_describe_methods()}. "
        "`wiseft merge --list-methods` describes them. Default: linear.",
        autocompletion=complete_method,
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        metavar="W,W,...",
        rich_help_panel=METHOD_PANEL,
        help="Weight of each FINETUNED, in their order; the sum must be 1. Default: equal weights.",
    ),
]
LayerAlphas = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB=ALPHA",
        rich_help_panel=METHOD_PANEL,
        help="Alpha of the tensors whose whole names match: * is any text, ? a character, "
        "{0-5} a range, {a,b} a choice. Repeatable; the first match counts.",
    ),
]
Density = Annotated[str | None, _method_option("density", "SHARE")]
TrimScope = Annotated[str | None, _method_option("trim_scope", "SCOPE")]
Drop = Annotated[str | None, _method_option("drop", "SHARE")]
Seed = Annotated[str | None, _method_option("seed", "N")]
Then = Annotated[str | None, _method_option("then", "METHOD")]
LayerAlphaFrom = Annotated[str | None, _method_option("layer_alpha_from", "ALPHA")]
OutsideBlocks = Annotated[str | None, _method_option("outside_blocks", "WHERE")]
FisherFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=METHOD_PANEL,
        help="fisher: Fisher information of an input, from wiseft fisher. Give it once per "
        "input, that of ZEROSHOT first.",
    ),
]
FisherFloor = Annotated[str | None, _method_option("fisher_floor", "VALUE")]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=METHOD_PANEL,
        help="YAML file whose keys are the names of these options, and of --dtype and "
        "--missing. An option replaces the key of the same name.",
    ),
]

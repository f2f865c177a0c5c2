"""Run the commands for a family, and return its row of docs/models.md."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import open_clip

from tests.families.catalog import Family
from tests.families.models_page import names_of, render_row
from tests.families.pipeline import Run, head_arguments, run_family
from wiseft_cli.cli.app import main
from wiseft_cli.model.text_encoder import TextEncoder


def find_row(family: Family, place: Path) -> str:
    """Run a family and return its row."""
    place.mkdir()
    if family.error is None:
        return row_of(family, run_family(family, place))
    return error_row(family, find_error(family, place))


def row_of(family: Family, run: Run) -> str:
    """Return the row of a supported family."""
    ignores_padding = TextEncoder(run.model).ignores_padding
    from_hub = not isinstance(run.tokenizer, open_clip.SimpleTokenizer)
    return render_row(
        family.title,
        names_of(family.names),
        "yes",
        "omitted" if ignores_padding else "kept",
        "0" if getattr(run.model, "logit_bias", None) is None else "the model's",
        "hf" if from_hub else "",
    )


def error_row(family: Family, message: str) -> str:
    """Return the row of a family that `zeroshot-head` rejects with a message."""
    return render_row(family.title, names_of(family.names), f"no: {message}", "", "", "")


def find_error(family: Family, place: Path) -> str:
    """Return the error of `zeroshot-head` for the full-size model of a family."""
    arguments = head_arguments(place, place, place / "z.safetensors")
    arguments[arguments.index("--model") + 1] = family.like
    out = StringIO()
    with redirect_stderr(out):
        assert main([*arguments, "--random-weights"]) == 1
    (error,) = (line for line in out.getvalue().splitlines() if line.startswith("error: "))
    return error.removeprefix("error: ")

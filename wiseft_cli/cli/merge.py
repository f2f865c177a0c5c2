"""`wiseft merge`: interpolate two checkpoints into one or several files."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from os.path import dirname
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_cli.cli.console import Advance, print_data, print_json, print_message, progress, warn
from wiseft_cli.cli.options import Force, Json
from wiseft_cli.errors import UsageError, counted, list_some

if TYPE_CHECKING:
    from wiseft_cli.merging.alpha import Alpha
    from wiseft_cli.merging.merge import MergedFile, MergeReport

EXAMPLES = """
wiseft merge --alpha 0.5 zeroshot.safetensors finetuned.safetensors
wiseft merge --alpha 0:1:0.1 zeroshot.safetensors finetuned.safetensors --json
"""

_INTERPOLATION, _OUTPUT, _COMPUTE = "Interpolation", "Output", "Compute"


class StoredDtype(StrEnum):
    """Values of `--dtype`."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Missing(StrEnum):
    """Values of `--missing`."""

    refuse = "refuse"
    copy = "copy"


def merge(
    zeroshot: Annotated[
        Path,
        typer.Argument(
            metavar="ZEROSHOT",
            help="The zero-shot checkpoint: a safetensors file, an index of shards, or a folder.",
        ),
    ],
    finetuned: Annotated[
        Path,
        typer.Argument(
            metavar="FINETUNED", help="The fine-tuned checkpoint, in any of these forms."
        ),
    ],
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ALPHA",
            rich_help_panel=_INTERPOLATION,
            help="Weight of FINETUNED: 0 is ZEROSHOT, 1 is FINETUNED. A number, a list 0,0.5,1 or "
            "an inclusive range 0:1:0.1; can be repeated. Default: 0.5.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=_OUTPUT,
            help="Output file; {alpha} becomes the value, in a folder name too. DIR/ with a slash "
            "at its end writes a folder, with the config and tokenizer files of FINETUNED's. "
            "Default: the name of FINETUNED with -wiseft-{alpha}, in the current folder.",
        ),
    ] = None,
    dtype: Annotated[
        StoredDtype | None,
        typer.Option(
            rich_help_panel=_INTERPOLATION,
            help="Dtype to store floating tensors in. Default: the dtype of the inputs.",
        ),
    ] = None,
    missing: Annotated[
        Missing,
        typer.Option(
            rich_help_panel=_INTERPOLATION,
            help="Refuse inputs with different tensors, or copy tensors that only one input has.",
        ),
    ] = Missing.refuse,
    match_names: Annotated[
        bool,
        typer.Option(
            "--match-names",
            rich_help_panel=_INTERPOLATION,
            help="Match tensors whose names differ only in spelling: wrappers such as module., "
            "prefixes, and the names of transformers, timm and open_clip. The result has the "
            "names of FINETUNED, or of the only input with a card.",
        ),
    ] = False,
    extrapolate: Annotated[
        bool,
        typer.Option(
            "--extrapolate", rich_help_panel=_INTERPOLATION, help="Allow alpha outside [0, 1]."
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            rich_help_panel=_INTERPOLATION,
            help="Exit with an error instead of a warning.",
        ),
    ] = False,
    force: Force = False,
    json: Json = False,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=_COMPUTE,
            help="Number of threads. Default: one per CPU, up to 8.",
        ),
    ] = None,
) -> None:
    """Interpolate the weights of two checkpoints.

    theta = (1 - alpha) * ZEROSHOT + alpha * FINETUNED, for every tensor. Prints the path of each
    file it writes.
    """
    # lazy: numpy takes a tenth of a second, and --help does not need it
    from wiseft_cli.convert.matching import NameMatcher
    from wiseft_cli.merging.alpha import parse_alphas
    from wiseft_cli.merging.merge import merge_checkpoints, open_inputs
    from wiseft_cli.merging.outputs import list_companions, require_model_folder

    alphas = parse_alphas(alpha or ["0.5"], extrapolate=extrapolate)
    outputs = name_outputs(output, alphas, finetuned)
    writes_folders = output is not None and output.endswith("/")
    if writes_folders:
        require_model_folder(finetuned)
    matcher = NameMatcher()
    with ExitStack() as stack:
        report = merge_checkpoints(
            zeroshot,
            finetuned,
            outputs,
            dtype=dtype.value if dtype else None,
            copies_missing=missing is Missing.copy,
            threads=threads,
            is_strict=strict,
            force=force,
            writes_folders=writes_folders,
            creates_parents=output is not None and "{alpha}" in dirname(output.rstrip("/")),
            opens=matcher.open if match_names else open_inputs,
            on_progress=_Bar(stack),
        )
    for note in matcher.notes:
        print_message(f"matched: {note}")
    _print_messages(report)
    if not writes_folders and (companions := list_companions(finetuned)):
        shown = ", ".join(list_some([path.name for path in companions], limit=3))
        print_message(
            f"{counted(len(companions), 'file')} beside the weights of FINETUNED not copied: "
            f"{shown}; -o DIR/ writes a folder with them"
        )
    if json:
        matched = {"matched": matcher.notes} if match_names else {}
        results = [_result(file, report) | matched for file in report.files]
        print_json(results if len(results) > 1 else results[0])
    else:
        for file in report.files:
            print_data(str(file.path))


def name_outputs(
    template: str | None, alphas: tuple[Alpha, ...], finetuned: Path
) -> list[tuple[Alpha, Path]]:
    """Return the path of every alpha's output.

    Args:
        template: Value of `-o`, in which `{alpha}` is replaced; None for the name of the
            fine-tuned file in the current folder.
    Raises:
        UsageError: There are several alphas and the template does not contain `{alpha}`.
    """
    if template is None:
        # lazy: as above
        from wiseft_cli.checkpoint.reader import stem_of

        template = f"{stem_of(finetuned)}-wiseft-{{alpha}}.safetensors"
    elif len(alphas) > 1 and "{alpha}" not in template:
        raise UsageError(
            f"-o {template}: one name for {len(alphas)} values of --alpha",
            hint="put {alpha} into the name, or omit -o",
        )
    # Replaced literally: str.format would interpret other braces in a path.
    return [(alpha, Path(template.replace("{alpha}", alpha.text))) for alpha in alphas]


class _Bar:
    """Progress in MiB; the first call, which knows the total, starts it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._advance: Advance | None = None
        self._rest = 0

    def __call__(self, total: int, done: int) -> None:
        if self._advance is None:
            self._advance = self._stack.enter_context(progress(total >> 20, "merging (MiB)"))
        steps, self._rest = divmod(self._rest + done, 1 << 20)
        if steps:
            self._advance(steps)


def _print_messages(report: MergeReport) -> None:
    for text in report.warnings:
        warn(text)
    for names, what in (
        (report.discrete, "of integers or booleans, copied from FINETUNED"),
        (report.missing, "in one file only, copied"),
    ):
        if names:
            shown = ", ".join(list_some(names, limit=3))
            print_message(f"{counted(len(names), 'tensor')} {what}: {shown}")


def _result(file: MergedFile, report: MergeReport) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "digest": file.digest,
        "role": "merged",
        "alpha": file.alpha.text if file.alpha else None,
        "warnings": list(report.warnings),
        "not_finite": dict(file.not_finite),
        "not_finite_inputs": dict(
            zip(("zeroshot", "finetuned"), map(dict, report.not_finite), strict=True)
        ),
        "taken_from_finetuned": list(report.discrete),
        "copied_from_one_side": list(report.missing),
    }

"""`wiseft merge`: options in, one merge, paths out."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_cli.cli.console import Advance, print_json, print_message, print_result, progress, warn
from wiseft_cli.errors import UsageError, list_some

if TYPE_CHECKING:
    from wiseft_cli.merging.alpha import Alpha
    from wiseft_cli.merging.merge import MergedFile, MergeReport


class StoredDtype(StrEnum):
    """What `--dtype` accepts."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Missing(StrEnum):
    """What `--missing` accepts."""

    refuse = "refuse"
    copy = "copy"


def merge(
    zeroshot: Annotated[
        Path,
        typer.Argument(
            metavar="ZEROSHOT", help="theta_0: a safetensors file, an index of shards, or a folder."
        ),
    ],
    finetuned: Annotated[Path, typer.Argument(metavar="FINETUNED", help="theta_1, likewise.")],
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="Weight of FINETUNED: 0 is ZEROSHOT, 1 is FINETUNED. A number, a list 0,0.5,1 "
            "or an inclusive range 0:1:0.1; may be repeated. Default 0.5."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write; {alpha} in it becomes the value. Default: "
            "FINETUNED's name with -wiseft-{alpha}, in the current folder.",
        ),
    ] = None,
    dtype: Annotated[
        StoredDtype | None,
        typer.Option(help="Type to store floating tensors in. Default: as they are."),
    ] = None,
    missing: Annotated[
        Missing, typer.Option(help="What to do with tensors that only one side has.")
    ] = Missing.refuse,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow alpha outside [0, 1].")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads to use. Default: one a processor, at most 8."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Make every warning an error.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing outputs.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Interpolate two checkpoints: (1 - alpha) * ZEROSHOT + alpha * FINETUNED.

    alpha is the weight of FINETUNED. Prints the path of each file it wrote.
    """
    # lazy: numpy costs a tenth of a second, and --help needs none
    from wiseft_cli.merging.alpha import parse_alphas
    from wiseft_cli.merging.merge import merge_checkpoints

    alphas = parse_alphas(alpha or ["0.5"], extrapolate=extrapolate)
    outputs = name_outputs(output, alphas, finetuned)
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
            on_progress=_Bar(stack),
        )
    _tell(report)
    if json:
        results = [_result(file, report) for file in report.files]
        print_json(results if len(results) > 1 else results[0])
    else:
        for file in report.files:
            print_result(str(file.path))


def name_outputs(
    template: str | None, alphas: tuple[Alpha, ...], finetuned: Path
) -> list[tuple[Alpha, Path]]:
    """Return the path of each alpha's output.

    Args:
        template: What stood behind `-o`, with `{alpha}` where its value goes; None for the
            fine-tuned file's name in the current folder.
    Raises:
        UsageError: There are several alphas and the template has no place for them.
    """
    if template is None:
        from wiseft_cli.checkpoint.reader import stem_of

        stem = stem_of(finetuned)
        return [(alpha, Path(f"{stem}-wiseft-{alpha.text}.safetensors")) for alpha in alphas]
    if len(alphas) > 1 and "{alpha}" not in template:
        raise UsageError(
            f"-o {template}: one name for {len(alphas)} values of --alpha",
            hint="put {alpha} where the value goes, or leave -o away",
        )
    # Replaced literally: str.format would trip over other braces in a path.
    return [(alpha, Path(template.replace("{alpha}", alpha.text))) for alpha in alphas]


class _Bar:
    """Progress in megabytes, begun when the size is known."""

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


def _tell(report: MergeReport) -> None:
    for text in report.warnings:
        warn(text)
    for names, what in (
        (report.discrete, "integer or boolean, taken from FINETUNED"),
        (report.missing, "in one file only, copied"),
    ):
        if names:
            noun = "tensor" if len(names) == 1 else "tensors"
            print_message(f"{len(names)} {noun} {what}: {', '.join(list_some(names, limit=3))}")


def _result(file: MergedFile, report: MergeReport) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "digest": file.digest,
        "role": "merged",
        "alpha": file.alpha.text,
        "warnings": list(report.warnings),
        "not_finite": dict(file.not_finite),
        "taken_from_finetuned": list(report.discrete),
        "copied_from_one_side": list(report.missing),
    }

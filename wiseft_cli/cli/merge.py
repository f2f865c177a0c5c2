"""`wiseft merge`: merge a zero-shot checkpoint with fine-tuned ones into one or several files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from os.path import dirname
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_cli.cli.console import (
    Advance,
    print_data,
    print_json,
    print_message,
    print_result,
    progress,
    warn,
)
from wiseft_cli.cli.merge_options import (
    METHOD_PANEL,
    Density,
    Drop,
    FisherFiles,
    FisherFloor,
    LayerAlphaFrom,
    LayerAlphas,
    Method,
    OutsideBlocks,
    PlanFile,
    Seed,
    Then,
    TrimScope,
    Weights,
    describe_default_alphas,
)
from wiseft_cli.cli.options import Force, Json
from wiseft_cli.errors import UsageError, counted, list_some
from wiseft_cli.merging.methods import DEFAULT_METHOD
from wiseft_cli.merging.methods import list_methods as method_rows

if TYPE_CHECKING:
    from wiseft_cli.merging.alpha import Alpha
    from wiseft_cli.merging.merge import MergedFile, MergeReport, OpenInputs

EXAMPLES = """
wiseft merge --alpha 0.5 zeroshot.safetensors finetuned.safetensors
wiseft merge --alpha 0:1:0.1 zeroshot.safetensors finetuned.safetensors --json
wiseft merge --method ties zeroshot.safetensors a.safetensors b.safetensors -o m.safetensors
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


def _print_methods(is_given: bool) -> None:
    """Print every method and exit."""
    if not is_given:
        return
    print_result(
        "theta_0 is ZEROSHOT, theta_i one of N FINETUNED, tau_i = theta_i - theta_0, w_i its weight"
    )
    for row in method_rows():
        print_result(row["name"])
        print_result(f"  formula   {row['formula']}")
        print_result(f"  inputs    {row['inputs']}{', weighted' if row['takes_weights'] else ''}")
        print_result(f"  alpha     {_describe_alpha(row['default_alpha'])}")
        for flag, option in row["options"].items():
            default = option["default"]
            text = "required" if default is None else f"default {default}"
            print_result(f"  option    {flag}: {option['help']} ({option['expected']}; {text})")
        print_result(f"  source    {row['citation']}")
    raise typer.Exit


def _describe_alpha(default: str | None) -> str:
    return "none" if default is None else f"default {default}"


def merge(
    zeroshot: Annotated[
        Path,
        typer.Argument(
            metavar="ZEROSHOT",
            help="The zero-shot checkpoint: a safetensors file, an index of shards, or a folder.",
        ),
    ],
    finetuned: Annotated[
        list[Path],
        typer.Argument(
            metavar="FINETUNED",
            help="The fine-tuned checkpoint, or several, in any of these forms; or the folder of a "
            "LoRA adapter of PEFT that was trained on ZEROSHOT.",
        ),
    ],
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ALPHA",
            rich_help_panel=_INTERPOLATION,
            help="Weight of FINETUNED: 0 is ZEROSHOT, 1 is FINETUNED. A number, a list 0,0.5,1 or "
            "an inclusive range 0:1:0.1; can be repeated. For a method it is the factor on what "
            f"is added to ZEROSHOT. Default: {describe_default_alphas()}.",
        ),
    ] = None,
    method: Method = None,
    weights: Weights = None,
    layer_alpha: LayerAlphas = None,
    density: Density = None,
    trim_scope: TrimScope = None,
    drop: Drop = None,
    seed: Seed = None,
    then: Then = None,
    layer_alpha_from: LayerAlphaFrom = None,
    outside_blocks: OutsideBlocks = None,
    fisher: FisherFiles = None,
    fisher_floor: FisherFloor = None,
    plan: PlanFile = None,
    print_plan: Annotated[
        bool,
        typer.Option(
            "--print-plan",
            rich_help_panel=METHOD_PANEL,
            help="Print the plan as YAML with all defaults, and exit without reading the inputs.",
        ),
    ] = False,
    list_methods: Annotated[
        bool,
        typer.Option(
            "--list-methods",
            rich_help_panel=METHOD_PANEL,
            is_eager=True,
            callback=_print_methods,
            help="Print the formula, inputs, options and source of every method, and exit.",
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=_OUTPUT,
            help="Output file; {alpha} becomes the value, in a folder name too. DIR/ with a slash "
            "at its end writes a folder, with the config and tokenizer files of the last "
            "FINETUNED's. Default: the name of a single FINETUNED with -wiseft-{alpha}, in the "
            "current folder.",
        ),
    ] = None,
    dtype: Annotated[
        StoredDtype | None,
        typer.Option(
            rich_help_panel=_INTERPOLATION,
            help="Dtype to store floating tensors in. Default: the dtype of the inputs.",
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=_OUTPUT,
            help="Write a folder of shards with at most this size each, such as 5GB, and their "
            "index, in the form that transformers loads. A larger tensor has its own shard.",
        ),
    ] = None,
    missing: Annotated[
        Missing | None,
        typer.Option(
            rich_help_panel=_INTERPOLATION,
            help="Refuse inputs with different tensors, or copy tensors that only one input has. "
            "Default: refuse.",
        ),
    ] = None,
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
    """Merge a zero-shot checkpoint with fine-tuned ones.

    theta = (1 - alpha) * ZEROSHOT + alpha * FINETUNED, for every tensor; with several FINETUNED
    their mean, or another method. Prints the path of each file it writes.
    """
    # lazy: numpy takes a tenth of a second, and --help does not need it
    from wiseft_cli.checkpoint.shards import parse_size
    from wiseft_cli.merging.merge import merge_checkpoints
    from wiseft_cli.merging.outputs import require_folder_name, require_model_folder
    from wiseft_cli.merging.plan_file import combine_request, render_plan

    given = {
        "method": method,
        "alpha": alpha,
        "weights": weights,
        "layer_alpha": layer_alpha,
        "density": density,
        "trim_scope": trim_scope,
        "drop": drop,
        "seed": seed,
        "then": then,
        "layer_alpha_from": layer_alpha_from,
        "outside_blocks": outside_blocks,
        "fisher": [str(path) for path in fisher or ()],
        "fisher_floor": fisher_floor,
        "dtype": dtype and dtype.value,
        "missing": missing and missing.value,
        "extrapolate": extrapolate,
    }
    request = combine_request(plan, given)
    if print_plan:
        print_data(render_plan(request, len(finetuned)).rstrip("\n"))
        return
    settings, alphas = request.resolve(len(finetuned))
    max_shard_bytes = None if max_shard_size is None else parse_size(max_shard_size)
    suffix = ".safetensors" if max_shard_bytes is None else ""
    outputs = name_outputs(output, alphas, finetuned, method=settings.method, suffix=suffix)
    writes_folders = max_shard_bytes is not None or (output is not None and output.endswith("/"))
    if max_shard_bytes is not None:
        require_folder_name(output or "")
    elif writes_folders:
        require_model_folder(finetuned[-1])
    matcher = None
    if match_names:
        # lazy: the names of other libraries take as long to import as the merge of a small file
        from wiseft_cli.convert.matching import NameMatcher

        matcher = NameMatcher()
    with ExitStack() as stack:
        report = merge_checkpoints(
            zeroshot,
            finetuned,
            outputs,
            settings=settings,
            fishers=[Path(path) for path in request.fisher],
            dtype=request.dtype,
            copies_missing=request.missing == Missing.copy.value,
            threads=threads,
            is_strict=strict,
            force=force,
            writes_folders=writes_folders,
            max_shard_bytes=max_shard_bytes,
            creates_parents=output is not None and "{alpha}" in dirname(output.rstrip("/")),
            opens=matcher.open if matcher else _find_opener(finetuned),
            on_progress=_Bar(stack),
        )
    for note in matcher.notes if matcher else ():
        print_message(f"matched: {note}")
    _print_messages(report, finetuned[-1], writes_folders=writes_folders)
    if json:
        matched = {"matched": matcher.notes} if matcher else {}
        results = [_result(file, report) | matched for file in report.files]
        print_json(results if len(results) > 1 else results[0])
    else:
        for file in report.files:
            print_data(str(file.path))


def _find_opener(finetuned: Sequence[Path]) -> OpenInputs:
    """Return what opens the inputs: adapters need modules that take time to import."""
    # lazy: as above
    from wiseft_cli.checkpoint.shards import is_adapter
    from wiseft_cli.merging.merge import open_inputs

    if not any(map(is_adapter, finetuned)):
        return open_inputs
    from wiseft_cli.convert.adapted import open_with_adapters

    return open_with_adapters


def name_outputs(
    template: str | None,
    alphas: Sequence[Alpha | None],
    finetuned: Sequence[Path],
    *,
    method: str = DEFAULT_METHOD,
    suffix: str = ".safetensors",
) -> list[tuple[Alpha | None, Path]]:
    """Return the path of every alpha's output.

    Args:
        template: Value of `-o`, in which `{alpha}` is replaced; None for the name of the
            fine-tuned file in the current folder.
        method: Name of the method, for the default name.
        suffix: End of the default name.
    Raises:
        UsageError: There are several alphas and the template does not contain `{alpha}`, or it
            does and the method has no alpha, or several fine-tuned files give no default name.
    """
    if template is None:
        # lazy: as above
        from wiseft_cli.checkpoint.reader import stem_of

        if len(finetuned) > 1:
            raise UsageError(
                f"{len(finetuned)} fine-tuned inputs: no default name for the output",
                hint="name it with -o FILE",
            )
        kind = "wiseft" if method == DEFAULT_METHOD else method
        template = f"{stem_of(finetuned[0])}-{kind}-{{alpha}}{suffix}"
    elif len(alphas) > 1 and "{alpha}" not in template:
        raise UsageError(
            f"-o {template}: one name for {len(alphas)} values of --alpha",
            hint="put {alpha} into the name, or omit -o",
        )
    elif "{alpha}" in template and None in alphas:
        raise UsageError(f"-o {template}: the method {method} has no alpha to put into the name")
    # Replaced literally: str.format would interpret other braces in a path.
    return [
        (alpha, Path(template.replace("{alpha}", alpha.text) if alpha else template))
        for alpha in alphas
    ]


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


def _print_messages(report: MergeReport, finetuned: Path, *, writes_folders: bool) -> None:
    # lazy: as above
    from wiseft_cli.merging.outputs import list_companions

    for text in report.warnings:
        warn(text)
    for text in report.notes:
        print_message(text)
    for names, what in (
        (report.discrete, "of integers or booleans, copied from FINETUNED"),
        (report.missing, "in one file only, copied"),
    ):
        if names:
            shown = ", ".join(list_some(names, limit=3))
            print_message(f"{counted(len(names), 'tensor')} {what}: {shown}")
    if not writes_folders and (companions := list_companions(finetuned)):
        shown = ", ".join(list_some([path.name for path in companions], limit=3))
        print_message(
            f"{counted(len(companions), 'file')} beside the weights of FINETUNED not copied: "
            f"{shown}; -o DIR/ writes a folder with them"
        )


def _result(file: MergedFile, report: MergeReport) -> dict[str, Any]:
    n_finetuned = len(report.not_finite) - 1
    names = (
        ["finetuned"] if n_finetuned == 1 else [f"finetuned-{i + 1}" for i in range(n_finetuned)]
    )
    return {
        "path": str(file.path),
        "digest": file.digest,
        "role": "merged",
        "alpha": file.alpha.text if file.alpha else None,
        "warnings": list(report.warnings),
        "notes": list(report.notes),
        "not_finite": dict(file.not_finite),
        "not_finite_inputs": dict(
            zip(("zeroshot", *names), map(dict, report.not_finite), strict=True)
        ),
        "taken_from_finetuned": list(report.discrete),
        "copied_from_one_side": list(report.missing),
    }

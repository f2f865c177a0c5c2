"""`wiseft finetune`: a zero-shot checkpoint and labelled images in, a fine-tuned one out."""

from __future__ import annotations

import inspect
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from wiseft_cli.cli.completion import complete_data, complete_recipe
from wiseft_cli.cli.console import (
    print_block,
    print_data,
    print_json,
    progress,
)
from wiseft_cli.cli.options import Device, Json, Threads, Workers
from wiseft_cli.errors import (
    DatasetError,
    LostProcessError,
    ModelError,
    OutputError,
    UsageError,
)
from wiseft_cli.training.recipe import RECIPE_KEYS, Recipe
from wiseft_cli.training.recipe_keys import RecipeKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wiseft_cli.compute.torchrun import Launch
    from wiseft_cli.training.finetune import Finetuned
    from wiseft_cli.training.plan import FinetunePlan, ListedImages
    from wiseft_cli.training.saving import SaveInterval

EXAMPLES = """
wiseft finetune zeroshot.safetensors --train photos/train --val photos/val -o finetuned.safetensors
wiseft finetune zeroshot.safetensors --train photos/train -o finetuned.safetensors --dry-run
"""

_data, _recipe, _methods, _compute, _output = (
    partial(typer.Option, rich_help_panel=heading)
    for heading in ("Data", "Recipe", "Methods", "Compute", "State and output")
)

Command = TypeVar("Command", bound=Callable[..., None])


def _with_recipe_options(command: Command) -> Command:
    """Give a command an option for each recipe key, in place of its `**` parameter."""
    signature = inspect.signature(command, eval_str=True)
    own = [at for at in signature.parameters.values() if at.kind is not at.VAR_KEYWORD]
    options = [_recipe_option(key) for key in RECIPE_KEYS.values()]
    command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return command


def _recipe_option(key: RecipeKey) -> inspect.Parameter:
    """Return the option of a recipe key; None, if it is not given, leaves the key to the recipe."""
    is_switch, is_pair = isinstance(key.default, bool), isinstance(key.default, tuple)
    option = (_methods if key.is_method else _recipe)(
        f"{key.option}/--no-{key.option[2:]}" if is_switch else key.option,
        metavar=key.metavar or None,
        help=key.help,
        show_default=key.default_text or False,
        autocompletion=(lambda: key.choices) if key.choices else None,
    )
    kind = bool | None if is_switch else tuple[str, str] | None if is_pair else str | None
    return inspect.Parameter(
        key.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


@_with_recipe_options
def finetune(
    context: typer.Context,
    zeroshot: Annotated[
        Path | None, typer.Argument(metavar="ZEROSHOT", help="Checkpoint to start from.")
    ] = None,
    train: Annotated[
        str | None,
        _data(
            autocompletion=complete_data,
            metavar="[NAME=]SPEC",
            help="Training images: a folder with one subfolder per class (id or name), a manifest,"
            " shards, or a published set.",
        ),
    ] = None,
    val: Annotated[
        list[str] | None,
        _data(
            autocompletion=complete_data,
            metavar="[NAME=]SPEC",
            help="Image set whose accuracy is reported after each epoch. It has no influence on"
            " training, except with --keep best. Repeatable.",
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        _data(
            metavar="FRACTION",
            help="Hold out this fraction of each class's training images as a validation set. The"
            " images are chosen by the seed.",
        ),
    ] = None,
    shots: Annotated[
        int | None, _data(metavar="N", help="Train on N images per class, chosen by the seed.")
    ] = None,
    labels_are_indices: Annotated[
        bool,
        _data(
            "--labels-are-indices",
            help="Read numeric labels as positions among the head's classes, from 0.",
        ),
    ] = False,
    max_bad: Annotated[
        int,
        _data(
            min=0,
            metavar="N",
            help="Maximum number of unreadable training images; they are left out.",
        ),
    ] = 0,
    recipe_name: Annotated[
        str | None,
        _recipe(
            "--recipe",
            metavar="NAME|FILE",
            help="A built-in recipe (wise-ft, wise-ft-16shot, linear-classifier, patching,"
            " model-soups, ema, l2-sp, lp-ft, spd, car-ft, lipsum-ft) or a YAML file. The options"
            " below replace its values.",
            show_default="wise-ft",
            autocompletion=complete_recipe,
        ),
    ] = None,
    print_recipe: Annotated[
        bool,
        _recipe(
            "--print-recipe",
            help="Print the recipe as YAML and exit. With --train, every value is resolved.",
        ),
    ] = False,
    sweep: Annotated[
        list[str] | None,
        _recipe(
            metavar="KEY=V,V...",
            help="Train once for each combination of these values of recipe keys, one run after"
            " the other. -o must name each key: -o 'run-{lr}.safetensors'. Finished runs are"
            " skipped, and killed ones continue.",
        ),
    ] = None,
    print_commands: Annotated[
        bool,
        _recipe(
            "--print-commands",
            help="Print one command per run of --sweep, for a job scheduler, and exit.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        _methods(
            metavar="NAME",
            help="CLIP model that ZEROSHOT was made from, whose text tower --car-ft and --lipsum-ft"
            " use: an open_clip name such as ViT-B-32, hf-hub:ORG/REPO or local-dir:DIR.",
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        _methods(
            metavar="TAG",
            help="Weights for an open_clip name: one of its tags, or a local file (.safetensors,"
            " .bin, .pt).",
        ),
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    threads: Threads = None,
    feature_cache: Annotated[
        Path | None,
        _compute(
            metavar="DIR",
            help="Folder of cached features of a frozen encoder, used by later runs too.",
            show_default="wiseft/features in $XDG_CACHE_HOME or ~/.cache",
        ),
    ] = None,
    no_feature_cache: Annotated[
        bool, _compute("--no-feature-cache", help="Compute features again, and do not cache them.")
    ] = False,
    output: Annotated[
        Path | None,
        _output("--output", "-o", metavar="FILE", help="Fine-tuned checkpoint to write."),
    ] = None,
    force: Annotated[
        bool,
        _output(
            "--force",
            help="Overwrite an existing output, and remove the state of an unfinished run.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        _output(
            "--dry-run",
            help="Check the data, print the plan and the memory, time and disk space that the run"
            " would need, also on a device that is not on this machine, and exit.",
        ),
    ] = False,
    keep: Annotated[
        str,
        _output(
            metavar="last|best:VAL|epochs",
            help="Weights to write: those after the last step; those of the epoch with the highest"
            " accuracy on the validation set VAL; or the last ones and, as OUT-epoch-N, those of"
            " each epoch.",
        ),
    ] = "last",
    resume: Annotated[
        bool,
        _output(
            "--resume",
            help="Continue from the newest state of this run, or start if there is none.",
        ),
    ] = False,
    save_every: Annotated[
        str | None,
        _output(
            metavar="STEPS|TIME|never",
            help="Save the state of the run at this interval: steps (3) or a time (90s, 10m, 2h).",
            show_default="every epoch and every 10 minutes, less often if that takes over 1 % of"
            " the time",
        ),
    ] = None,
    keep_state: Annotated[
        bool, _output("--keep-state", help="Keep the last states after the run has finished.")
    ] = False,
    log: Annotated[
        Path | None,
        _output(metavar="FILE", help="Write one JSON line per step, epoch and warning."),
    ] = None,
    as_json: Json = False,
    **recipe_options: Any,
) -> None:
    """Fine-tune a zero-shot checkpoint on labelled images.

    By default the image encoder and the classification head train with the paper's recipe: AdamW,
    linear warm-up and cosine decay. Merge the result with the checkpoint it started from.
    """
    recipe = _read_recipe(recipe_name, recipe_options)
    if print_recipe:
        _print_recipe(recipe, train)
        return
    if zeroshot is None or train is None or output is None:
        wanted = {"ZEROSHOT": zeroshot, "--train": train, "--output": output}
        missing = [name for name, value in wanted.items() if value is None]
        raise UsageError(f"finetune needs {', '.join(missing)}", hint="see wiseft finetune --help")
    if feature_cache is not None and no_feature_cache:
        raise UsageError("--feature-cache and --no-feature-cache contradict each other")
    if print_commands and not sweep:
        raise UsageError("--print-commands prints the runs of --sweep, which is not given")
    if (model or pretrained) and not (recipe.car_ft or recipe.lipsum_ft or sweep):
        raise UsageError("--model and --pretrained are only for --car-ft and --lipsum-ft")
    _check_device_name(device)
    # lazy: numpy takes a tenth of a second, which --help does not need
    from wiseft_cli.cli.finetune_report import print_plan, report_estimate
    from wiseft_cli.cli.finetune_sweep import print_run_commands, run_sweep, validate_output
    from wiseft_cli.cli.torchrun import rank_zero_output
    from wiseft_cli.training.kept import TextSource, parse_keep, probe_path
    from wiseft_cli.training.plan import DataOptions, list_images, make_plan
    from wiseft_cli.training.recipe import probe_recipe
    from wiseft_cli.training.resume import clear_finished_run
    from wiseft_cli.training.saving import parse_save_interval
    from wiseft_cli.training.sweep import plan_sweep

    save_interval = parse_save_interval(save_every)
    data = DataOptions(train, val or (), val_fraction, shots, labels_are_indices, max_bad)

    def train_plan(plan: FinetunePlan, launch: Launch, *, appends: bool) -> tuple[str, list[str]]:
        """Return the content digest of the output, and the warnings."""
        if plan.start.digest and launch.world_size == 1:  # without the seconds that torch takes
            clear_finished_run(plan.output, plan.card, keep_states=keep_state)
            return plan.start.digest, [*plan.warnings]
        result = _train(
            plan,
            launch=launch,
            device_name=device,
            workers=workers,
            threads=threads,
            save_interval=save_interval,
            keep_states=keep_state,
            feature_cache=feature_cache,
            uses_cache=not no_feature_cache,
            log=log,
            appends=appends,
        )
        return result.digest, [*plan.warnings, *result.warnings]

    def run(
        recipe: Recipe,
        output: Path,
        launch: Launch,
        *,
        resumes: bool,
        images: ListedImages | None = None,
    ) -> tuple[FinetunePlan, str, list[str]]:
        plan_run = partial(
            make_plan,
            data=data,
            images=images,
            force=force,
            resume=resumes,
            threads=threads,
            launch=launch,
        )
        text = None if model is None else TextSource(model, pretrained)
        plan_last = partial(
            plan_run, output=output, recipe=recipe, keep=parse_keep(keep), text=text
        )
        parent = zeroshot
        if recipe.lp_ft and not dry_run:
            if not resumes:  # mistakes are reported before the linear classifier is trained
                plan_last(parent=zeroshot)
            parent = probe_path(output)
            first = plan_run(parent=zeroshot, output=parent, recipe=probe_recipe(recipe))
            print_plan(first, n_processes=launch.world_size)
            train_plan(first, launch, appends=resumes)
        plan = plan_last(parent=parent)
        print_plan(plan, n_processes=launch.world_size)
        if dry_run:
            report_estimate(plan, device, launch, save_interval, workers=workers, as_json=as_json)
            return plan, "", []
        digest, warnings = train_plan(plan, launch, appends=resumes or bool(recipe.lp_ft))
        return plan, digest, warnings

    with rank_zero_output() as launch:
        if not sweep:
            plan, digest, warnings = run(recipe, output, launch, resumes=resume)
            if not dry_run:
                _print_result(plan, digest, warnings, as_json=as_json)
            return
        runs = plan_sweep(sweep, str(output))
        if print_commands:
            print_run_commands(context, runs)
            return
        if dry_run or launch.world_size > 1:
            raise UsageError(
                "--sweep trains its runs one after the other in a single process",
                hint="--print-commands prints one command per run, for torchrun or --dry-run",
            )
        images = list_images(data)
        run_sweep(
            runs,
            read_recipe=lambda values: _read_recipe(recipe_name, {**recipe_options, **values}),
            run=lambda recipe, path: run(recipe, path, launch, resumes=not force, images=images),
            validate=lambda plan: validate_output(plan, device, workers),
            as_json=as_json,
        )


def _read_recipe(name: str | None, options: dict[str, Any]) -> Recipe:
    # lazy: yaml takes time that --help does not need
    from wiseft_cli.training.recipe_file import load_recipe

    given = {key: value for key, value in options.items() if value is not None}
    texts = {key: " ".join(at) if isinstance(at, tuple) else at for key, at in given.items()}
    return load_recipe(name, texts)


def _print_recipe(recipe: Recipe, train: str | None) -> None:
    # lazy: as above
    from wiseft_cli.data.sources import open_training_set
    from wiseft_cli.training.recipe import resolve
    from wiseft_cli.training.recipe_file import render_recipe

    resolved = None
    if train is not None:
        resolved = resolve(recipe, len(open_training_set(train).records))
    print_block(render_recipe(recipe, resolved).rstrip())


def _check_device_name(text: str) -> None:
    """Reject an unknown kind of device before the data is listed."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu|hpu|mtia)(:[0-9]+)?", text):
        raise UsageError(
            f"--device {text}: unknown device", hint="use auto, cpu, cuda, cuda:N or mps"
        )


def _train(
    plan: FinetunePlan,
    *,
    launch: Launch,
    device_name: str,
    workers: int | None,
    threads: int | None,
    save_interval: SaveInterval,
    keep_states: bool,
    feature_cache: Path | None,
    uses_cache: bool,
    log: Path | None,
    appends: bool,
) -> Finetuned:
    """Train with progress on stderr.

    Raises:
        typer.Exit: A signal stopped the run; its state is saved.
    """
    # lazy: torch takes seconds
    from wiseft_cli.cli.finetune_log import RunLog
    from wiseft_cli.cli.finetune_report import Reporter, note_idle_gpus
    from wiseft_cli.cli.torchrun import report_on_this_rank
    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.training.features import default_feature_cache
    from wiseft_cli.training.finetune import Stopped, finetune
    from wiseft_cli.training.stopping import StopRequest

    stop = StopRequest(records_all=launch.world_size > 1)
    device = resolve_device(device_name, launch)
    note_idle_gpus(device_name, device, launch)
    if uses_cache:
        feature_cache = feature_cache or default_feature_cache()
    n_encoded = plan.recipe.n_images if plan.recipe.freeze == "encoder" else 0
    n_images = plan.recipe.images_drawn(plan.recipe.steps) + n_encoded
    with (
        report_on_this_rank(DatasetError, OutputError, LostProcessError, ModelError),
        progress(n_images, "images") as advance,
        RunLog(log if launch.is_first else None, plan, appends=appends) as run_log,
    ):
        reporter = Reporter(plan, advance, run_log)
        reporter.print_resume()
        result = finetune(
            plan,
            device=device,
            workers=workers,
            threads=threads,
            save_interval=save_interval,
            keep_states=keep_states,
            feature_cache=feature_cache if uses_cache else None,
            callbacks=reporter.callbacks,
            stop=stop,
            launch=launch,
        )
        if isinstance(result, Stopped):
            run_log.log_end(path=None, steps_done=result.steps_done)
        else:
            run_log.log_end(path=str(result.path), digest=result.digest)
    if isinstance(result, Stopped):
        reporter.print_stop(result)
        raise typer.Exit(128 + (stop.signal_number or signal.SIGTERM))
    return result


def _print_result(
    plan: FinetunePlan, digest: str, warnings: Sequence[str], *, as_json: bool
) -> None:
    others = [str(path) for path in plan.other_outputs]
    if plan.recipe.lp_ft:
        others.insert(0, str(plan.parent))
    if not as_json:
        print_data(str(plan.output))
        return
    print_json(
        {
            "path": str(plan.output),
            "digest": digest,
            "role": "finetuned",
            "alpha": None,
            **({"other_paths": others} if others else {}),
            "warnings": list(warnings),
        }
    )

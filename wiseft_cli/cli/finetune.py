"""`wiseft finetune`: a zero-shot checkpoint and labelled images in, a fine-tuned one out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wiseft_cli.cli import finetune_options as options
from wiseft_cli.cli.console import print_json, print_message, print_result
from wiseft_cli.cli.finetune_recipe import check_device_name
from wiseft_cli.errors import UsageError

if TYPE_CHECKING:
    from wiseft_cli.training.plan import FinetunePlan


def finetune(
    zeroshot: options.Zeroshot = None,
    train: options.Train = None,
    output: options.Output = None,
    val: options.Val = None,
    val_fraction: options.ValFraction = None,
    shots: options.Shots = None,
    labels_are_indices: options.LabelsAreIndices = False,
    max_bad: options.MaxBad = 0,
    recipe_name: options.RecipeName = None,
    print_recipe: options.PrintRecipe = False,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    batch_size: options.BatchSize = None,
    micro_batch_size: options.MicroBatchSize = None,
    lr: options.Lr = None,
    weight_decay: options.WeightDecay = None,
    betas: options.Betas = None,
    eps: options.Eps = None,
    warmup: options.Warmup = None,
    schedule: options.Schedule = None,
    clip_grad_norm: options.ClipGradNorm = None,
    label_smoothing: options.LabelSmoothing = None,
    freeze: options.Freeze = None,
    batch_norm: options.BatchNorm = None,
    augment: options.Augment = None,
    precision: options.Precision = None,
    grad_checkpointing: options.GradCheckpointing = None,
    seed: options.Seed = None,
    deterministic: options.Deterministic = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    threads: options.Threads = None,
    feature_cache: options.FeatureCache = None,
    no_feature_cache: options.NoFeatureCache = False,
    resume: options.Resume = False,
    save_every: options.SaveEvery = None,
    keep_state: options.KeepState = False,
    log: options.Log = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Fine-tune a zero-shot checkpoint on an image folder, by default with the paper's recipe.

    Trains the image encoder and the classification head with AdamW, linear warm-up and cosine
    decay, and writes a checkpoint to merge with the one it started from.
    """
    given = {key: value for key, value in locals().items() if value is not None}
    # lazy: numpy and yaml cost a tenth of a second, which --help need not spend
    from wiseft_cli.cli.finetune_recipe import recipe_from_options, show_recipe

    recipe = recipe_from_options(recipe_name, given)
    if print_recipe:
        show_recipe(recipe, train=train)
        return
    if zeroshot is None or train is None or output is None:
        wanted = {"ZEROSHOT": zeroshot, "--train": train, "--output": output}
        missing = [name for name, value in wanted.items() if value is None]
        raise UsageError(f"finetune needs {', '.join(missing)}", hint="see wiseft finetune --help")
    check_device_name(device)
    from wiseft_cli.cli.finetune_estimate import show_estimate
    from wiseft_cli.cli.finetune_report import tell_plan
    from wiseft_cli.cli.finetune_run import RunOptions, default_feature_cache, run_with_progress
    from wiseft_cli.cli.torchrun import rank_zero_output
    from wiseft_cli.training.plan import make_plan
    from wiseft_cli.training.save_interval import Saving, parse_save_interval
    from wiseft_cli.training.starting import Start, clear_finished_run, find_start
    from wiseft_cli.training.training_data import DataChoice

    if feature_cache is not None and no_feature_cache:
        raise UsageError("--feature-cache and --no-feature-cache contradict each other")
    data = DataChoice(
        train=train,
        val=val or (),
        val_fraction=val_fraction,
        shots=shots,
        labels_are_indices=labels_are_indices,
        max_bad=max_bad,
    )
    options_of_run = RunOptions(
        device=device,
        workers=workers,
        threads=threads,
        saving=Saving(parse_save_interval(save_every), keep=keep_state),
        feature_cache=None if no_feature_cache else feature_cache or default_feature_cache(),
        log=log,
        resume=resume,
        force=force,
    )
    with rank_zero_output() as launch:
        plan = make_plan(
            parent=zeroshot,
            data=data,
            output=output,
            recipe=recipe,
            force=force,
            resume=resume,
            writes=launch.is_first,
        )
        start = Start()
        if launch.is_first:  # the one that has the states
            start = find_start(plan, resume=resume, threads=threads, world_size=launch.world_size)
        if start.digest is not None:
            print_message(f"{plan.output} is there already, made by this very run")
        else:
            tell_plan(plan, n_processes=launch.world_size)
        if dry_run:
            show_estimate(plan, options_of_run, launch, as_json=as_json)
            return
        if start.digest is not None:
            clear_finished_run(plan, keep_states=keep_state)
        digest, warnings = start.digest, list(plan.warnings)
        if digest is None or launch.world_size > 1:  # the others wait to hear of it
            digest = run_with_progress(
                plan, start, options_of_run, launch, on_warning=warnings.append
            )
        _print_result(plan, digest, warnings, as_json=as_json)


def _print_result(
    plan: FinetunePlan, digest: str, warnings: Sequence[str], *, as_json: bool
) -> None:
    if not as_json:
        print_result(str(plan.output))
        return
    print_json(
        {
            "path": str(plan.output),
            "digest": digest,
            "role": "finetuned",
            "alpha": None,
            "warnings": list(warnings),
        }
    )

"""`wiseft finetune`: a zero-shot checkpoint and labelled images in, a fine-tuned one out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wiseft_cli.cli.console import print_json, print_result, progress
from wiseft_cli.cli.finetune_recipe import check_device_name
from wiseft_cli.data.workers import MAX_DEFAULT_WORKERS, default_workers
from wiseft_cli.errors import UsageError

if TYPE_CHECKING:
    from wiseft_cli.training.plan import FinetunePlan

# An option that is not given is None and leaves the key to the recipe, whose default the help
# repeats in words.
_Zeroshot = Annotated[
    Path | None, typer.Argument(metavar="ZEROSHOT", help="Checkpoint to start from.")
]
_Train = Annotated[
    str | None,
    typer.Option(
        "--train",
        metavar="[NAME=]SPEC",
        help="Training images: a folder with one subfolder a class (id or name), a manifest, or"
        " shards.",
    ),
]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write.")
]
_Val = Annotated[
    list[str] | None,
    typer.Option(
        "--val",
        metavar="[NAME=]SPEC",
        help="Image set whose accuracy is shown after each epoch; it decides nothing. Repeatable.",
    ),
]
_RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="wise-ft, wise-ft-16shot, linear-classifier, patching, model-soups, or a YAML file; "
        "the options below override its keys.",
        show_default="wise-ft",
    ),
]
_PrintRecipe = Annotated[
    bool, typer.Option("--print-recipe", help="Print the resolved recipe as YAML and exit.")
]
_Epochs = Annotated[
    int | None, typer.Option(help="Passes over the training images.", show_default="10")
]
_Steps = Annotated[int | None, typer.Option(help="Optimizer steps of the run, instead of epochs.")]
_BatchSize = Annotated[
    int | None, typer.Option(help="Images of one optimizer step.", show_default="512")
]
_MicroBatchSize = Annotated[
    int | None,
    typer.Option(
        help="Images of one forward pass; fewer need less memory.", show_default="the batch size"
    ),
]
_Lr = Annotated[
    float | None, typer.Option(help="Peak learning rate of AdamW.", show_default="3e-5")
]
_WeightDecay = Annotated[
    float | None, typer.Option(help="Weight decay of every trained tensor.", show_default="0.1")
]
_Betas = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Decay rates of AdamW's two moments.", show_default="0.9 0.999"),
]
_Eps = Annotated[
    float | None,
    typer.Option(help="Term in the denominator of AdamW.", show_default="1e-8"),
]
_Warmup = Annotated[
    str | None,
    typer.Option(
        metavar="STEPS|SHARE",
        help="Linear warm-up: steps, or a share of the run below 1.",
        show_default="0.1, at most 500 steps",
    ),
]
_Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="cosine|constant",
        help="Learning rate after the warm-up.",
        show_default="cosine",
    ),
]
_ClipGradNorm = Annotated[
    float | None,
    typer.Option(help="Bound of the global gradient norm; 0 for none.", show_default="1"),
]
_LabelSmoothing = Annotated[
    float | None,
    typer.Option(help="Share of the target spread over the classes, in [0, 1).", show_default="0"),
]
_Freeze = Annotated[
    str | None,
    typer.Option(
        metavar="none|encoder|head",
        help="What stays as it is. encoder: a linear classifier on features computed once; "
        "head: the image encoder alone.",
        show_default="none",
    ),
]
_BatchNorm = Annotated[
    str | None,
    typer.Option(
        metavar="train|frozen",
        help="Whether BatchNorm layers follow the batches or keep their running statistics.",
        show_default="train; frozen with --freeze encoder",
    ),
]
_Augment = Annotated[
    str | None,
    typer.Option(
        metavar="crop|none",
        help="Random crops of 90 to 100 % of the area, or the preprocessing of eval.",
        show_default="crop; none with --freeze encoder",
    ),
]
_Precision = Annotated[
    str | None,
    typer.Option(
        metavar="fp32|bf16|fp16",
        help="Arithmetic of the image encoder; weights, head and loss stay float32.",
        show_default="fp32",
    ),
]
_GradCheckpointing = Annotated[
    bool | None,
    typer.Option(
        "--grad-checkpointing/--no-grad-checkpointing",
        help="Compute activations again in the backward pass: less memory, more time.",
        show_default="off",
    ),
]
_Seed = Annotated[int | None, typer.Option(help="Seed of all random numbers.", show_default="0")]
_Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="Ask torch for deterministic algorithms on a GPU.",
        show_default="off",
    ),
]
_Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")]
_Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that decode images; 0 decodes in the main one.",
        show_default=f"one a CPU, at most {MAX_DEFAULT_WORKERS}",
    ),
]
_Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of torch.", show_default="torch's choice")
]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def finetune(
    zeroshot: _Zeroshot = None,
    train: _Train = None,
    output: _Output = None,
    val: _Val = None,
    recipe_name: _RecipeName = None,
    print_recipe: _PrintRecipe = False,
    epochs: _Epochs = None,
    steps: _Steps = None,
    batch_size: _BatchSize = None,
    micro_batch_size: _MicroBatchSize = None,
    lr: _Lr = None,
    weight_decay: _WeightDecay = None,
    betas: _Betas = None,
    eps: _Eps = None,
    warmup: _Warmup = None,
    schedule: _Schedule = None,
    clip_grad_norm: _ClipGradNorm = None,
    label_smoothing: _LabelSmoothing = None,
    freeze: _Freeze = None,
    batch_norm: _BatchNorm = None,
    augment: _Augment = None,
    precision: _Precision = None,
    grad_checkpointing: _GradCheckpointing = None,
    seed: _Seed = None,
    deterministic: _Deterministic = None,
    device: _Device = "auto",
    workers: _Workers = None,
    threads: _Threads = None,
    force: _Force = False,
    as_json: _Json = False,
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
    from wiseft_cli.cli.finetune_report import tell_plan
    from wiseft_cli.training.plan import make_plan

    plan = make_plan(
        parent=zeroshot,
        train=train,
        val=val or [],
        output=output,
        recipe=recipe,
        force=force,
    )
    tell_plan(plan)
    digest = _run(plan, device=device, workers=workers, threads=threads)
    _print_result(plan, digest, as_json=as_json)


def _print_result(plan: FinetunePlan, digest: str, *, as_json: bool) -> None:
    if not as_json:
        print_result(str(plan.output))
        return
    print_json(
        {
            "path": str(plan.output),
            "digest": digest,
            "role": "finetuned",
            "alpha": None,
            "warnings": list(plan.warnings),
        }
    )


def _run(plan: FinetunePlan, *, device: str, workers: int | None, threads: int | None) -> str:
    """Train with progress on stderr and return the content digest of what was written."""
    # lazy: torch costs seconds, and a mistake that needs none of it was told by now
    import torch

    from wiseft_cli.cli.finetune_report import Reporter
    from wiseft_cli.model.devices import resolve_device
    from wiseft_cli.training.finetune import Listener
    from wiseft_cli.training.finetune import finetune as run_plan

    if threads is not None:
        torch.set_num_threads(threads)
    recipe = plan.recipe
    encoded = recipe.n_images if recipe.freeze == "encoder" else 0
    with progress(recipe.n_draws + encoded, "images") as advance:
        reporter = Reporter(plan, advance)
        finetuned = run_plan(
            plan,
            device=resolve_device(device),
            workers=default_workers() if workers is None else workers,
            listener=Listener(
                on_ready=reporter.tell_readiness,
                on_encoded=reporter.count_encoded,
                on_step=reporter.count_step,
                on_epoch=reporter.tell_epoch,
            ),
        )
    return finetuned.digest

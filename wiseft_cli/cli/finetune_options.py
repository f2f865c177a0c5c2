"""The options of `wiseft finetune`: their types, names and help texts.

What is done with their values is said in `finetune.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.compute.workers import MAX_DEFAULT_WORKERS

# An option that is not given is None and leaves the key to the recipe, whose default the help
# repeats in words.
Zeroshot = Annotated[
    Path | None, typer.Argument(metavar="ZEROSHOT", help="Checkpoint to start from.")
]
Train = Annotated[
    str | None,
    typer.Option(
        "--train",
        metavar="[NAME=]SPEC",
        help="Training images: a folder with one subfolder a class (id or name), a manifest, or"
        " shards.",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write.")
]
Val = Annotated[
    list[str] | None,
    typer.Option(
        "--val",
        metavar="[NAME=]SPEC",
        help="Image set whose accuracy is shown after each epoch; it decides nothing. Repeatable.",
    ),
]
ValFraction = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Share of the training images of each class that is set aside, by the seed, to "
        "validate like a --val set.",
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(metavar="K", help="Train on K images of each class, taken by the seed."),
]
LabelsAreIndices = Annotated[
    bool,
    typer.Option(
        "--labels-are-indices",
        help="Take labels that are numbers as positions among the head's classes, from 0.",
    ),
]
MaxBad = Annotated[
    int,
    typer.Option(min=0, help="Unreadable training images to leave out."),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="wise-ft, wise-ft-16shot, linear-classifier, patching, model-soups, or a YAML file; "
        "the options below override its keys.",
        show_default="wise-ft",
    ),
]
PrintRecipe = Annotated[
    bool, typer.Option("--print-recipe", help="Print the resolved recipe as YAML and exit.")
]
Epochs = Annotated[
    int | None, typer.Option(help="Passes over the training images.", show_default="10")
]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps of the run, instead of epochs.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images of one optimizer step.", show_default="512")
]
MicroBatchSize = Annotated[
    int | None,
    typer.Option(
        help="Images of one forward pass; fewer need less memory.", show_default="the batch size"
    ),
]
Lr = Annotated[float | None, typer.Option(help="Peak learning rate of AdamW.", show_default="3e-5")]
WeightDecay = Annotated[
    float | None, typer.Option(help="Weight decay of every trained tensor.", show_default="0.1")
]
Betas = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Decay rates of AdamW's two moments.", show_default="0.9 0.999"),
]
Eps = Annotated[
    float | None,
    typer.Option(help="Term in the denominator of AdamW.", show_default="1e-8"),
]
Warmup = Annotated[
    str | None,
    typer.Option(
        metavar="STEPS|SHARE",
        help="Linear warm-up: steps, or a share of the run below 1.",
        show_default="0.1, at most 500 steps",
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="cosine|constant",
        help="Learning rate after the warm-up.",
        show_default="cosine",
    ),
]
ClipGradNorm = Annotated[
    float | None,
    typer.Option(help="Bound of the global gradient norm; 0 for none.", show_default="1"),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(help="Share of the target spread over the classes, in [0, 1).", show_default="0"),
]
Freeze = Annotated[
    str | None,
    typer.Option(
        metavar="none|encoder|head",
        help="What stays as it is. encoder: a linear classifier on features computed once; "
        "head: the image encoder alone.",
        show_default="none",
    ),
]
BatchNorm = Annotated[
    str | None,
    typer.Option(
        metavar="train|frozen",
        help="Whether BatchNorm layers follow the batches or keep their running statistics.",
        show_default="train; frozen with --freeze encoder",
    ),
]
Augment = Annotated[
    str | None,
    typer.Option(
        metavar="crop|none",
        help="Random crops of 90 to 100 % of the area, or the preprocessing of eval.",
        show_default="crop; none with --freeze encoder",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="fp32|bf16|fp16",
        help="Arithmetic of the image encoder; weights, head and loss stay float32.",
        show_default="fp32",
    ),
]
GradCheckpointing = Annotated[
    bool | None,
    typer.Option(
        "--grad-checkpointing/--no-grad-checkpointing",
        help="Compute activations again in the backward pass: less memory, more time.",
        show_default="off",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of all random numbers.", show_default="0")]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="Ask torch for deterministic algorithms on a GPU.",
        show_default="off",
    ),
]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that decode images; 0 decodes in the main one.",
        show_default=f"one a CPU, at most {MAX_DEFAULT_WORKERS}",
    ),
]
FeatureCache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder that keeps features of a frozen encoder for another run.",
        show_default="wiseft/features in $XDG_CACHE_HOME or ~/.cache",
    ),
]
NoFeatureCache = Annotated[
    bool, typer.Option("--no-feature-cache", help="Compute features anew, and keep none.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of torch.", show_default="torch's choice")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from the newest state of this run, or begin where there is none.",
    ),
]
SaveEvery = Annotated[
    str | None,
    typer.Option(
        metavar="STEPS|TIME|never",
        help="Save the state of the run each so many steps (3) or minutes (10m; also s and h).",
        show_default="each epoch and each 10 minutes, rarer where that takes over 1 % of the time",
    ),
]
KeepState = Annotated[
    bool, typer.Option("--keep-state", help="Keep the last states after the run has ended.")
]
Log = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a JSON line for each step, epoch and warning."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check the data, print the plan, the memory and the disk it would need, and exit.",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Overwrite an existing output, and remove a state."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

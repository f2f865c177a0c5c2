"""What `wiseft finetune --dry-run` shows: whether images decode, and what a run would need."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wiseft_cli.cli.console import print_json, print_message, progress, warn
from wiseft_cli.compute.disk import free_bytes
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.data.images import find_unreadable_images
from wiseft_cli.errors import DatasetError, list_some
from wiseft_cli.training.state_folder import KEPT_STATES

if TYPE_CHECKING:
    from wiseft_cli.cli.finetune_run import RunOptions
    from wiseft_cli.training.estimate import Estimate
    from wiseft_cli.training.plan import FinetunePlan

SAMPLE = 200
"""Images of each set that are decoded."""


def show_estimate(
    plan: FinetunePlan, options: RunOptions, launch: Launch, *, as_json: bool
) -> None:
    """Decode a sample of every set, and say what the run would need; write nothing.

    Raises:
        DatasetError: More of the sample cannot be read than the run may leave out.
    """
    # lazy: torch costs seconds
    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.compute.process_group import ProcessGroup
    from wiseft_cli.training.estimate import estimate
    from wiseft_cli.training.finetune import open_run, report_out_of_memory_before_steps
    from wiseft_cli.training.inputs import black_image
    from wiseft_cli.training.placement import Placement

    unreadable = _check_sample(plan)
    device = resolve_device(options.device, launch)
    processes = ProcessGroup(launch.rank, launch.world_size, device)
    with report_out_of_memory_before_steps(device):
        found = estimate(
            open_run(plan, device, processes),
            plan,
            Placement(device, 0, processes),
            example=black_image(plan.card.preprocess or {}),
        )
    if options.saving.interval.is_never:
        found = replace(found, state=0)
    free = free_bytes(plan.output.parent)
    print_message(f"memory   about {_describe_memory(found)}, for each process on {device}")
    print_message(
        f"disk     about {_mb(found.disk)} ({_describe_disk(found)}); {_mb(free)} are free"
    )
    print_message("dry run: nothing was trained, and nothing was written")
    if as_json:
        print_json(
            {
                "dry_run": True,
                "path": str(plan.output),
                "steps": plan.recipe.steps,
                "memory_bytes": found.memory,
                "disk_bytes": found.disk,
                "disk_free_bytes": free,
                "warnings": [*plan.warnings, *unreadable],
            }
        )


def _check_sample(plan: FinetunePlan) -> list[str]:
    """Return what is wrong with the training images that a run would leave out."""
    left_out: list[str] = []
    for labelled in (plan.train, *plan.val):
        images = labelled.images
        n_tried = min(SAMPLE, len(images.records))
        with progress(n_tried, f"decoding a sample of {images.name}") as advance:
            unreadable = find_unreadable_images(images, n_tried, advance)
        allowed = plan.max_bad if labelled is plan.train else 0
        if len(unreadable) > allowed:
            raise DatasetError(
                "\n  ".join(
                    [
                        f"image set {images.name!r}: {len(unreadable)} of {n_tried} images tried"
                        f" cannot be read, at most {allowed} allowed:",
                        *list_some(unreadable),
                    ]
                ),
                hint="replace or remove the files, or leave training images out with --max-bad",
            )
        for reason in unreadable:
            warn(reason)
        left_out += unreadable
        n_decoded = n_tried - len(unreadable)
        print_message(f"decoded  {n_decoded} of {len(images.records)} images of {images.name}")
    return left_out


def _describe_memory(found: Estimate) -> str:
    parts = [
        f"weights {_mb(found.weights)}",
        f"gradients {_mb(found.gradients)}",
        f"moments {_mb(found.moments)}",
    ]
    if found.features:
        parts.append(f"features {_mb(found.features)}")
    else:
        parts.append(f"activations of {found.n_images} images {_mb(found.activations)}")
    return f"{_mb(found.memory)} beside torch itself ({', '.join(parts)})"


def _describe_disk(found: Estimate) -> str:
    states = f", {KEPT_STATES + 1} states of {_mb(found.state)}" if found.state else ""
    return f"checkpoint {_mb(found.output)}{states}"


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes < 1e8 else f"{n_bytes / 1e6:,.0f} MB"

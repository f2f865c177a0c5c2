"""Run a settled plan of `wiseft finetune`, with progress on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_cli.cli.console import progress
from wiseft_cli.cli.finetune_report import Reporter
from wiseft_cli.data.workers import default_workers

if TYPE_CHECKING:
    from wiseft_cli.training.plan import FinetunePlan


def run_with_progress(
    plan: FinetunePlan, *, device: str, workers: int | None, threads: int | None
) -> str:
    """Train with progress on stderr and return the content digest of what was written."""
    # lazy: torch costs seconds, and a mistake that needs none of it was told by now
    import torch

    from wiseft_cli.model.devices import resolve_device
    from wiseft_cli.training.finetune import finetune
    from wiseft_cli.training.listener import Listener

    if threads is not None:
        torch.set_num_threads(threads)
    recipe = plan.recipe
    encoded = recipe.n_images if recipe.freeze == "encoder" else 0
    with progress(recipe.n_draws + encoded, "images") as advance:
        reporter = Reporter(plan, advance)
        finetuned = finetune(
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

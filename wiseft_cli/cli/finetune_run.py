"""Run a settled plan of `wiseft finetune`, with progress on stderr."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import typer

from wiseft_cli.cli.console import progress, talk, warn
from wiseft_cli.cli.finetune_report import Reporter
from wiseft_cli.data.workers import default_workers

if TYPE_CHECKING:
    from wiseft_cli.training.finetune import Stopped
    from wiseft_cli.training.plan import FinetunePlan
    from wiseft_cli.training.save_interval import Saving
    from wiseft_cli.training.starting import Start


def run_with_progress(
    plan: FinetunePlan,
    start: Start,
    *,
    device: str,
    workers: int | None,
    threads: int | None,
    saving: Saving,
) -> str:
    """Train with progress on stderr and return the content digest of what was written.

    Raises:
        typer.Exit: A signal stopped the run; its state is saved.
    """
    # lazy: torch costs seconds, and a mistake that needs none of it was told by now
    from wiseft_cli.model.devices import resolve_device
    from wiseft_cli.training.finetune import Stopped, finetune
    from wiseft_cli.training.listener import Listener
    from wiseft_cli.training.stopping import StopRequest

    recipe = plan.recipe
    encoded = recipe.n_images if recipe.freeze == "encoder" else 0
    stop = StopRequest()
    with progress(recipe.n_draws + encoded, "images") as advance:
        reporter = Reporter(plan, advance)
        reporter.tell_start(start)
        result = finetune(
            plan,
            device=resolve_device(device),
            workers=default_workers() if workers is None else workers,
            threads=threads,
            start=start,
            saving=saving,
            stop=stop,
            listener=Listener(
                on_ready=reporter.tell_readiness,
                on_encoded=reporter.count_encoded,
                on_step=reporter.count_step,
                on_epoch=reporter.tell_epoch,
                on_warning=warn,
            ),
        )
    if isinstance(result, Stopped):
        _tell_stop(plan, result)
        raise typer.Exit(128 + (stop.signal_number or signal.SIGTERM))
    return result.digest


def _tell_stop(plan: FinetunePlan, stopped: Stopped) -> None:
    talk(f"stopped after step {stopped.steps_done} of {plan.recipe.steps}")
    if stopped.state is None:
        talk("no state was saved: --resume would begin at the first step")
    else:
        talk(f"the state is {stopped.state}: the same command with --resume goes on from it")

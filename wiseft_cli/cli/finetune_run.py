"""Run a settled plan of `wiseft finetune`, with progress on stderr."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from wiseft_cli.cli.console import print_message, progress, warn
from wiseft_cli.cli.finetune_log import RunLog
from wiseft_cli.cli.finetune_report import Reporter
from wiseft_cli.cli.torchrun import report_on_this_rank
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.compute.workers import default_workers
from wiseft_cli.errors import DatasetError, LostProcessError, ModelError, OutputError

if TYPE_CHECKING:
    import torch

    from wiseft_cli.training.finetune import Stopped
    from wiseft_cli.training.plan import FinetunePlan
    from wiseft_cli.training.save_interval import Saving
    from wiseft_cli.training.starting import Start


Told = TypeVar("Told")


@dataclass(frozen=True)
class RunOptions:
    """The options that say how to run.

    Attributes:
        workers: Decoding processes; wiseft's choice where None.
        threads: Of torch; its own choice where None.
        feature_cache: Where features are kept; nowhere where None.
        log: Where steps are logged; nowhere where None.
        resume: Whether the log goes on too.
        force: Whether an existing log may be replaced.
    """

    device: str
    workers: int | None
    threads: int | None
    saving: Saving
    feature_cache: Path | None
    log: Path | None
    resume: bool
    force: bool


def default_feature_cache() -> Path:
    """Return the folder that keeps features where the person names none."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "wiseft" / "features"


def run_with_progress(
    plan: FinetunePlan,
    start: Start,
    options: RunOptions,
    launch: Launch,
    *,
    on_warning: Callable[[str], None],
) -> str:
    """Train with progress on stderr and return the content digest of what was written.

    Args:
        on_warning: Called with each warning beside those of the plan, which is printed too.
    Raises:
        typer.Exit: A signal stopped the run; its state is saved.
    """
    # lazy: torch costs seconds, and a mistake that needs none of it was told by now
    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.compute.process_group import join_process_group
    from wiseft_cli.training.finetune import Stopped, finetune
    from wiseft_cli.training.listener import Listener
    from wiseft_cli.training.stopping import StopRequest

    recipe = plan.recipe
    encoded = recipe.n_images if recipe.freeze == "encoder" else 0
    stop = StopRequest(notes_all=launch.world_size > 1)
    device = resolve_device(options.device, launch)
    _tell_idle_devices(options.device, device, launch)
    workers = options.workers
    if workers is None:
        workers = default_workers(launch.local_world_size)
    with (
        report_on_this_rank(DatasetError, OutputError, LostProcessError, ModelError),
        join_process_group(launch, device) as processes,
        progress(recipe.n_draws + encoded, "images") as advance,
    ):
        log = RunLog(
            options.log if launch.is_first else None, appends=options.resume, force=options.force
        )
        log.log_plan(plan)
        tell_warning = follow(warn, on_warning, log.add_warning)
        reporter = Reporter(plan, advance, on_warning=tell_warning)
        reporter.tell_start(start)
        result = finetune(
            plan,
            device=device,
            workers=workers,
            threads=options.threads,
            start=start,
            saving=options.saving,
            stop=stop,
            listener=Listener(
                on_ready=reporter.tell_readiness,
                on_encoded=reporter.count_encoded,
                on_step=follow(reporter.count_step, log.count_step),
                on_epoch=follow(reporter.tell_epoch, partial(log.tell_epoch, plan)),
                on_note=print_message,
                on_warning=tell_warning,
            ),
            processes=processes,
            feature_cache=options.feature_cache,
        )
        if isinstance(result, Stopped):
            log.end(path=None, steps_done=result.steps_done)
        else:
            log.end(path=str(result.path), digest=result.digest)
    if isinstance(result, Stopped):
        _tell_stop(plan, result)
        raise typer.Exit(128 + (stop.signal_number or signal.SIGTERM))
    return result.digest


def follow(*followers: Callable[[Told], None]) -> Callable[[Told], None]:
    """Return a function that tells each of several what it is told."""

    def tell(what: Told) -> None:
        for follower in followers:
            follower(what)

    return tell


def _tell_idle_devices(wanted: str, device: torch.device, launch: Launch) -> None:
    """Say how all GPUs of a machine would be used where a run takes one of several.

    Not where the person chose one by its number: that is an answer, and torchrun would refuse it.
    """
    # lazy: torch costs seconds
    import torch

    n_devices = torch.cuda.device_count() if device.type == "cuda" else 0
    if launch.world_size == 1 and n_devices > 1 and ":" not in wanted:
        words = shlex.join(sys.argv[1:])
        print_message(
            f"note: this machine has {n_devices} GPUs and this run takes one; all of them:"
            f" torchrun --nproc-per-node {n_devices} -m wiseft_cli {words}"
        )


def _tell_stop(plan: FinetunePlan, stopped: Stopped) -> None:
    print_message(f"stopped after step {stopped.steps_done} of {plan.recipe.steps}")
    if stopped.state is None:
        print_message("no state was saved: --resume would begin at the first step")
    else:
        print_message(
            f"the state is {stopped.state}: the same command with --resume goes on from it"
        )

"""Fine-tune a zero-shot classifier on labelled images, from one checkpoint file to another.

Source: Wortsman et al. 2021, arXiv 2109.01903, sections 3 and D.2. `plan.py` checks everything
that needs no weights, and `loop.py` is the training loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wiseft_cli.checkpoint.atomic import remove_abandoned_versions
from wiseft_cli.checkpoint.card import card_document
from wiseft_cli.checkpoint.digest import sha256_of_json
from wiseft_cli.compute.devices import resolve_device
from wiseft_cli.compute.memory import report_out_of_memory
from wiseft_cli.compute.precision import deterministic_algorithms
from wiseft_cli.compute.process_group import (
    ProcessGroup,
    join_process_group,
    report_lost_processes,
)
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.compute.workers import default_workers
from wiseft_cli.errors import CommonDatasetError, LostProcessError, OutputError, RecipeError
from wiseft_cli.training.batches import largest_pass
from wiseft_cli.training.callbacks import Callbacks, StartReport
from wiseft_cli.training.loop import train
from wiseft_cli.training.outputs import describe_outputs, write_output
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.resume import clear_finished_run
from wiseft_cli.training.saving import NEVER, SaveInterval, StateSaver
from wiseft_cli.training.state import Run, open_run, resume_run
from wiseft_cli.training.state_dir import (
    remove_newer_states,
    remove_states,
    require_space_for_run,
)
from wiseft_cli.training.stopping import StopRequest


@dataclass(frozen=True)
class Finetuned:
    """A finished run.

    Attributes:
        path: The checkpoint.
        digest: Its content digest.
        warnings: Warnings of the run, without those of its plan.
    """

    path: Path
    digest: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped before its last step.

    Attributes:
        steps_done: Optimizer steps taken.
        state: The state to resume from; None if none was saved.
    """

    steps_done: int
    state: Path | None


def finetune(
    plan: FinetunePlan,
    *,
    device: torch.device | None = None,
    workers: int | None = None,
    threads: int | None = None,
    save_interval: SaveInterval = NEVER,
    keep_states: bool = False,
    feature_cache: Path | None = None,
    callbacks: Callbacks | None = None,
    stop: StopRequest | None = None,
    launch: Launch | None = None,
) -> Finetuned | Stopped:
    """Run a plan and write the fine-tuned checkpoint.

    If several processes share the run, each of them calls this; process 0 reads states and
    writes, and all return the same.

    On the CPU the file's bytes depend on the plan, the version and thread count of torch, and the
    kind of CPU. They do not depend on `workers`, validation sets, callbacks, or interruptions
    after which the run resumed from a state. torch's global random state is left as it was.

    Args:
        plan: From `make_plan`.
        device: Device of the model; CUDA if available, otherwise the CPU, if None.
        workers: Number of decoding processes; 0 decodes in this process, None chooses by the
            number of CPUs.
        threads: CPU threads of torch; those of the state, or torch's default, if None.
        save_interval: When states are saved.
        keep_states: Whether the last states stay after the run has finished.
        feature_cache: Folder of cached features of a frozen encoder; None for no cache.
        callbacks: Report the progress.
        stop: Receives Ctrl-C and SIGTERM while steps are taken; None leaves their handlers alone.
        launch: Rank of this process; a single process if None.
    Raises:
        CheckpointError: The parent or the state does not match its card.
        DatasetError: An image cannot be read, or the processes have different inputs.
        LostProcessError: Another process of the run died.
        RecipeError: Training diverged, or the recipe does not fit the model.
        ModelError: The device is out of memory, or is not on this machine.
        OutputError: The checkpoint cannot be written.
    """
    launch = launch or Launch()
    device = device or resolve_device("auto", launch)
    workers = default_workers(launch.local_world_size) if workers is None else workers
    warnings: list[str] = []
    callbacks = _collect_warnings(callbacks or Callbacks(), warnings)
    with join_process_group(launch, device) as processes:
        _require_same_plan(plan, processes)
        if digest := processes.broadcast(plan.start.digest):
            if processes.is_first:
                clear_finished_run(plan.output, plan.card, keep_states=keep_states)
            return Finetuned(plan.output, digest)
        run, saver = _open(plan, processes, threads, save_interval, callbacks)
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            deterministic_algorithms(plan.recipe.deterministic, device),
        ):
            _resume(run, plan, processes)
            with (
                _name_last_state(saver),
                report_lost_processes(),
                _report_out_of_memory_in_step(plan, processes),
            ):
                is_done = train(
                    run,
                    plan,
                    processes=processes,
                    workers=workers,
                    feature_cache=feature_cache,
                    callbacks=callbacks,
                    saver=saver,
                    stop=stop,
                )
        if not is_done:
            newest = processes.broadcast(str(saver.newest or "") if saver else None)
            return Stopped(run.steps_done, Path(newest) if newest else None)
        digest = _write_output(run, plan, saver, keep_states=keep_states) if saver else None
        for text in describe_outputs(run, plan) if saver else ():
            callbacks.on_note(text)
        return Finetuned(plan.output, processes.broadcast(digest), tuple(warnings))


def _collect_warnings(callbacks: Callbacks, warnings: list[str]) -> Callbacks:
    def warn(text: str) -> None:
        warnings.append(text)
        callbacks.on_warning(text)

    return replace(callbacks, on_warning=warn)


def _require_same_plan(plan: FinetunePlan, processes: ProcessGroup) -> None:
    """Reject a run whose processes have different checkpoints, images or recipes.

    Each process opens its own files, which may differ between machines under the same names.

    Raises:
        DatasetError: They differ; raised in every process.
    """
    if processes.is_single:
        return
    own = sha256_of_json(card_document(plan.card))
    first, *others = processes.gather([own])
    different = [rank for rank, digest in enumerate(others, 1) if digest != first]
    if different:
        raise CommonDatasetError(
            f"process {different[0]} of {processes.world_size} has another checkpoint, recipe or"
            f" training set than process 0 under the same names ({len(different)} differ)",
            hint="put the same files on every machine, or on a disk that all of them share",
        )


def _open(
    plan: FinetunePlan,
    processes: ProcessGroup,
    threads: int | None,
    interval: SaveInterval,
    callbacks: Callbacks,
) -> tuple[Run, StateSaver | None]:
    """Load the model, check the disk, and report the start of the run."""
    state = plan.start.state
    threads = threads or processes.broadcast(state.record.threads if state else None)
    if threads:
        torch.set_num_threads(threads)
    with report_out_of_memory_before_steps(processes.device):
        run = open_run(plan, processes)
    saver = None
    if processes.is_first:
        state_bytes = 0 if interval.is_never else run.state_bytes
        n_outputs = 1 + len(plan.other_outputs)
        require_space_for_run(
            plan.output, state_bytes=state_bytes, output_bytes=n_outputs * run.weight_bytes
        )
        saver = StateSaver(
            plan.output,
            plan.card,
            interval,
            state_bytes=state_bytes,
            world_size=processes.world_size,
        )
    for warning in plan.start.warnings:
        callbacks.on_warning(warning)
    if plan.recipe.precision == "fp16" and run.device.type == "cpu":
        callbacks.on_warning("fp16 is made for GPUs; on a CPU bf16 or fp32 is faster")
    n_parameters = sum(parameter.numel() for parameter in run.trainable.values())
    callbacks.on_start(StartReport(len(run.trainable), n_parameters, run.device))
    return run, saver


def _resume(run: Run, plan: FinetunePlan, processes: ProcessGroup) -> None:
    """Bring a run to its start, and remove other files that an earlier run left."""
    if processes.is_first:
        remove_abandoned_versions(plan.output)
    with report_out_of_memory_before_steps(processes.device):
        resume_run(run, plan.start.state, processes)
    if plan.start.state is not None:
        remove_newer_states(plan.output, plan.start.state)
    elif processes.is_first:
        remove_states(plan.output)


def report_out_of_memory_before_steps(device: torch.device) -> AbstractContextManager[None]:
    """Report that a model does not fit into the memory of a device."""
    hint = "end other programs that use it, or choose another --device"
    return report_out_of_memory(f"the model on {device}", hint=hint)


def _report_out_of_memory_in_step(
    plan: FinetunePlan, processes: ProcessGroup
) -> AbstractContextManager[None]:
    """Report that a step does not fit into memory, with a micro-batch size to try."""
    n_images = largest_pass(plan.recipe, processes.world_size)
    smaller = f"try --micro-batch-size {n_images // 2}, which makes the same update; "
    return report_out_of_memory(
        f"a forward pass of {n_images} images on {processes.device}",
        hint=(smaller if n_images > 1 else "")
        + "--grad-checkpointing and --precision bf16 need less too",
    )


@contextmanager
def _name_last_state(saver: StateSaver | None) -> Iterator[None]:
    """Name the newest state in the hint of an error that ends the run."""
    try:
        yield
    except (OutputError, RecipeError, LostProcessError) as error:
        if saver and saver.newest:
            state = f"the last good state is {saver.newest}"
            error.hint = f"{error.hint}; {state}" if error.hint else state
        raise


def _write_output(run: Run, plan: FinetunePlan, saver: StateSaver, *, keep_states: bool) -> str:
    """Write the checkpoint, remove the states, and return the content digest."""
    with _name_last_state(saver):
        digest = write_output(run, plan)
    if not keep_states:
        remove_states(plan.output)
    return digest

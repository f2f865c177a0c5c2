"""Fine-tune a zero-shot classifier on labelled images, from one checkpoint file to another.

Source: Wortsman et al. 2021, arXiv 2109.01903, sections 3 and D.2. Checks that need no weights
are `plan.py`, the loop is `loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from wiseft_cli.checkpoint.atomic import remove_abandoned_versions
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.compute.memory import report_out_of_memory
from wiseft_cli.compute.precision import build_scaler, deterministic_algorithms
from wiseft_cli.compute.process_group import (
    SINGLE_PROCESS,
    ProcessGroup,
    report_lost_processes,
)
from wiseft_cli.errors import CheckpointError, LostProcessError, OutputError, RecipeError
from wiseft_cli.model.classifier import load_classifier, state_arrays
from wiseft_cli.training.agreement import refuse_other_plans, start_alike
from wiseft_cli.training.batches import largest_pass
from wiseft_cli.training.finetuned_card import finetuned_card
from wiseft_cli.training.listener import Listener, Readiness
from wiseft_cli.training.loop import train
from wiseft_cli.training.modes import (
    enable_grad_checkpointing,
    refuse_single_image_batch_norm,
    select_trained,
)
from wiseft_cli.training.optimization import build_optimizer
from wiseft_cli.training.placement import Placement
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.save_interval import Saving
from wiseft_cli.training.saver import StateSaver
from wiseft_cli.training.starting import Start, find_start
from wiseft_cli.training.state import Run, restore_state, state_bytes
from wiseft_cli.training.state_folder import (
    FoundState,
    check_room,
    remove_newer_states,
    remove_states,
)
from wiseft_cli.training.stopping import StopRequest


@dataclass(frozen=True)
class Finetuned:
    """A finished run: the checkpoint's path and content digest."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Stopped:
    """A run that was asked to end before its last step.

    Attributes:
        steps_done: Optimizer steps behind it.
        state: The state to go on from; None where none was saved.
    """

    steps_done: int
    state: Path | None


def finetune(
    plan: FinetunePlan,
    *,
    device: torch.device,
    workers: int,
    threads: int | None = None,
    start: Start | None = None,
    saving: Saving | None = None,
    stop: StopRequest | None = None,
    listener: Listener | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
    feature_cache: Path | None = None,
) -> Finetuned | Stopped:
    """Run a plan and write the fine-tuned checkpoint.

    Where several processes share the run each of them calls this; the first one reads states and
    writes, and all return the same.

    On the CPU the file's bytes depend on the plan, torch's version and thread count, and the
    kind of CPU; not on `workers`, validation sets, the listener, or whether the run was broken
    off and went on from a state. torch's global random state is left as it was.

    Args:
        plan: What `make_plan` settled.
        device: Where the model computes.
        workers: Processes that decode images; 0 decodes in this one.
        threads: CPU threads of torch; those of the state, or torch's choice, where None.
        start: From `find_start`; the first step where None. The first process's counts.
        saving: When states are saved; never where None.
        stop: Notes Ctrl-C and SIGTERM while steps are taken; where None they act as they do.
        listener: Whom to tell how it goes.
        processes: Those that share each step.
        feature_cache: Folder for the features of a frozen encoder; none are kept where None.
    Raises:
        CheckpointError: The parent is not the classifier its card describes.
        DatasetError: An image cannot be read, or the processes have different images.
        LostProcessError: Another process of the run died.
        RecipeError: Training diverged, or BatchNorm would see a single image.
        ModelError: The device is out of memory.
        OutputError: The checkpoint cannot be written.
    """
    refuse_other_plans(plan, processes)
    if start is None:
        start = find_start(plan, resume=False, threads=threads) if processes.is_first else Start()
    if digest := processes.broadcast(start.digest):
        return Finetuned(plan.output, digest)
    saving, listener = saving or Saving(), listener or Listener()
    threads = threads or processes.broadcast(start.state.record.threads if start.state else None)
    if threads:
        torch.set_num_threads(threads)
    with report_out_of_memory_before_steps(device):
        run = open_run(plan, device, processes)
    if processes.is_first:
        _check_room(plan, run, saving)
    n_parameters = sum(parameter.numel() for parameter in run.trained.values())
    listener.on_ready(Readiness(len(run.trained), n_parameters, device))
    devices = [device] if device.type == "cuda" else []
    saver = None
    if processes.is_first:
        world_size, on_warning = processes.world_size, listener.on_warning
        saver = StateSaver(plan, saving, run, world_size=world_size, on_warning=on_warning)
    with (
        torch.random.fork_rng(devices=devices),
        deterministic_algorithms(plan.recipe.deterministic, device),
    ):
        with report_out_of_memory_before_steps(device):
            _begin(run, plan, start, processes)
        place = Placement(device, workers, processes, feature_cache)
        n_images = largest_pass(plan.recipe, processes.world_size)
        with (
            _naming_state(saver),
            report_lost_processes(),
            report_out_of_memory_in_step(device, n_images),
        ):
            is_done = train(run, plan, place, listener=listener, saver=saver, stop=stop)
        if not is_done:
            newest = processes.broadcast(str(saver.newest or "") if saver else None)
            return Stopped(run.steps_done, Path(newest) if newest else None)
    digest = _write_output(plan, run, saver) if saver else None
    return Finetuned(plan.output, processes.broadcast(digest))


def report_out_of_memory_before_steps(device: torch.device) -> AbstractContextManager[None]:
    """Report that a model does not fit into the memory of a device."""
    hint = "end other programs that use it, or choose another --device"
    return report_out_of_memory(f"the model on {device}", hint=hint)


def report_out_of_memory_in_step(
    device: torch.device, n_images: int
) -> AbstractContextManager[None]:
    """Report that a step does not fit into memory, with a micro-batch size to try.

    Args:
        n_images: Images per forward pass.
    """
    smaller = f"try --micro-batch-size {n_images // 2}, which makes the same update; "
    return report_out_of_memory(
        f"a forward pass of {n_images} images on {device}",
        hint=(smaller if n_images > 1 else "")
        + "--grad-checkpointing and --precision bf16 need less too",
    )


def _write_output(plan: FinetunePlan, run: Run, saver: StateSaver) -> str:
    """Write the checkpoint, clear the states away, and return the content digest."""
    with _naming_state(saver):
        digest = write_checkpoint(
            plan.output,
            state_arrays(run.classifier),
            finetuned_card(plan),
            force=plan.force,
            inputs=[plan.parent],
        )
    saver.finish()
    return digest


@contextmanager
def _naming_state(saver: StateSaver | None) -> Iterator[None]:
    """Say in the hint of a run that failed where its last good state is."""
    try:
        yield
    except (OutputError, RecipeError, LostProcessError) as error:
        if saver and saver.newest:
            state = f"the last good state is {saver.newest}"
            error.hint = f"{error.hint}; {state}" if error.hint else state
        raise


def open_run(
    plan: FinetunePlan, device: torch.device, processes: ProcessGroup = SINGLE_PROCESS
) -> Run:
    """Return the run at its first step.

    Raises:
        CheckpointError: The parent is not the classifier its card describes.
        RecipeError: The recipe does not fit the model.
    """
    recipe = plan.recipe
    classifier, card = load_classifier(plan.parent, device=device)
    if card != plan.card:
        raise CheckpointError(f"{plan.parent}: was changed while it was read")
    if recipe.grad_checkpointing:
        enable_grad_checkpointing(classifier)
    refuse_single_image_batch_norm(classifier, recipe, world_size=processes.world_size)
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        # Into torch's own memory: the last bits of a sum depend on where in memory it begins.
        tensor.data = tensor.data.clone()
    trained = select_trained(classifier, recipe.freeze)
    return Run(classifier, build_optimizer(trained, recipe), build_scaler(recipe.precision, device))


def _check_room(plan: FinetunePlan, run: Run, saving: Saving) -> None:
    tensors = run.classifier.state_dict().values()
    check_room(
        plan.output,
        state_bytes=0 if saving.interval.is_never else state_bytes(run),
        output_bytes=sum(tensor.nbytes for tensor in tensors),
    )


def _begin(run: Run, plan: FinetunePlan, start: Start, processes: ProcessGroup) -> None:
    """Bring a fresh run to where it begins, in all processes; clear away what is in the way."""
    state: FoundState | None = start.state
    if processes.is_first:
        remove_abandoned_versions(plan.output)
    if state is not None:
        restore_state(state.path, run)
        remove_newer_states(state)
    elif processes.is_first:
        remove_states(plan.output)
    record = start_alike(run, state.record if state else None, processes)
    if record is not None:
        run.steps_done = record.steps_done
        run.loss_sum, run.n_images = record.loss_sum, record.n_images
        run.scaler.load_state_dict(dict(record.scaler))

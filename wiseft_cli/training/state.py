"""A run in memory, and its state as a file: everything that the next step depends on.

Weights and buffers, AdamW's moments, the random generators, and a record of the progress. A
frozen part never changes and is read from the parent; the learning rate, the order of the images
and their augmentation are functions of the step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.format import TensorSpec, safetensors_dtype
from wiseft_cli.checkpoint.reader import RECORD_TENSOR, CheckpointReader, open_checkpoint
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.compute.precision import build_scaler
from wiseft_cli.compute.process_group import ProcessGroup
from wiseft_cli.errors import CheckpointError
from wiseft_cli.model.classifier import ImageClassifier, load_classifier
from wiseft_cli.training.kept import EMA
from wiseft_cli.training.methods import USES_ANCHOR, layer_lr_scales
from wiseft_cli.training.modes import (
    enable_drop_path,
    enable_grad_checkpointing,
    freeze_parameters,
    reject_single_image_batch_norm,
)
from wiseft_cli.training.optimizer import MOMENTS, build_optimizer
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.resume import torch_version
from wiseft_cli.training.state_dir import (
    SavedState,
    StateRecord,
    encode_record,
)

Tensors: TypeAlias = dict[str, torch.Tensor]
"""Tensors by the name of a weight."""


@dataclass
class Run:
    """A run at some step.

    Attributes:
        classifier: On the device; its frozen parameters need no gradient.
        optimizer: Over the trainable parameters.
        scaler: Loss scaler; it does nothing unless the precision is fp16.
        steps_done: Optimizer steps taken.
        loss_sum: Sum of the loss over the images of the epoch so far.
        n_images: Number of these images.
        unreadable: Positions of the training images that could not be read so far.
        selection: Epoch and accuracy of the best weights so far; empty if there are none.
        copies: Copies of the weights by purpose, such as `best`, in the process that writes.
        n_copies: Number of copies that the run makes.
        anchor: The classifier as it was before the first step, for methods that compare with it.
        trainable: The trainable parameters by name.
    """

    classifier: ImageClassifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    steps_done: int = 0
    loss_sum: float = 0.0
    n_images: int = 0
    unreadable: tuple[int, ...] = ()
    selection: Mapping[str, Any] = field(default_factory=dict)
    copies: dict[str, Tensors] = field(default_factory=dict)
    n_copies: int = 0
    anchor: ImageClassifier | None = None
    trainable: dict[str, torch.nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.trainable = {
            name: parameter
            for name, parameter in self.classifier.named_parameters()
            if parameter.requires_grad
        }

    @property
    def device(self) -> torch.device:
        """Device of the classifier."""
        return next(self.classifier.parameters()).device

    @property
    def weight_bytes(self) -> int:
        """Size of the classifier's weights and buffers, and so of the output."""
        return sum(tensor.nbytes for tensor in self.classifier.state_dict().values())

    @property
    def state_bytes(self) -> int:
        """Approximate size of a state on disk."""
        moments = 2 * sum(parameter.nbytes for parameter in self.trainable.values())
        weights = sum(tensor.nbytes for tensor in self.weights().values())
        return weights * (1 + self.n_copies) + moments + (1 << 20)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the tensors that training changes, by name: trainable parameters and buffers."""
        frozen = {name for name, _ in self.classifier.named_parameters()} - self.trainable.keys()
        state = self.classifier.state_dict()
        return {name: tensor for name, tensor in state.items() if name not in frozen}

    def copy_weights(self, purpose: str) -> None:
        """Copy the weights, in place of an earlier copy; the average stays on the device."""
        device = self.device if purpose == EMA else torch.device("cpu")
        self.copies[purpose] = {
            name: tensor.detach().to(device, copy=True) for name, tensor in self.weights().items()
        }

    def moments(self) -> dict[str, torch.Tensor]:
        """Return the optimizer's tensors as `<moment>.<parameter>`; none before an update."""
        return {
            f"{moment}.{name}": self.optimizer.state[parameter][moment]
            for name, parameter in self.trainable.items()
            if parameter in self.optimizer.state
            for moment in self._moment_names
        }

    @property
    def _moment_names(self) -> tuple[str, ...]:
        return MOMENTS["adamw" if isinstance(self.optimizer, torch.optim.AdamW) else "lion"]

    def make_copies(self, purposes: Iterable[str]) -> None:
        """Create copies, to be overwritten."""
        for purpose in purposes:
            self.copy_weights(purpose)

    def make_moments(self, names: set[str]) -> None:
        """Create moments of zeros, to be overwritten, for the parameters that are named."""
        is_fused = self.optimizer.defaults.get("fused", False)
        for name, parameter in self.trainable.items():
            if f"exp_avg.{name}" in names:
                self.optimizer.state[parameter] = {
                    # AdamW counts steps on the CPU, unless the update is fused.
                    moment: torch.zeros((), device=parameter.device if is_fused else "cpu")
                    if moment == "step"
                    else torch.zeros_like(parameter, requires_grad=False)
                    for moment in self._moment_names
                }


def open_run(plan: FinetunePlan, processes: ProcessGroup) -> Run:
    """Load the parent and return the run at its first step.

    Raises:
        CheckpointError: The parent does not match its card, or was changed meanwhile.
        RecipeError: The recipe does not fit the model.
    """
    recipe, device = plan.recipe, processes.device
    classifier, card = load_classifier(plan.parent, device=device)
    if card != plan.parent_card:
        raise CheckpointError(f"{plan.parent}: was changed while it was read")
    if recipe.grad_checkpointing:
        enable_grad_checkpointing(classifier)
    reject_single_image_batch_norm(classifier, recipe, world_size=processes.world_size)
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        # Into torch's own memory: the last bits of a sum depend on the alignment of the data.
        tensor.data = tensor.data.clone()
    trainable = freeze_parameters(classifier, recipe.freeze)
    anchor = copy.deepcopy(classifier) if set(recipe.methods) & set(USES_ANCHOR) else None
    if recipe.drop_path:
        enable_drop_path(classifier, recipe.drop_path)
    scales = None
    if recipe.layer_decay != 1:
        names = [name for name, at in classifier.named_parameters() if at.requires_grad]
        scales = layer_lr_scales(names, recipe.layer_decay)
    optimizer = build_optimizer(trainable, recipe, lr_scales=scales)
    scaler = build_scaler(recipe.precision, device)
    n_copies = (plan.selection_set is not None) + bool(recipe.ema)
    return Run(classifier, optimizer, scaler, n_copies=n_copies, anchor=anchor)


def resume_run(run: Run, state: SavedState | None, processes: ProcessGroup) -> None:
    """Bring a fresh run to a state, in all processes.

    Args:
        run: From `open_run`.
        state: The state of process 0; None for the first step, and in the other processes.
        processes: The processes of the run.
    Raises:
        CheckpointError: The state does not hold the run's tensors.
    """
    if state is not None:
        _restore_tensors(state.path, run)
    document = asdict(state.record) if state else None
    if not processes.is_single:
        document = processes.broadcast(document)
        names = processes.broadcast(sorted(run.moments()))
        if not processes.is_first:
            run.make_moments(set(names))
        processes.broadcast_tensors(run.weights().values())
        processes.broadcast_tensors(run.moments().values())
    if document is not None:
        record = StateRecord(**document)
        run.steps_done = record.steps_done
        run.loss_sum, run.n_images = record.loss_sum, record.n_images
        run.unreadable, run.selection = tuple(record.unreadable), record.selection
        run.scaler.load_state_dict(dict(record.scaler))


def write_state(path: Path, run: Run, card: Card, *, world_size: int) -> None:
    """Write the state of a run, completely or not at all.

    Raises:
        OutputError: The disk is full or failing.
    """
    record = StateRecord(
        steps_done=run.steps_done,
        loss_sum=run.loss_sum,
        n_images=run.n_images,
        scaler=run.scaler.state_dict(),
        threads=torch.get_num_threads(),
        world_size=world_size,
        torch_version=torch_version(),
        unreadable=run.unreadable,
        selection=run.selection,
    )
    tensors = dict(_named_tensors(run))
    tensors[RECORD_TENSOR] = torch.from_numpy(encode_record(record).copy())
    specs = [
        TensorSpec(name, _dtype_name(tensor), tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    with CheckpointWriter(path, specs, card, force=True) as writer:
        for name, tensor in tensors.items():
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            if data.nbytes:
                writer.append(name, data)
        writer.commit()


def _restore_tensors(path: Path, run: Run) -> None:
    with open_checkpoint(path) as reader:
        moments = (name for name in reader.tensors if name.startswith("adamw."))
        run.make_moments({name.removeprefix("adamw.") for name in moments})
        copied = {name.split(".")[1] for name in reader.tensors if name.startswith("copy.")}
        run.make_copies(sorted(copied))
        wanted = dict(_named_tensors(run))
        # A run may continue on another kind of device, which has other generators.
        different = (wanted.keys() ^ reader.tensors.keys()) - {RECORD_TENSOR, "random.cuda"}
        if different:
            raise CheckpointError(
                f"{path}: does not hold the tensors of this run",
                faults=sorted(different),
                hint="start again with --force in place of --resume",
            )
        with torch.no_grad():
            for name, tensor in wanted.items():
                if name not in ("random.cpu", "random.cuda"):
                    tensor.copy_(_read(reader, name))
        torch.set_rng_state(_read(reader, "random.cpu"))
        if "random.cuda" in wanted and "random.cuda" in reader.tensors:
            torch.cuda.set_rng_state(_read(reader, "random.cuda"), run.device)


def _named_tensors(run: Run) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in run.weights().items():
        yield f"weights.{name}", tensor
    for name, tensor in run.moments().items():
        yield f"adamw.{name}", tensor
    for purpose, tensors in run.copies.items():
        for name, tensor in tensors.items():
            yield f"copy.{purpose}.{name}", tensor
    yield "random.cpu", torch.get_rng_state()
    if run.device.type == "cuda":
        yield "random.cuda", torch.cuda.get_rng_state(run.device)


def _dtype_name(tensor: torch.Tensor) -> str:
    return safetensors_dtype(np.dtype(str(tensor.dtype).removeprefix("torch.")))


def _read(reader: CheckpointReader, name: str) -> torch.Tensor:
    return torch.from_numpy(reader.read_array(name))

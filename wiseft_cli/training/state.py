"""The state of a run as tensors: everything that its next step depends on.

Weights and buffers, AdamW's moments, the random generators, and a record of how far it is. What
never changes stays out: a frozen part is in the parent. The learning rate, the order of the
images and their augmentation are functions of the step. It does not know where states lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.format import TensorSpec, safetensors_dtype
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.errors import CheckpointError, list_some
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.training.state_record import RECORD_TENSOR, StateRecord, encode_record

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Run:
    """A run on its way.

    Attributes:
        classifier: On the device; its frozen parameters need no gradient.
        optimizer: Over the others.
        scaler: Of the loss; does nothing but for fp16.
        steps_done: Optimizer steps behind it.
        loss_sum: Sum of the loss over the images of the epoch so far.
        n_images: How many images that is.
    """

    classifier: ImageClassifier
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    steps_done: int = 0
    loss_sum: float = 0.0
    n_images: int = 0
    trained: dict[str, torch.nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.trained = {
            name: parameter
            for name, parameter in self.classifier.named_parameters()
            if parameter.requires_grad
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the tensors that training changes, by name: trained parameters, and buffers."""
        frozen = {name for name, _ in self.classifier.named_parameters()} - self.trained.keys()
        state = self.classifier.state_dict()
        return {name: tensor for name, tensor in state.items() if name not in frozen}

    def moments(self) -> dict[str, torch.Tensor]:
        """Return AdamW's tensors as `<moment>.<parameter>`; none before the first update."""
        return {
            f"{moment}.{name}": self.optimizer.state[parameter][moment]
            for name, parameter in self.trained.items()
            if parameter in self.optimizer.state
            for moment in _MOMENTS
        }

    def make_moments(self, names: set[str]) -> dict[str, torch.Tensor]:
        """Give AdamW zeros for the moments of these names, to be filled, and return them."""
        is_fused = self.optimizer.defaults["fused"]
        for name, parameter in self.trained.items():
            if f"step.{name}" in names:
                self.optimizer.state[parameter] = {
                    # AdamW counts on the CPU, but for its fused update.
                    "step": torch.zeros((), device=parameter.device if is_fused else "cpu"),
                    "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
                }
        return self.moments()


def state_bytes(run: Run) -> int:
    """Return about how large a state of a run is on disk."""
    moments = 2 * sum(parameter.nbytes for parameter in run.trained.values())
    return sum(tensor.nbytes for tensor in run.weights().values()) + moments + (1 << 20)


def write_state(path: Path, run: Run, card: Card, record: StateRecord) -> None:
    """Write the state of a run, whole or not at all.

    Raises:
        OutputError: The disk is full or failing.
    """
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


def restore_state(path: Path, run: Run) -> None:
    """Bring a fresh run to where a state file is, but for what its record says.

    Raises:
        CheckpointError: The file holds other tensors than the run has.
    """
    with open_checkpoint(path) as reader:
        moments = {
            name.removeprefix("adamw.") for name in reader.tensors if name.startswith("adamw.")
        }
        run.make_moments(moments)
        wanted = dict(_named_tensors(run))
        _refuse_other_tensors(reader, wanted)
        with torch.no_grad():
            for name, tensor in wanted.items():
                if name not in ("random.cpu", "random.cuda", RECORD_TENSOR):
                    tensor.copy_(_read(reader, name))
        torch.set_rng_state(_read(reader, "random.cpu"))
        if "random.cuda" in wanted and "random.cuda" in reader.tensors:
            torch.cuda.set_rng_state(_read(reader, "random.cuda"), _device(run))


def _named_tensors(run: Run) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in run.weights().items():
        yield f"weights.{name}", tensor
    for name, tensor in run.moments().items():
        yield f"adamw.{name}", tensor
    yield "random.cpu", torch.get_rng_state()
    if _device(run).type == "cuda":
        yield "random.cuda", torch.cuda.get_rng_state(_device(run))


def _device(run: Run) -> torch.device:
    return next(run.classifier.parameters()).device


def _dtype_name(tensor: torch.Tensor) -> str:
    return safetensors_dtype(np.dtype(str(tensor.dtype).removeprefix("torch.")))


def _read(reader: CheckpointReader, name: str) -> torch.Tensor:
    return torch.from_numpy(reader.read_array(name))


def _refuse_other_tensors(reader: CheckpointReader, wanted: dict[str, torch.Tensor]) -> None:
    problems = []
    for name in sorted(wanted.keys() | reader.tensors.keys()):
        if name in (RECORD_TENSOR, "random.cuda"):  # the random numbers of another device
            continue
        if name not in reader.tensors:
            problems.append(f"{name}: missing")
        elif name not in wanted:
            problems.append(f"{name}: unknown to the run")
        elif reader.tensors[name].shape != tuple(wanted[name].shape):
            found = reader.tensors[name].shape
            problems.append(f"{name}: shape {found}, expected {tuple(wanted[name].shape)}")
    if problems:
        raise CheckpointError(
            "\n  ".join([f"{reader.path}: is not a state of this run", *list_some(problems)]),
            hint="begin anew with --force in place of --resume",
        )

"""One run on several processes: torch's process group and DDP, and what they agree on.

Each process computes the gradient of its share of a batch; DDP averages them. It does not decide
which images a process gets (`batches.py`) and does not start processes (torchrun does).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from wiseft_cli.errors import LostProcessError, ModelError, UsageError
from wiseft_cli.evaluation.accuracy import evaluation_mode
from wiseft_cli.training.launch import Launch

Logits = Callable[[torch.Tensor], torch.Tensor]
"""A forward pass, from inputs (B, ...) to logits (B, C)."""

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, who wait while process 0 writes."""


@dataclass(frozen=True)
class Processes:
    """The processes of one run, seen from one of them.

    Attributes:
        rank: This process, from 0.
        world_size: How many there are.
        device: Where this process computes; what it exchanges lies there.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which talks and writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over all processes, in float64."""
        if self.world_size == 1:
            return [float(value) for value in values]
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        sums: list[float] = totals.tolist()
        return sums

    def sum_tensor(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with those of process 0."""
        if self.world_size == 1:
            return
        with torch.no_grad():
            for tensor in tensors:
                sent = tensor.to(self.device).contiguous()
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    def value_of_first(self, value: Any) -> Any:
        """Return process 0's value, anything that JSON can hold."""
        if self.world_size == 1:
            return value
        data = json.dumps(value).encode() if self.is_first else b""
        size = torch.tensor([len(data)], device=self.device)
        dist.broadcast(size, 0)
        if not self.is_first:
            data = bytes(int(size))
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        dist.broadcast(sent, 0)
        return json.loads(bytes(sent.tolist()))

    def replicate(
        self, module: torch.nn.Module, logits_of: Logits, example: torch.Tensor
    ) -> Logits:
        """Return a forward pass whose backward pass averages gradients over all processes.

        All processes get the weights of process 0. BatchNorm layers take statistics of their own
        process's images, and the running statistics of process 0 are everybody's.

        Args:
            module: Holds the parameters.
            logits_of: From inputs (B, ...) to logits (B, C), computed with the module.
            example: An input (1, ...), which shows whether some parameters have no part in it.
        """
        if self.world_size == 1:
            return logits_of
        return DistributedDataParallel(
            _Forward(module, logits_of),
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Looking for them costs a walk over the graph in each step.
            find_unused_parameters=_has_unused_parameters(module, logits_of, example),
        )


ALONE = Processes()
"""The only process of its run."""


class _Forward(torch.nn.Module):
    """A module with another forward pass than its own, such as one under autocast."""

    def __init__(self, module: torch.nn.Module, logits_of: Logits) -> None:
        super().__init__()
        self.module = module
        self._logits_of = logits_of

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._logits_of(inputs)


def _has_unused_parameters(
    module: torch.nn.Module, logits_of: Logits, example: torch.Tensor
) -> bool:
    """Whether a parameter that asks for a gradient would get none; leaves no trace."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with evaluation_mode(module):
        gradients = torch.autograd.grad(logits_of(example).sum(), parameters, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def exchanging_gradients(model: Any, *, wanted: bool) -> AbstractContextManager[Any]:
    """Return a context in which a forward and backward pass averages gradients, or does not.

    Args:
        model: What `Processes.replicate` returned, or anything else that never exchanges.
        wanted: Whether this is the last pass of a step.
    """
    if wanted or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[Any] = model.no_sync()
    return context


def device_of_process(text: str, launch: Launch) -> str:
    """Return the device of one process of a run, where each has one of its own.

    Args:
        text: What the person asked for: `auto`, `cpu`, `cuda`, or anything else.
        launch: The process.
    Raises:
        UsageError: One device is named for several processes.
        ModelError: This machine has fewer GPUs than processes.
    """
    if launch.world_size == 1 or text == "cpu":
        return text
    if text not in ("auto", "cuda"):
        raise UsageError(
            f"--device {text} for {launch.world_size} processes, expected auto, cuda or cpu:"
            " each process takes a GPU of its own"
        )
    n_devices = torch.cuda.device_count()
    if n_devices == 0:
        return "cpu" if text == "auto" else text
    if launch.local_world_size > n_devices:
        raise ModelError(
            f"{launch.local_world_size} processes on a machine with {n_devices} GPUs, expected"
            " at most one process a GPU",
            hint=f"torchrun --nproc-per-node {n_devices} ..., or --device cpu",
        )
    return f"cuda:{launch.local_rank}"


@contextmanager
def join_processes(launch: Launch, device: torch.device) -> Iterator[Processes]:
    """Meet the other processes of a run, where there are any, and part from them at the end.

    Args:
        launch: This process.
        device: Where it computes: NCCL between GPUs, gloo between CPUs.
    Raises:
        LostProcessError: The others were not found, or one of them died.
    """
    if launch.world_size == 1:
        yield Processes(device=device)
        return
    with telling_lost_processes():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
        yield Processes(launch.rank, launch.world_size, device)
        # Not after an error: some backends wait here for processes that are gone.
        dist.destroy_process_group()


@contextmanager
def telling_lost_processes() -> Iterator[None]:
    """Tell a failed exchange with the other processes as what it is: one of them is gone.

    Raises:
        LostProcessError: An exchange failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostProcessError(
            f"process {os.environ.get('RANK', '?')} lost the other processes of the run: {reason}",
            hint="what happened first is told by the process that failed, or by torchrun",
        ) from None


def _is_lost_contact(error: RuntimeError) -> bool:
    # Of torch's own types where it uses them; gloo's failures inside DDP are plain RuntimeErrors.
    return isinstance(error, dist.DistError) or any(
        mark in str(error) for mark in ("gloo/transport", "[../third_party/gloo", "NCCL error")
    )

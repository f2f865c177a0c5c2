"""The processes that share a run: torch's process group, and what they exchange.

torchrun starts the processes. Every method works for a single process too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.errors import LostProcessError

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, for example while process 0 writes a file."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, seen from one of them.

    All processes must call the methods that exchange data, in the same order.

    Attributes:
        rank: Rank of this process, from 0.
        world_size: Number of processes.
        device: Device of this process; tensors are exchanged there.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which prints and writes."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Whether the run has one process."""
        return self.world_size == 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over all processes, computed in float64."""
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        sums: list[float] = self.sum_tensor(totals).tolist()
        return sums

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes.

        Sums of integers are exact; so is a sum of floats of which all but one are 0.

        Args:
            tensor: Any shape, the same in all processes; it is not changed.
        """
        if self.is_single:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def broadcast_tensors(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with those of process 0."""
        if self.is_single:
            return
        with torch.no_grad():
            for tensor in tensors:
                sent = tensor.to(self.device).contiguous()
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    def broadcast(self, value: Any) -> Any:
        """Return the value of process 0, which JSON must be able to hold."""
        if self.is_single:
            return value
        data = json.dumps(value).encode() if self.is_first else b""
        size = torch.tensor([len(data)], device=self.device)
        dist.broadcast(size, 0)
        if not self.is_first:
            data = bytes(int(size))
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        dist.broadcast(sent, 0)
        return json.loads(bytes(sent.tolist()))

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """Return the items of all processes, in the order of the ranks.

        Args:
            items: A few small objects. They are pickled, within the processes of this run.
        """
        parts: list[list[Any]] = [list(items)]
        if not self.is_single:
            parts = [[] for _ in range(self.world_size)]
            dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def share_of_batches(self, n_images: int, batch_size: int) -> list[list[int]]:
        """Return the batches of image positions that this process evaluates.

        The shares are contiguous runs of whole batches, so that an image is in the same batch,
        and has the same logits, for any number of processes.
        """
        starts = range(0, n_images, batch_size)
        first, last = (len(starts) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return [
            list(range(start, min(start + batch_size, n_images))) for start in starts[first:last]
        ]


SINGLE_PROCESS = ProcessGroup()
"""A run in this process alone."""


@contextmanager
def join_process_group(launch: Launch, device: torch.device) -> Iterator[ProcessGroup]:
    """Join the process group of a run, and leave it at the end; nothing for a single process.

    Args:
        launch: The rank of this process.
        device: Its device; NCCL is used between GPUs, gloo between CPUs.
    Raises:
        LostProcessError: The other processes were not found, or one of them died.
    """
    if launch.world_size == 1:
        yield ProcessGroup(device=device)
        return
    with report_lost_processes():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
        yield ProcessGroup(launch.rank, launch.world_size, device)
        # Not after an error: some backends wait here for processes that are gone.
        dist.destroy_process_group()


@contextmanager
def report_lost_processes() -> Iterator[None]:
    """Turn a failed exchange with the other processes into a message.

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
            hint="the process that failed first, or torchrun, reports the cause",
        ) from None


def _is_lost_contact(error: RuntimeError) -> bool:
    # torch has error types of its own for some failures; gloo's inside DDP are RuntimeErrors.
    return isinstance(error, dist.DistError) or any(
        mark in str(error) for mark in ("gloo/transport", "[../third_party/gloo", "NCCL error")
    )

"""What several processes share of an evaluation: each takes whole batches, and they add up counts.

Where torch's process group is joined (torchrun), every process must take part in the same
evaluations; elsewhere there is one process, and every function here is right for it too. It does
not join or leave the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed


def place_in_group() -> tuple[int, int]:
    """Return this process's rank, and how many processes there are; (0, 1) for a single one."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def share_of_batches(n_images: int, batch_size: int) -> list[list[int]]:
    """Return the batches of image positions that fall to this process, a contiguous run of them.

    They are whole batches of the run in one process: each image is in the same batch whatever
    the number of processes, so that its logits are the same, and it is counted once.
    """
    rank, count = place_in_group()
    starts = range(0, n_images, batch_size)
    first, last = (len(starts) * at // count for at in (rank, rank + 1))
    return [list(range(start, min(start + batch_size, n_images))) for start in starts[first:last]]


def add_up(counts: torch.Tensor) -> torch.Tensor:
    """Return the sum of every process's counts, the same in all of them.

    Args:
        counts: On the device of the group's backend, of one shape in all processes. Sums of
            integers are exact, and so is a sum of numbers of which all but one are 0.
    """
    _, count = place_in_group()
    if count > 1:
        counts = counts.clone()
        distributed.all_reduce(counts)
    return counts


def gather(items: Sequence[Any]) -> list[Any]:
    """Return every process's items in the order of the ranks, the same in all of them.

    Args:
        items: Few and small, of any picklable type. They come from this run's own processes.
    """
    _, count = place_in_group()
    parts: list[list[Any]] = [list(items)]
    if count > 1:
        parts = [[] for _ in range(count)]
        distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]

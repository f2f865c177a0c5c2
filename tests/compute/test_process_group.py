"""What the processes of a run share; exchanges are tested with real processes in training."""

from __future__ import annotations

import pytest
import torch

from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup


def test_a_single_process_exchanges_nothing() -> None:
    assert SINGLE_PROCESS.share_of_batches(5, 2) == [[0, 1], [2, 3], [4]]
    assert SINGLE_PROCESS.share_of_batches(0, 2) == []
    counts = torch.tensor([1, 2])
    assert SINGLE_PROCESS.sum_tensor(counts) is counts
    assert SINGLE_PROCESS.sum([1, 2.5]) == [1.0, 2.5]
    assert SINGLE_PROCESS.gather(["a"]) == ["a"]
    assert SINGLE_PROCESS.broadcast({"step": 3}) == {"step": 3}


@pytest.mark.parametrize("n_images", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shares_are_whole_batches_and_each_batch_has_one_process(
    n_images: int, world_size: int
) -> None:
    shares = [
        ProcessGroup(rank, world_size).share_of_batches(n_images, 8) for rank in range(world_size)
    ]
    assert [at for share in shares for batch in share for at in batch] == list(range(n_images))
    assert {len(batch) for share in shares for batch in share[:-1]} <= {8}
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1

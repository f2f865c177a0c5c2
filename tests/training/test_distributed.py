from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from wiseft_cli.errors import UsageError
from wiseft_cli.training.distributed import device_of_process, exchanging_gradients, join_processes
from wiseft_cli.training.launch import Launch

CPU = torch.device("cpu")


def make_model() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 2).double()


def work(rank: int, port: int, gradients: mp.SimpleQueue) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    with join_processes(Launch(rank, rank, 2, 2), CPU) as processes:
        inner = make_model()
        if rank:
            nn.init.zeros_(inner.weight)  # process 0's weights are everybody's
        model = processes.replicate(inner)
        rows = torch.arange(15, dtype=torch.float64).reshape(5, 3)
        share = rows[:3] if rank == 0 else rows[3:]
        for number, row in enumerate(share):
            with exchanging_gradients(model, wanted=number == len(share) - 1):
                (model(row).square().sum() * 2 / 5).backward()
        found = [processes.sum([rank + 1.0, len(share)]), processes.value_of_first({"step": rank})]
        gradients.put((rank, inner.weight.grad.tolist(), found))
    # torch never frees DDP's reducer, so gloo's threads are there until the end, and an
    # interpreter that tears down beside them is aborted once in some hundred runs.
    os._exit(0)


def test_two_processes_with_uneven_shares_average_to_the_gradient_of_one() -> None:
    # As torchrun does: the store is the parent's, so that no other program can take its port.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = mp.get_context("spawn")
    gradients = context.SimpleQueue()
    mp.spawn(work, args=(store.port, gradients), nprocs=2)
    model = make_model()
    rows = torch.arange(15, dtype=torch.float64).reshape(5, 3)
    (model(rows).square().sum() / 5).backward()
    for _ in range(2):
        _, gradient, found = gradients.get()
        torch.testing.assert_close(
            torch.tensor(gradient, dtype=torch.float64), model.weight.grad, rtol=0, atol=1e-10
        )
        assert found == [[3.0, 5.0], {"step": 0}]


def test_one_device_for_several_processes_is_refused() -> None:
    assert device_of_process("cuda:1", Launch()) == "cuda:1"
    with pytest.raises(UsageError) as caught:
        device_of_process("cuda:1", Launch(1, 1, 2, 2))
    assert caught.value.message == (
        "--device cuda:1 for 2 processes, expected auto, cuda or cpu:"
        " each process takes a GPU of its own"
    )

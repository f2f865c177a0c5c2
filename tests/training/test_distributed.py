from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from tests.training.fork_server import ForkServer
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.training.batches import MicroBatches
from wiseft_cli.training.optimizer import build_optimizer
from wiseft_cli.training.recipe import Recipe, resolve
from wiseft_cli.training.step import run_steps, wrap_ddp

CPU = torch.device("cpu")


RECIPE = {"epochs": 2, "batch_size": 5, "micro_batch_size": 2, "lr": 0.01}
N_IMAGES = 11  # batches of 5, 5 and 1: uneven shares, and a process without an image


class Model(nn.Module):
    """Two layers, and a parameter without influence on the result."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
            self.unused = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(inputs)
        return logits


def passes_of(processes: ProcessGroup) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the forward passes of one process; image 3 of epoch 1 is unreadable."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(N_IMAGES, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (N_IMAGES,), generator=generator)
    recipe = resolve(Recipe(**RECIPE), N_IMAGES)
    for draws in MicroBatches(recipe, rank=processes.rank, world_size=processes.world_size):
        rows = [draw.image for draw in draws if draw != (1, 3)]
        yield inputs[rows] if rows else torch.zeros(1, 6, dtype=torch.float64), targets[rows]


def train(processes: ProcessGroup) -> tuple[list[list[float]], list[tuple[float, ...]]]:
    """Return the weights and the reports."""
    model = Model()
    if processes.rank:
        nn.init.zeros_(model.layers[0].weight)  # every process gets the weights of process 0
    recipe = resolve(Recipe(**RECIPE), N_IMAGES)
    reports = list(
        run_steps(
            wrap_ddp(processes, model, model, torch.zeros(1, 6, dtype=torch.float64)),
            build_optimizer(list(model.parameters()), recipe),
            passes_of(processes),
            recipe,
            stop=lambda: processes.rank == processes.world_size - 1,
            processes=processes,
        )
    )
    weights = [parameter.flatten().tolist() for parameter in model.parameters()]
    values = [
        (step.n_images, step.n_missing, step.is_stopped, step.loss, step.grad_norm)
        for step in reports
    ]
    return weights, values


def work(rank: int) -> None:
    with join_process_group(Launch(rank, rank, 2, 2), CPU) as processes:
        exchanged = [processes.sum([rank + 1.0, 2.0]), processes.broadcast({"step": rank})]
        Path(f"{rank}.json").write_text(json.dumps([*train(processes), exchanged]))


def test_two_processes_with_uneven_shares_take_the_steps_of_one_process(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    codes, _, err = fork_server.call("tests.training.test_distributed:work", folders=[tmp_path] * 2)
    assert codes == [0, 0], err
    weights, reports = train(SINGLE_PROCESS)
    assert sum(report[0] for report in reports) == 2 * N_IMAGES - 1
    assert sum(report[1] for report in reports) == 1
    assert all(report[2] for report in reports)
    for rank in range(2):
        found, others, exchanged = json.loads((tmp_path / f"{rank}.json").read_text())
        assert exchanged == [[3.0, 4.0], {"step": 0}]
        assert [tuple(report[:3]) for report in others] == [report[:3] for report in reports]
        for ours, theirs in ((weights, found), (reports, others)):
            for row, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(
                    torch.tensor(other, dtype=torch.float64),
                    torch.tensor(row, dtype=torch.float64),
                    rtol=0,
                    atol=1e-10,
                )

"""Average the gradients of several processes with torch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from wiseft_cli.compute.process_group import ProcessGroup
from wiseft_cli.evaluation.accuracy import evaluation_mode

Logits = Callable[[torch.Tensor], torch.Tensor]
"""A forward pass, from inputs (B, ...) to logits (B, C)."""


def wrap_ddp(
    processes: ProcessGroup, module: torch.nn.Module, logits_of: Logits, example: torch.Tensor
) -> Logits:
    """Return a forward pass whose backward pass averages gradients over all processes.

    All processes get the weights of process 0. BatchNorm layers use the statistics of their own
    process's images, and the running statistics of process 0 are kept.

    Args:
        module: Holds the parameters.
        logits_of: From inputs (B, ...) to logits (B, C), computed with the module.
        example: An input (1, ...); a pass over it shows which parameters are unused.
    """
    if processes.is_single:
        return logits_of
    return DistributedDataParallel(
        _Forward(module, logits_of),
        device_ids=[processes.device] if processes.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Searching for unused parameters walks over the graph in each step.
        find_unused_parameters=_has_unused_parameters(module, logits_of, example),
    )


class _Forward(torch.nn.Module):
    """A module with a forward pass other than its own, for example one under autocast."""

    def __init__(self, module: torch.nn.Module, logits_of: Logits) -> None:
        super().__init__()
        self.module = module
        self._logits_of = logits_of

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._logits_of(inputs)


def _has_unused_parameters(
    module: torch.nn.Module, logits_of: Logits, example: torch.Tensor
) -> bool:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with evaluation_mode(module):
        gradients = torch.autograd.grad(logits_of(example).sum(), parameters, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def gradient_exchange(model: Any, *, enabled: bool) -> AbstractContextManager[Any]:
    """Return a context in which backward passes average gradients only if `enabled`.

    Args:
        model: From `wrap_ddp`; a model that is not wrapped never exchanges gradients.
        enabled: Whether this is the last pass of a step.
    """
    if enabled or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[Any] = model.no_sync()
    return context

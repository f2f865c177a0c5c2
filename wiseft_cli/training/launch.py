"""Which of several processes this one is, as torchrun says it in the environment.

It starts nothing and imports no torch, so that what is told before torch is there is told once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from wiseft_cli.errors import UsageError

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """One process among those of a run.

    Attributes:
        rank: Among all, from 0; process 0 talks and writes.
        local_rank: Among those of this machine, from 0.
        world_size: How many there are.
        local_world_size: How many there are on this machine.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Return this process's place; alone where the environment is not torchrun's.

    Args:
        environment: The process's own where None.
    Raises:
        UsageError: The environment is torchrun's, and contradicts itself.
    """
    variables = os.environ if environment is None else environment
    if any(name not in variables for name in _VARIABLES):
        return Launch()
    try:
        launch = Launch(*(int(variables[name]) for name in _VARIABLES[:4]))
    except ValueError:
        launch = Launch(rank=-1)
    if not (
        0 <= launch.rank < launch.world_size
        and 0 <= launch.local_rank < launch.local_world_size <= launch.world_size
    ):
        found = ", ".join(f"{name}={variables[name]!r}" for name in _VARIABLES[:4])
        raise UsageError(
            f"the environment names no process of a run: {found}",
            hint="start several processes with torchrun, one process with none of these set",
        )
    return launch

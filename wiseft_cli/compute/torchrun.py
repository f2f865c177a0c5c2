"""Read this process's rank from the environment that torchrun sets.

Imports no torch, so that errors found before torch is loaded are printed by one process only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from wiseft_cli.errors import UsageError

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """The rank of this process in a run, and the size of the run.

    Attributes:
        rank: Rank among all processes, from 0; process 0 prints and writes.
        local_rank: Rank among the processes of this machine, from 0.
        world_size: Number of processes.
        local_world_size: Number of processes on this machine.
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
    """Return the rank of this process; a single process without torchrun's variables.

    Args:
        environment: The variables to read; those of this process if None.
    Raises:
        UsageError: The variables contradict each other.
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
            f"torchrun's environment variables contradict each other: {found}",
            hint="start several processes with torchrun, and a single process with none of these"
            " variables set",
        )
    return launch

"""What the processes of a run must have in common before its first step.

Each opens the same files by itself, on several machines perhaps different ones under the same
name; states lie with the first one alone.
"""

from __future__ import annotations

from dataclasses import asdict

from wiseft_cli.checkpoint.card import card_document
from wiseft_cli.checkpoint.digest import canonical_json, sha256_of
from wiseft_cli.compute.process_group import ProcessGroup
from wiseft_cli.errors import CommonDatasetError
from wiseft_cli.training.finetuned_card import finetuned_card
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.state import Run
from wiseft_cli.training.state_record import StateRecord


def refuse_other_plans(plan: FinetunePlan, processes: ProcessGroup) -> None:
    """Refuse a run whose processes have not the same checkpoint, images and recipe.

    Raises:
        DatasetError: One has others than the first; raised in all of them.
    """
    if processes.world_size == 1:
        return
    own = sha256_of(canonical_json(card_document(finetuned_card(plan))).encode())
    first, *others = processes.gather([own])
    different = [rank for rank, digest in enumerate(others, 1) if digest != first]
    if different:
        raise CommonDatasetError(
            f"process {different[0]} of {processes.world_size} has another checkpoint, recipe or"
            f" training set under the same names than process 0 ({len(different)} differ)",
            hint="put the same files on every machine, or on a disk that all of them see",
        )


def start_alike(
    run: Run, record: StateRecord | None, processes: ProcessGroup
) -> StateRecord | None:
    """Bring the runs of all processes to where that of the first one is.

    Args:
        run: Fresh; that of the first process perhaps at the step of a state.
        record: Of that state; None in the other processes.
    Returns:
        The first one's record.
    """
    if processes.world_size == 1:
        return record
    document = processes.broadcast(None if record is None else asdict(record))
    names = processes.broadcast(sorted(run.moments()))
    if not processes.is_first:
        run.make_moments({name for name in names if name.startswith("step.")})
    processes.broadcast_tensors(run.weights().values())
    processes.broadcast_tensors(run.moments().values())
    return None if document is None else StateRecord(**document)

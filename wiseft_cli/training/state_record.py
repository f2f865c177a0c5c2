"""How far a run is, as it stands in a state file beside the tensors.

It is a tensor of bytes there, so that the file's content digest covers it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.errors import CheckpointError

RECORD_TENSOR = "record"


@dataclass(frozen=True)
class StateRecord:
    """How far a run is, and under which conditions it came there.

    Attributes:
        steps_done: Optimizer steps behind it; the next one is also the place in the data.
        loss_sum: Sum of the loss over the images of the epoch so far.
        n_images: How many images that is.
        scaler: State of fp16's gradient scaler; empty for other precisions.
        threads: CPU threads of torch.
        world_size: Processes that shared each step.
        torch_version: As the installed package says it.
    """

    steps_done: int
    loss_sum: float
    n_images: int
    scaler: Mapping[str, Any]
    threads: int
    world_size: int
    torch_version: str


def encode_record(record: StateRecord) -> np.ndarray:
    """Return a record as bytes, uint8; floats come back as the very same numbers."""
    return np.frombuffer(canonical_json(asdict(record)).encode(), np.uint8)


def read_record(reader: CheckpointReader) -> StateRecord:
    """Read the record of a state file.

    Raises:
        CheckpointError: The file has none, or one that this version does not know.
    """
    if RECORD_TENSOR not in reader.tensors:
        raise CheckpointError(f"{reader.path}: is not the state of a run")
    try:
        document = json.loads(reader.read_array(RECORD_TENSOR).tobytes())
        if document.keys() != {field.name for field in fields(StateRecord)}:
            raise ValueError("other fields than expected")
        return StateRecord(**document)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{reader.path}: its record cannot be used ({error})",
            hint="it was written by another version of wiseft; start again with --force",
        ) from None

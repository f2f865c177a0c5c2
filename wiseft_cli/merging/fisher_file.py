"""The file with the Fisher information of a checkpoint: written once, read by merges.

A safetensors file with one float32 tensor per parameter of the checkpoint, under the parameter's
name: the diagonal of the Fisher information, the mean of squared gradients. The metadata entry
`wiseft_fisher` says which checkpoint and images it was computed from. Buffers, such as BatchNorm's
running statistics, have no gradients and are missing; a merge interpolates them without weights.
`evaluation/fisher.py` computes the values.

Source: Matena and Raffel 2022, arXiv:2111.09832, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.digest import (
    UNKNOWN_DIGEST,
    canonical_json,
    content_digest,
    hash_bytes,
    shorten,
)
from wiseft_cli.checkpoint.format import safetensors_dtype
from wiseft_cli.checkpoint.reader import FISHER_KEY, CheckpointReader, open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import CheckpointError, IncompatibleCheckpointsError, NotACheckpointError

SCHEMA = 1
ROLE = "fisher"

MODEL_LABELS, DATA_LABELS = LABELS = ("model", "data")
"""Labels drawn from the model's own prediction (true Fisher), or those of the image set (empirical
Fisher)."""

_DESCRIPTIONS = {MODEL_LABELS: "true Fisher", DATA_LABELS: "empirical Fisher"}
_HINT = "compute it again: wiseft fisher {} --data SPEC -o FISHER.safetensors --force"


@dataclass(frozen=True)
class FisherInfo:
    """What the values of a Fisher file were computed from.

    Attributes:
        checkpoint: Content digest of the checkpoint.
        data_fingerprint: Fingerprint of the whole image set.
        n_images: Images behind the mean, without unreadable ones.
        n_unreadable: Images of the sample that could not be read.
        labels: One of `LABELS`.
        seed: Seed of the sample and of the drawn labels.
        version: Version of wiseft.
        digest: Content digest of the file's own tensors.
    """

    checkpoint: str
    data_fingerprint: str
    n_images: int
    n_unreadable: int
    labels: str
    seed: int
    version: str
    digest: str = UNKNOWN_DIGEST

    def describe(self) -> str:
        """Return what the file holds, for people."""
        return (
            f"Fisher information of checkpoint {shorten(self.checkpoint)}"
            f" ({_DESCRIPTIONS[self.labels]}, labels from the {self.labels}), {self.n_images}"
            f" images of the set {shorten(self.data_fingerprint)}, seed {self.seed}"
        )


def is_fisher_file(reader: CheckpointReader) -> bool:
    """Return whether an open safetensors file is a Fisher file."""
    return FISHER_KEY in reader.metadata


def open_fisher(path: Path) -> CheckpointReader:
    """Open a Fisher file for reading; use the result as a context manager.

    Raises:
        NotACheckpointError: The file is not a safetensors file.
        CheckpointError: It is not a Fisher file.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(open_checkpoint(path))
        if not is_fisher_file(reader):
            kind = f"a {reader.card.role} checkpoint" if reader.card else "not a Fisher file"
            raise CheckpointError(
                f"{path}: is {kind}, expected the Fisher information of a checkpoint",
                hint="compute it: wiseft fisher CHECKPOINT --data SPEC -o FISHER.safetensors",
            )
        stack.pop_all()
        return reader


def fisher_info(reader: CheckpointReader) -> FisherInfo:
    """Return what a Fisher file was computed from.

    Raises:
        CheckpointError: The description is damaged, or was written by a newer version.
    """
    try:
        document = json.loads(reader.metadata[FISHER_KEY])
        schema = document.pop("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise CheckpointError(
                f"{reader.path}: has schema {schema}, this version reads {SCHEMA}",
                hint="update wiseft-cli",
            )
        return _parse(document)
    except KeyError as error:
        fault = f"field {error} is missing"
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        fault = str(error)
    raise CheckpointError(
        f"{reader.path}: damaged description (metadata key {FISHER_KEY!r}): {fault}",
        hint=_HINT.format("CHECKPOINT"),
    )


def _parse(document: dict[str, Any]) -> FisherInfo:
    kinds = FisherInfo.__dataclass_fields__
    values = {name: document[name] for name in kinds}
    for name, value in values.items():
        expected = int if kinds[name].type == "int" else str
        if not isinstance(value, expected) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r:.60}")
    if document["role"] != ROLE:
        raise ValueError(f"role is {document['role']!r:.60}, expected {ROLE!r}")
    if values["labels"] not in LABELS:
        raise ValueError(f"labels is {values['labels']!r:.60}, expected {' or '.join(LABELS)}")
    if values["n_images"] < 1:
        raise ValueError(f"n_images is {values['n_images']}, expected at least 1")
    return FisherInfo(**values)


def require_fisher_of(fisher: CheckpointReader, checkpoint: CheckpointReader) -> FisherInfo:
    """Check by the headers that a Fisher file belongs to a checkpoint.

    The digest of a checkpoint without a card is unknown before it is read: call
    `require_fisher_digest` then.

    Args:
        fisher: From `open_fisher`.
        checkpoint: The checkpoint.
    Raises:
        IncompatibleCheckpointsError: It was computed from another checkpoint, or has tensors that
            the checkpoint does not have in that shape.
        CheckpointError: The description of the file is damaged.
    """
    info = fisher_info(fisher)
    if checkpoint.card is not None and checkpoint.card.digest is not None:
        require_fisher_digest(fisher, info, checkpoint, checkpoint.card.digest)
    faults = []
    for name, found in fisher.tensors.items():
        expected = checkpoint.tensors.get(name)
        if expected is None:
            faults.append(f"{name}: not in {checkpoint.path}")
        elif found.shape != expected.shape:
            faults.append(f"{name}: shape {found.shape}, expected {expected.shape}")
        elif found.dtype != "F32":
            faults.append(f"{name}: dtype {found.dtype}, expected F32")
    if faults or not fisher.tensors:
        raise IncompatibleCheckpointsError(
            f"{fisher.path} does not match {checkpoint.path}",
            faults=faults or ["it has no tensors"],
            hint=_HINT.format(checkpoint.path),
        )
    return info


def require_fisher_digest(
    fisher: CheckpointReader, info: FisherInfo, checkpoint: CheckpointReader, digest: str
) -> None:
    """Reject a Fisher file of another checkpoint.

    Args:
        info: From `fisher_info`.
        digest: Content digest of the checkpoint.
    Raises:
        IncompatibleCheckpointsError: The file was computed from a checkpoint of another digest.
    """
    if info.checkpoint != digest:
        raise IncompatibleCheckpointsError(
            f"{fisher.path}: is the Fisher information of checkpoint {info.checkpoint}, and"
            f" {checkpoint.path} is {digest}",
            hint="give one --fisher per checkpoint, in the order of the checkpoints; or "
            + _HINT.format(checkpoint.path),
        )


def require_own_digest(fisher: CheckpointReader, info: FisherInfo, digest: str) -> None:
    """Reject a Fisher file whose tensors are not those that were written.

    Args:
        digest: Content digest of its tensors as read.
    Raises:
        NotACheckpointError: The digest differs from the one in the file.
    """
    if info.digest != digest:
        raise NotACheckpointError(
            f"{fisher.path}: its tensors do not match its description: content digest {digest},"
            f" expected {info.digest}",
            hint="the file was damaged or changed by another program; fetch or compute it again",
        )


def write_fisher(
    path: Path,
    values: Mapping[str, npt.NDArray[np.float32]],
    info: FisherInfo,
    *,
    force: bool = False,
    inputs: Sequence[Path] = (),
) -> FisherInfo:
    """Write a Fisher file, and return its description with the digest of its tensors.

    Args:
        values: Mean squared gradient of each parameter, not negative, by name.
        info: The description; its digest is ignored.
        force: Whether an existing file may be replaced.
        inputs: Files that the output must not overwrite.
    Raises:
        OutputError: See `AtomicFile`.
    """
    rows = [
        (name, safetensors_dtype(at.dtype), at.shape, hash_bytes(at.tobytes()))
        for name, at in values.items()
    ]
    written = replace(info, digest=content_digest(rows))
    text = canonical_json({"schema": SCHEMA, "role": ROLE, **vars(written)})
    metadata = {"format": "pt", FISHER_KEY: text}
    write_checkpoint(path, values, None, force=force, inputs=inputs, metadata=metadata)
    return written

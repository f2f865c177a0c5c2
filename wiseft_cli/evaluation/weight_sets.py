"""The rows of an evaluation: checkpoints as they are, points between two, the average of outputs.

All of it is decided from headers and cards; no tensor is read. This module needs no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.card import Card, ClassEntry
from wiseft_cli.checkpoint.reader import FILE_SUFFIX, INDEX_SUFFIX, open_checkpoint, read_card
from wiseft_cli.errors import CheckpointError, UsageError
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.compatibility import (
    descent_warnings,
    require_compatible,
    require_roles_in_order,
)


@dataclass(frozen=True)
class NamedCheckpoint:
    """A checkpoint of the evaluation.

    Attributes:
        path: The file.
        name: What reports call it.
        card: Its card.
        digest: Its content digest, as the card has it.
        model_config: open_clip's model config, from the card.
        preprocess: open_clip's preprocessing fields, from the card.
    """

    path: Path
    name: str
    card: Card
    digest: str
    model_config: Mapping[str, Any]
    preprocess: Mapping[str, Any]


@dataclass(frozen=True)
class WeightSet:
    """The weights of one row: a checkpoint as it is, a point between two, or two side by side.

    Attributes:
        checkpoints: One; or two, theta_0 and theta_1.
        alpha: The weight of theta_1; None where no weights are interpolated. Two checkpoints
            without alpha are an output ensemble: the average of their logits.
    """

    checkpoints: tuple[NamedCheckpoint, ...]
    alpha: Alpha | None = None

    @property
    def is_ensemble(self) -> bool:
        """Whether the logits of the two checkpoints are averaged."""
        return self.alpha is None and len(self.checkpoints) > 1

    @property
    def parts(self) -> tuple[WeightSet, ...]:
        """The weight sets whose logits are averaged: itself, or both of an ensemble."""
        if not self.is_ensemble:
            return (self,)
        return tuple(WeightSet((checkpoint,)) for checkpoint in self.checkpoints)

    @property
    def name(self) -> str:
        """What messages call it."""
        names = " to ".join(checkpoint.name for checkpoint in self.checkpoints)
        if self.is_ensemble:
            return f"output ensemble of {names}"
        return names if self.alpha is None else f"{names} at alpha {self.alpha.text}"

    @property
    def classes(self) -> tuple[ClassEntry, ...]:
        """The classes of the head's rows, the same for both of a pair."""
        return self.checkpoints[0].card.classes

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """open_clip's preprocessing fields, the same for both of a pair."""
        return self.checkpoints[0].preprocess


def read_checkpoints(paths: Sequence[Path]) -> tuple[NamedCheckpoint, ...]:
    """Read the cards and give each checkpoint a name of its own: as little of its path as tells.

    Args:
        paths: Checkpoint files, or folders with a single one.
    Raises:
        UsageError: A folder without a checkpoint, or a file twice.
        CheckpointError: No checkpoint, or one that cannot be run.
    """
    files = [_file_of(path) for path in paths]
    real = [file.resolve() for file in files]
    repeated = sorted(
        {str(path) for path, at in zip(paths, real, strict=True) if real.count(at) > 1}
    )
    if repeated:
        raise UsageError(f"given more than once: {', '.join(repeated)}")
    return tuple(map(_read_checkpoint, files, _distinct_names(real)))


def _file_of(path: Path) -> Path:
    """Return the checkpoint file that a person named, itself or by its folder."""
    if not path.is_dir() and not path.name.endswith(INDEX_SUFFIX):
        return path
    if path.is_dir() and not any(
        entry.name.endswith((FILE_SUFFIX, INDEX_SUFFIX)) for entry in path.iterdir()
    ):
        raise UsageError(
            f"{path} is a folder without a checkpoint, expected a checkpoint",
            hint=f"did you mean `--data {shlex.quote(str(path))}`?",
        )
    with open_checkpoint(path, allow_shards=True) as source:
        if len(source.files) == 1:
            return source.files[0]
    raise CheckpointError(
        f"{path}: is sharded, and a sharded checkpoint has no card, so it cannot be run",
        hint="evaluate a checkpoint that wiseft zeroshot-head, finetune or merge made",
    )


def _read_checkpoint(path: Path, name: str) -> NamedCheckpoint:
    card = read_card(path)
    if card.model is None or card.preprocess is None or not card.classes or card.digest is None:
        raise CheckpointError(
            f"{path}: its card names no model, preprocessing or classes, so it cannot be run",
            hint="evaluate a checkpoint that wiseft zeroshot-head, finetune or merge made",
        )
    return NamedCheckpoint(path, name, card, card.digest, card.model.config, card.preprocess)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the stems, with as many parent folders before them as it takes to differ."""
    stems = [path.with_suffix("") if path.suffix == FILE_SUFFIX else path for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(stem.parts[1:][-depth:]) for stem in stems]
        if len(set(names)) == len(names):
            return names
    return [path.name for path in paths]


def plan_weight_sets(
    checkpoints: Sequence[NamedCheckpoint],
    alphas: Sequence[Alpha],
    *,
    output_ensemble: bool = False,
) -> tuple[WeightSet, ...]:
    """Return the rows: the checkpoints, or with alphas the points between exactly two.

    Args:
        output_ensemble: Add the average of the two checkpoints' logits as the last row.
    Raises:
        UsageError: Alphas or an ensemble without exactly two checkpoints.
        IncompatibleCheckpointsError: The two have different models, preprocessing, classes or
            tensors.
        CheckpointError: The zero-shot checkpoint is the second.
    """
    if alphas:
        _require_pair(checkpoints, "--alpha interpolates between", "--alpha 0:1:0.1")
        _require_mergeable(*checkpoints, example="--alpha 0:1:0.1")
    if output_ensemble:
        _require_pair(checkpoints, "--output-ensemble averages", "--output-ensemble")
        _require_one_label_space(*checkpoints)
    rows = [WeightSet(tuple(checkpoints), alpha) for alpha in alphas]
    rows = rows or [WeightSet((checkpoint,)) for checkpoint in checkpoints]
    return (*rows, WeightSet(tuple(checkpoints))) if output_ensemble else tuple(rows)


def _require_pair(checkpoints: Sequence[NamedCheckpoint], what: str, example: str) -> None:
    if len(checkpoints) != 2:
        raise UsageError(
            f"{what} exactly two checkpoints, {len(checkpoints)} given",
            hint=f"wiseft eval {example} ZEROSHOT FINETUNED --data DIR",
        )


def _require_mergeable(theta_0: NamedCheckpoint, theta_1: NamedCheckpoint, *, example: str) -> None:
    with (
        open_checkpoint(theta_0.path, allow_shards=True) as source_0,
        open_checkpoint(theta_1.path, allow_shards=True) as source_1,
    ):
        try:
            require_roles_in_order(source_0, source_1)
        except CheckpointError as error:
            command = ["wiseft", "eval", str(theta_1.path), str(theta_0.path)]
            raise CheckpointError(
                error.message,
                hint=f"name the zero-shot checkpoint first: {shlex.join(command)} {example} ...",
            ) from None
        require_compatible(source_0, source_1)


def _require_one_label_space(theta_0: NamedCheckpoint, theta_1: NamedCheckpoint) -> None:
    """Refuse to average logits that are not of the same classes and images."""
    faults = [
        what
        for what, is_equal in (
            ("classes", theta_0.card.classes == theta_1.card.classes),
            ("preprocessing", theta_0.preprocess == theta_1.preprocess),
        )
        if not is_equal
    ]
    if faults:
        raise CheckpointError(
            f"{theta_1.path}: has other {' and '.join(faults)} than {theta_0.path}, so their"
            " outputs cannot be averaged",
            hint="`wiseft diff` shows the differences",
        )


def doubts_about_pair(theta_0: NamedCheckpoint, theta_1: NamedCheckpoint) -> tuple[str, ...]:
    """Return what speaks against the second checkpoint descending from the first."""
    with (
        open_checkpoint(theta_0.path, allow_shards=True) as source_0,
        open_checkpoint(theta_1.path, allow_shards=True) as source_1,
    ):
        return tuple(descent_warnings(source_0, source_1))

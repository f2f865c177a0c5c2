"""The weights to evaluate: checkpoints, points between two, output ensembles.

Everything is decided from headers and cards; no tensor is read and torch is not imported.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.card import (
    NO_MODEL_HINT,
    Card,
    ClassEntry,
    canonical_preprocess,
)
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.shards import FILE_SUFFIX, INDEX_SUFFIX
from wiseft_cli.errors import CheckpointError, UsageError
from wiseft_cli.merging import compatibility
from wiseft_cli.merging.alpha import Alpha

_HINT = "evaluate a checkpoint written by wiseft zeroshot-head, finetune or merge"


@dataclass(frozen=True)
class NamedCheckpoint:
    """A checkpoint of the evaluation.

    Attributes:
        path: The file.
        name: Display name.
        card: Its card.
        digest: Content digest, as in the card.
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
    """The weights of a row: a checkpoint, a point between two, an output ensemble.

    Attributes:
        checkpoints: One; or two, theta_0 and theta_1.
        alpha: The weight of theta_1; None if no weights are interpolated. Two checkpoints without
            alpha are an output ensemble, the average of their logits.
    """

    checkpoints: tuple[NamedCheckpoint, ...]
    alpha: Alpha | None = None

    @property
    def is_ensemble(self) -> bool:
        """Whether the logits of the two checkpoints are averaged."""
        return self.alpha is None and len(self.checkpoints) > 1

    @property
    def parts(self) -> tuple[WeightSet, ...]:
        """The weight sets whose logits are averaged: itself, or the two of an ensemble."""
        if not self.is_ensemble:
            return (self,)
        return tuple(WeightSet((checkpoint,)) for checkpoint in self.checkpoints)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of the checkpoints."""
        return tuple(checkpoint.path for checkpoint in self.checkpoints)

    @property
    def name(self) -> str:
        """Display name in messages."""
        names = " to ".join(checkpoint.name for checkpoint in self.checkpoints)
        if self.is_ensemble:
            return f"output ensemble of {names}"
        return names if self.alpha is None else f"{names} at alpha {self.alpha.text}"

    @property
    def classes(self) -> tuple[ClassEntry, ...]:
        """The classes of the head, the same for both checkpoints of a pair."""
        return self.checkpoints[0].card.classes

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """open_clip's preprocessing fields, the same for both checkpoints of a pair."""
        return self.checkpoints[0].preprocess


def read_checkpoints(
    paths: Sequence[Path], *, folder_hint: str = "did you mean `--data {}`?"
) -> tuple[NamedCheckpoint, ...]:
    """Read the cards, and give each checkpoint a short distinct name.

    Args:
        paths: Checkpoint files, or folders that hold a single checkpoint.
        folder_hint: Remedy for a folder without a checkpoint; `{}` stands for its path.
    Raises:
        UsageError: A folder holds no checkpoint, or a file is given twice.
        CheckpointError: A file is not a checkpoint that can be run.
    """
    files = [_file_of(path, folder_hint) for path in paths]
    real = [file.resolve() for file in files]
    repeated = sorted(
        {str(path) for path, at in zip(paths, real, strict=True) if real.count(at) > 1}
    )
    if repeated:
        raise UsageError(f"given more than once: {', '.join(repeated)}")
    return tuple(map(_read_checkpoint, files, _distinct_names(real)))


def _file_of(path: Path, folder_hint: str) -> Path:
    if not path.is_dir() and not path.name.endswith(INDEX_SUFFIX):
        return path
    if path.is_dir() and not any(
        entry.name.endswith((FILE_SUFFIX, INDEX_SUFFIX)) for entry in path.iterdir()
    ):
        raise UsageError(
            f"{path} is a folder without a checkpoint, expected a checkpoint",
            hint=folder_hint.format(shlex.quote(str(path))),
        )
    with open_checkpoint(path, allow_shards=True) as reader:
        if len(reader.files) == 1:
            return reader.files[0]
    raise CheckpointError(
        f"{path}: is sharded, and a sharded checkpoint has no card, so it cannot be run", hint=_HINT
    )


def _read_checkpoint(path: Path, name: str) -> NamedCheckpoint:
    card = read_card(path)
    if card.model is None or card.preprocess is None or not card.classes or card.digest is None:
        raise CheckpointError(
            f"{path}: its card names no model, preprocessing or classes, so it cannot be run",
            hint=NO_MODEL_HINT if card.model is None else _HINT,
        )
    return NamedCheckpoint(path, name, card, card.digest, card.model.config, card.preprocess)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the stems, with the parent folders that make them distinct."""
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
    """Return the checkpoints, or the points between exactly two, as weight sets.

    Args:
        output_ensemble: Add the average of the two checkpoints' logits as the last weight set.
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
        _require_same_task(*checkpoints)
    pair = tuple(checkpoints)
    rows = [WeightSet(pair, alpha) for alpha in alphas] or [WeightSet((at,)) for at in checkpoints]
    return (*rows, WeightSet(pair)) if output_ensemble else tuple(rows)


def _require_pair(checkpoints: Sequence[NamedCheckpoint], what: str, example: str) -> None:
    if len(checkpoints) != 2:
        raise UsageError(
            f"{what} exactly two checkpoints, {len(checkpoints)} given",
            hint=f"wiseft eval {example} ZEROSHOT FINETUNED --data DIR",
        )


def _require_mergeable(theta_0: NamedCheckpoint, theta_1: NamedCheckpoint, *, example: str) -> None:
    with open_checkpoint(theta_0.path) as reader_0, open_checkpoint(theta_1.path) as reader_1:
        try:
            compatibility.require_roles_in_order(reader_0, reader_1)
        except CheckpointError as error:
            command = ["wiseft", "eval", str(theta_1.path), str(theta_0.path)]
            raise CheckpointError(
                error.message,
                hint=f"name the zero-shot checkpoint first: {shlex.join(command)} {example} ...",
            ) from None
        compatibility.require_compatible(reader_0, reader_1)


def _require_same_task(theta_0: NamedCheckpoint, theta_1: NamedCheckpoint) -> None:
    """Reject an average of logits over different classes or images."""
    faults = [
        what
        for what, is_equal in (
            ("classes", theta_0.card.classes == theta_1.card.classes),
            (
                "preprocessing",
                canonical_preprocess(theta_0.preprocess)
                == canonical_preprocess(theta_1.preprocess),
            ),
        )
        if not is_equal
    ]
    if faults:
        raise CheckpointError(
            f"{theta_1.path}: has other {' and '.join(faults)} than {theta_0.path}, so their"
            " outputs cannot be averaged",
            hint="`wiseft diff` shows the differences",
        )


def descent_warnings(theta_0: NamedCheckpoint, theta_1: NamedCheckpoint) -> tuple[str, ...]:
    """Return reasons to doubt that the second was fine-tuned from the first."""
    with open_checkpoint(theta_0.path) as reader_0, open_checkpoint(theta_1.path) as reader_1:
        return tuple(compatibility.descent_warnings(reader_0, reader_1))

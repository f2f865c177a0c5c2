"""The weights to evaluate: checkpoints, merges of several, output ensembles.

Everything is decided from headers and cards; no tensor is read and torch is not imported.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.card import (
    Card,
    ClassEntry,
    canonical_preprocess,
)
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint, read_classifier_card
from wiseft_cli.checkpoint.shards import FILE_SUFFIX, INDEX_SUFFIX
from wiseft_cli.errors import CheckpointError, UsageError, counted
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.arithmetic import INTERPOLATED_DTYPES
from wiseft_cli.merging.fisher_file import open_fisher, require_fisher_of
from wiseft_cli.merging.inputs import (
    choose_copied,
    doubts,
    require_compatible_inputs,
    require_zeroshot_first,
)
from wiseft_cli.merging.model_merge import ModelMerge
from wiseft_cli.merging.settings import MergeSettings
from wiseft_cli.reporting.results import MergedBy, name_checkpoints

_HINT = "evaluate a checkpoint written by wiseft zeroshot-head, finetune or merge"


PLAIN = MergeSettings()
"""The interpolation of two checkpoints."""


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
class NamedFisher:
    """The Fisher file of a checkpoint, and the content digest of its tensors."""

    path: Path
    digest: str


@dataclass(frozen=True)
class WeightSet:
    """The weights of a row: a checkpoint, a merge, an output ensemble.

    Attributes:
        checkpoints: One; or the inputs of a merge, theta_0 first if the method has a base; or the
            two of an output ensemble, whose logits are averaged.
        alpha: Alpha of the merge; None if nothing is merged, or if the method has no alpha.
        settings: How the checkpoints are merged, apart from alpha.
        fishers: The Fisher file of each checkpoint, if the method needs them.
    """

    checkpoints: tuple[NamedCheckpoint, ...]
    alpha: Alpha | None = None
    settings: MergeSettings = PLAIN
    fishers: tuple[NamedFisher, ...] = ()

    @property
    def is_merged(self) -> bool:
        """Whether the checkpoints are merged."""
        return self.alpha is not None or self.settings.spec.default_alpha is None

    @property
    def is_ensemble(self) -> bool:
        """Whether the logits of the two checkpoints are averaged."""
        return not self.is_merged and len(self.checkpoints) > 1

    @property
    def merged_by(self) -> MergedBy | None:
        """The merge as results lines state it; None for the interpolation of two checkpoints."""
        n_finetuned = len(self.checkpoints) - self.settings.spec.has_base
        document = self.settings.document(n_finetuned) if self.is_merged else {}
        if not document:
            return None
        return MergedBy(
            document["method"],
            document.get("method_options", {}),
            tuple(document.get("weights", ())),
            tuple(fisher.digest for fisher in self.fishers),
        )

    @property
    def merge_key(self) -> str:
        """Identity of the merge, apart from alpha; equal for all alphas of one sweep."""
        files = [str(path) for path in (*self.paths, *(at.path for at in self.fishers))]
        return canonical_json([files, self.merged_by.key if self.merged_by else ""])

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
        names = [checkpoint.name for checkpoint in self.checkpoints]
        name = name_checkpoints(names, is_ensemble=self.is_ensemble, merged_by=self.merged_by)
        return name if self.alpha is None else f"{name} at alpha {self.alpha.text}"

    @property
    def classes(self) -> tuple[ClassEntry, ...]:
        """The classes of the head, the same for all checkpoints of a merge."""
        return self.checkpoints[0].card.classes

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """open_clip's preprocessing fields, the same for all checkpoints of a merge."""
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
        if reader.card is not None:
            return path
    raise CheckpointError(
        f"{path}: is sharded, and its index has no card, so it cannot be run", hint=_HINT
    )


def _read_checkpoint(path: Path, name: str) -> NamedCheckpoint:
    card = read_classifier_card(path)
    assert card.model is not None
    assert card.preprocess is not None
    assert card.digest is not None
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
    settings: MergeSettings | None = None,
    fishers: Sequence[Path] = (),
    output_ensemble: bool = False,
) -> tuple[WeightSet, ...]:
    """Return the checkpoints, or their merges at each alpha, as weight sets.

    Args:
        alphas: Alphas of the merges; empty if nothing is merged, or if the method has no alpha.
        settings: How to merge; None for the interpolation of the checkpoints if there are alphas.
        fishers: The Fisher file of each checkpoint, in their order.
        output_ensemble: Add the average of the two checkpoints' logits as the last weight set.
    Raises:
        UsageError: An ensemble without exactly two checkpoints, a wrong number of Fisher files, or
            a pattern of `--layer-alpha` that is not used.
        IncompatibleCheckpointsError: The checkpoints have different models, preprocessing, classes
            or tensors, or a Fisher file belongs to another checkpoint.
        CheckpointError: The zero-shot checkpoint is not the first.
    """
    inputs = tuple(checkpoints)
    rows = tuple(WeightSet((at,)) for at in inputs)
    if alphas or settings is not None:
        how = settings or PLAIN
        _require_mergeable(inputs, how)
        named = _read_fishers(inputs, fishers, how)
        rows = tuple(WeightSet(inputs, alpha, how, named) for alpha in alphas or (None,))
    if output_ensemble:
        _require_pair(inputs)
        _require_same_task(*inputs)
        rows = (*rows, WeightSet(inputs))
    return rows


def _require_pair(checkpoints: Sequence[NamedCheckpoint]) -> None:
    if len(checkpoints) != 2:
        raise UsageError(
            f"--output-ensemble averages exactly two checkpoints, {len(checkpoints)} given",
            hint="wiseft eval --output-ensemble ZEROSHOT FINETUNED --data DIR",
        )


def _require_mergeable(checkpoints: Sequence[NamedCheckpoint], settings: MergeSettings) -> None:
    """Reject checkpoints that `wiseft merge` would reject."""
    with ExitStack() as stack:
        inputs = [
            stack.enter_context(open_checkpoint(at.path, allow_shards=True)) for at in checkpoints
        ]
        if settings.spec.has_base:
            _require_zeroshot_first(inputs)
        require_compatible_inputs(inputs, converts=False, copies_missing=False)
        choose_copied(inputs, has_base=settings.spec.has_base)
        sizes = {
            name: prod(info.shape)
            for name, info in inputs[0].tensors.items()
            if info.dtype in INTERPOLATED_DTYPES
        }
        # Raises if a pattern of --layer-alpha is not used, or if the model has no blocks.
        ModelMerge(settings, len(inputs) - settings.spec.has_base, sizes)


def _require_zeroshot_first(inputs: Sequence[CheckpointReader]) -> None:
    try:
        require_zeroshot_first(inputs)
    except CheckpointError as error:
        hint = f"{error.hint} --alpha 0:1:0.1 ...".replace("wiseft merge", "wiseft eval")
        raise CheckpointError(error.message, hint=hint) from None


def _read_fishers(
    checkpoints: Sequence[NamedCheckpoint], paths: Sequence[Path], settings: MergeSettings
) -> tuple[NamedFisher, ...]:
    """Check that there is one Fisher file per checkpoint if the method needs them, else none."""
    n_expected = len(checkpoints) if settings.spec.takes_fisher else 0
    if len(paths) != n_expected:
        raise UsageError(
            f"method {settings.method}: {counted(len(paths), 'file')} given with --fisher, expected"
            f" {n_expected}",
            hint="give one --fisher per checkpoint, in their order; `wiseft fisher` computes them"
            if n_expected
            else "only the method fisher takes --fisher",
        )
    named = []
    for checkpoint, path in zip(checkpoints, paths, strict=bool(paths)):
        with (
            open_fisher(path) as fisher,
            open_checkpoint(checkpoint.path, allow_shards=True) as reader,
        ):
            named.append(NamedFisher(path, require_fisher_of(fisher, reader).digest))
    return tuple(named)


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


def descent_warnings(
    checkpoints: Sequence[NamedCheckpoint], *, has_base: bool = True
) -> tuple[str, ...]:
    """Return reasons to doubt that the checkpoints of a merge belong together.

    Args:
        has_base: Whether the first one is the zero-shot checkpoint of the others.
    """
    with ExitStack() as stack:
        inputs = [
            stack.enter_context(open_checkpoint(at.path, allow_shards=True)) for at in checkpoints
        ]
        return tuple(doubts(inputs, has_base=has_base))

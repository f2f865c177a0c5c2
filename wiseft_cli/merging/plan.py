"""Plan a merge from headers and cards: the source of every tensor, and the card of the result.

No tensor is read here, and compatibility is not checked: `compatibility.py` has done that before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wiseft_cli import __version__
from wiseft_cli.checkpoint.card import (
    METADATA_KEY,
    Card,
    HistoryEntry,
    HistoryInput,
    join_histories,
)
from wiseft_cli.checkpoint.digest import UNKNOWN_DIGEST
from wiseft_cli.checkpoint.format import INTEGER_DTYPES, TensorInfo, TensorSpec
from wiseft_cli.checkpoint.reader import CheckpointReader, shared_entries
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.arithmetic import INTERPOLATED_DTYPES

STORED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Dtypes that a merge can convert to: name of the option's value, safetensors dtype."""

_ROLES = ("zeroshot", "finetuned")
"""Roles in the history of inputs without a card."""


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the output.

    Attributes:
        spec: Name, dtype and shape as written.
        infos: The tensor in every input, None where an input lacks it.
        source: Index of the input it is copied from; None if it is interpolated.
    """

    spec: TensorSpec
    infos: tuple[TensorInfo | None, ...]
    source: int | None

    @property
    def input_bytes(self) -> int:
        """Number of bytes to read."""
        return sum(info.nbytes for info in self.infos if info)


@dataclass(frozen=True)
class MergePlan:
    """Every tensor of a merge, and everything that its card needs besides alpha.

    Attributes:
        inputs: theta_0 and theta_1.
        steps: One step per tensor, sorted by name.
        options: Options besides alpha that affect the result, for the history.
    """

    inputs: tuple[CheckpointReader, ...]
    steps: tuple[Step, ...]
    options: Mapping[str, Any]

    @property
    def specs(self) -> list[TensorSpec]:
        """The tensors of the output."""
        return [step.spec for step in self.steps]

    @property
    def input_bytes(self) -> int:
        """Number of bytes to read from all inputs."""
        return sum(step.input_bytes for step in self.steps)

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of integer and boolean tensors that every input has; they come from the last."""
        common = [step.spec for step in self.steps if None not in step.infos]
        return tuple(spec.name for spec in common if spec.dtype in INTEGER_DTYPES)

    @property
    def opaque(self) -> tuple[str, ...]:
        """Names of common tensors in dtypes without arithmetic; they must be equal."""
        common = [step.spec for step in self.steps if None not in step.infos]
        known = INTEGER_DTYPES | INTERPOLATED_DTYPES
        return tuple(spec.name for spec in common if spec.dtype not in known)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of tensors that some inputs lack; they are copied."""
        return tuple(step.spec.name for step in self.steps if None in step.infos)

    @property
    def metadata(self) -> dict[str, str]:
        """Entries of `__metadata__` besides the card that are equal in all inputs."""
        shared = shared_entries([reader.metadata for reader in self.inputs])
        return {key: value for key, value in shared.items() if key != METADATA_KEY}

    def card(self, alpha: Alpha, digests: Sequence[str] | None = None) -> Card:
        """Return the card of the merge at one alpha.

        Model and classes are those of the fine-tuned input, or of the other one if that has no
        card. If no card covers all tensors of the result, the new card has no model and no
        classes, so that the result is not mistaken for a classifier.

        Args:
            digests: Content digests of the inputs; None for placeholders of the same width.
        """
        known = digests or [UNKNOWN_DIGEST] * len(self.inputs)
        inputs = tuple(
            HistoryInput(reader.card.role if reader.card else role, digest)
            for reader, role, digest in zip(self.inputs, _ROLES, known, strict=True)
        )
        entry = HistoryEntry("merge", __version__, {"alpha": alpha.text, **self.options}, inputs)
        cards = [reader.card for reader in self.inputs if reader.card]
        card = card_of_result(self.inputs)
        extra = shared_entries([card.extra for card in cards]) if card else {}
        return replace(
            card or Card(role="merged"),
            role="merged",
            alpha=alpha.text,
            history=(*join_histories(*cards), entry),
            digest=None,
            extra=extra,
        )


def plan_merge(inputs: Sequence[CheckpointReader], *, dtype: str | None = None) -> MergePlan:
    """Decide where every tensor of a merge comes from.

    Args:
        inputs: theta_0 and theta_1, in this order.
        dtype: A key of `STORED_DTYPES`: the dtype to store floating tensors in, copied ones
            included. None keeps the dtype of each.
    """
    names = sorted({name for reader in inputs for name in reader.tensors})
    stored = STORED_DTYPES[dtype] if dtype else None
    steps = tuple(
        _plan_step([reader.tensors.get(name) for reader in inputs], stored) for name in names
    )
    options: dict[str, Any] = {"dtype": dtype} if dtype else {}
    if any(None in step.infos for step in steps):
        options["missing"] = "copy"
    return MergePlan(tuple(inputs), steps, options)


def _plan_step(infos: Sequence[TensorInfo | None], stored: str | None) -> Step:
    source, info = [(index, info) for index, info in enumerate(infos) if info][-1]
    is_floating = info.dtype in INTERPOLATED_DTYPES
    spec = TensorSpec(info.name, stored if stored and is_floating else info.dtype, info.shape)
    is_interpolated = is_floating and None not in infos
    return Step(spec, tuple(infos), None if is_interpolated else source)


def card_of_result(inputs: Sequence[CheckpointReader]) -> Card | None:
    """Return the card that describes a merge of these inputs, or None if no card does.

    A card describes the result only if its file has every tensor of the result. The last input,
    the fine-tuned one, takes precedence.
    """
    names = {name for reader in inputs for name in reader.tensors}
    for reader in reversed(inputs):
        if reader.card is not None and len(reader.tensors) == len(names):
            return reader.card
    return None

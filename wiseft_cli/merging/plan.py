"""Plan a merge from headers and cards: the source of every tensor, and the card of the result.

No tensor is read here except those of LoRA adapters, for their digests. Compatibility is not
checked: `compatibility.py` has done that before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
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
from wiseft_cli.merging.model_merge import ModelMerge
from wiseft_cli.merging.settings import MergeSettings

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
        source: Index of the input it is copied from; None if it is merged.
        fishers: Its Fisher values for every input; empty if there are none.
    """

    spec: TensorSpec
    infos: tuple[TensorInfo | None, ...]
    source: int | None
    fishers: tuple[TensorInfo, ...] = ()

    @property
    def input_bytes(self) -> int:
        """Number of bytes to read."""
        return sum(info.nbytes for info in (*self.infos, *self.fishers) if info)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.spec.shape)


@dataclass(frozen=True)
class MergePlan:
    """Every tensor of a merge, and everything that its card needs besides alpha.

    Attributes:
        inputs: theta_0, theta_1, ...; for a method without base, the checkpoints.
        fishers: Fisher values of every input; empty if the method takes none.
        steps: One step per tensor, sorted by name.
        options: Options besides alpha, method and weights that affect the result.
        merge: The method, applied to the tensors that are merged.
    """

    inputs: tuple[CheckpointReader, ...]
    fishers: tuple[CheckpointReader, ...]
    steps: tuple[Step, ...]
    options: Mapping[str, Any]
    merge: ModelMerge

    @property
    def sources(self) -> tuple[CheckpointReader, ...]:
        """Every file that is read: the inputs, then their Fisher values."""
        return (*self.inputs, *self.fishers)

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
        """Names of integer and boolean tensors that every input has; they are copied."""
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

    def card(self, alpha: Alpha | None, digests: Sequence[str] | None = None) -> Card:
        """Return the card of the merge at one alpha.

        Model and classes are those of the last fine-tuned input, or of another one if that has no
        card. If no card covers all tensors of the result, the new card has no model and no
        classes, so that the result is not mistaken for a classifier. If the order of the
        fine-tuned inputs does not matter, it is that of their digests, so that permuting them does
        not change a byte; recipe and seed are kept if all fine-tuned inputs have the same.

        Args:
            digests: Content digests of `sources`; None for placeholders of the same width.
        """
        readers = self._ordered(lambda index: _card_digest(self.inputs[index]))
        card = card_of_result([self.inputs[index] for index in readers])
        if card and self.merge.n_finetuned > 1:
            card = self._with_common_training(card)
        cards = [one for index in readers if (one := self.inputs[index].card)]
        method = self.merge.settings.document(self.merge.n_finetuned)
        order = self._ordered(lambda index: digests[index]) if digests else readers
        if "weights" in method:
            n_base = len(self.inputs) - self.merge.n_finetuned
            weights = method["weights"]
            method["weights"] = [weights[index - n_base] for index in order if index >= n_base]
        of_alpha = {"alpha": alpha.text} if alpha else {}
        entry = HistoryEntry(
            "merge" if self.merge.settings.spec.has_base else "soup",
            __version__,
            {**of_alpha, **method, **self.options},
            self._history_inputs(order, digests),
        )
        return replace(
            card or Card(role="merged"),
            role="merged",
            alpha=alpha.text if alpha else None,
            method=method.get("method"),
            method_options=method.get("method_options"),
            weights=tuple(method["weights"]) if "weights" in method else None,
            history=(*join_histories(*cards), entry),
            digest=None,
            extra=shared_entries([one.extra for one in cards]) if card else {},
        )

    def _with_common_training(self, card: Card) -> Card:
        """Keep recipe and seed if those of all fine-tuned inputs are the same."""
        tuned = self.inputs[len(self.inputs) - self.merge.n_finetuned :]
        recipes = [reader.card.recipe if reader.card else None for reader in tuned]
        seeds = [reader.card.seed if reader.card else None for reader in tuned]
        return replace(
            card,
            recipe=recipes[0] if all(recipe == recipes[0] for recipe in recipes) else None,
            seed=seeds[0] if len(set(seeds)) == 1 else None,
        )

    def _ordered(self, key: Callable[[int], str]) -> list[int]:
        """Return the inputs in the order in which a card lists them."""
        n_base = len(self.inputs) - self.merge.n_finetuned
        tuned = list(range(n_base, len(self.inputs)))
        if self.merge.settings.spec.is_symmetric and len(tuned) > 1:
            weights = self.merge.settings.weights
            tuned.sort(key=lambda i: (key(i), weights[i - n_base].value if weights else 0.0))
        return [*range(n_base), *tuned]

    def _history_inputs(
        self, order: Sequence[int], digests: Sequence[str] | None
    ) -> tuple[HistoryInput, ...]:
        known = digests or [UNKNOWN_DIGEST] * len(self.sources)
        n_base = len(self.inputs) - self.merge.n_finetuned
        inputs = []
        for index in order:
            card = self.inputs[index].card
            role = card.role if card else _ROLES[index >= n_base]
            inputs.append(HistoryInput(role, known[index]))
        n = len(self.inputs)
        inputs += [HistoryInput("fisher", known[n + i]) for i in order if self.fishers]
        return tuple(inputs)


def _card_digest(reader: CheckpointReader) -> str:
    return (reader.card.digest or "") if reader.card else ""


def plan_merge(
    inputs: Sequence[CheckpointReader],
    *,
    settings: MergeSettings | None = None,
    fishers: Sequence[CheckpointReader] = (),
    dtype: str | None = None,
    copied: Mapping[str, int] | None = None,
    selection: Mapping[str, Any] | None = None,
) -> MergePlan:
    """Decide where every tensor of a merge comes from.

    Args:
        inputs: theta_0, theta_1, ..., in this order; for a method without base, the checkpoints.
        settings: From `resolve_settings`; None for the interpolation of two inputs.
        fishers: Fisher values of every input.
        dtype: A key of `STORED_DTYPES`: the dtype to store floating tensors in, copied ones
            included. None keeps the dtype of each.
        copied: Index of the input that a tensor which is not merged is copied from, where it is
            not the last one that has it.
        selection: For the history, the image set that chose the inputs.
    Raises:
        UsageError: A pattern of `--layer-alpha` is not used.
        CheckpointError: The method cannot be applied to these tensors.
    """
    settings = settings or MergeSettings()
    names = sorted({name for reader in inputs for name in reader.tensors})
    stored = STORED_DTYPES[dtype] if dtype else None
    steps = []
    for name in names:
        step = _plan_step([reader.tensors.get(name) for reader in inputs], stored)
        if step.source is not None:
            step = replace(step, source=(copied or {}).get(name, step.source))
        elif all(name in fisher.tensors for fisher in fishers):
            step = replace(step, fishers=tuple(fisher.tensors[name] for fisher in fishers))
        steps.append(step)
    options: dict[str, Any] = {"dtype": dtype} if dtype else {}
    if any(None in step.infos for step in steps):
        options["missing"] = "copy"
    changes = [reader.changes for reader in inputs]
    if any("match_names" in change for change in changes):
        options["match_names"] = True
    if adapters := sorted(change["adapter"] for change in changes if "adapter" in change):
        options["adapters"] = adapters
    if selection is not None:
        options["selection"] = dict(selection)
    n_finetuned = len(inputs) - int(settings.spec.has_base)
    sizes = {step.spec.name: step.size for step in steps if step.source is None}
    merge = ModelMerge(settings, n_finetuned, sizes)
    return MergePlan(tuple(inputs), tuple(fishers), tuple(steps), options, merge)


def _plan_step(infos: Sequence[TensorInfo | None], stored: str | None) -> Step:
    source, info = [(index, info) for index, info in enumerate(infos) if info][-1]
    is_floating = info.dtype in INTERPOLATED_DTYPES
    spec = TensorSpec(info.name, stored if stored and is_floating else info.dtype, info.shape)
    is_merged = is_floating and None not in infos
    return Step(spec, tuple(infos), None if is_merged else source)


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

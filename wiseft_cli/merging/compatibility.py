"""Compare two checkpoints, name the likely cause of differences, and reject what cannot merge.

Almost everything is decided from headers and cards. Data is read only of tensors that must be
equal: in dtypes without arithmetic, and parts of a weight (`factored.py`). `distance.py` compares
values.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wiseft_cli.checkpoint.card import Card, canonical_preprocess
from wiseft_cli.checkpoint.digest import algorithm_of, shorten
from wiseft_cli.checkpoint.reader import (
    CheckpointReader,
    has_equal_bytes,
    require_whole_checkpoint,
)
from wiseft_cli.errors import CheckpointError, IncompatibleCheckpointsError, counted
from wiseft_cli.merging.arithmetic import INTERPOLATED_DTYPES
from wiseft_cli.merging.causes import ZERO_3, find_cause, find_renaming
from wiseft_cli.merging.factored import (
    FactoredWeight,
    find_factored_weights,
    require_whole_weights,
)
from wiseft_cli.merging.plan import card_of_result


@dataclass(frozen=True)
class Comparison:
    """Differences between the headers and cards of two checkpoints.

    Attributes:
        theta_0: The first checkpoint.
        theta_1: The second checkpoint.
        only_0: Names of tensors that only theta_0 has, sorted.
        only_1: Names of tensors that only theta_1 has, sorted.
        shapes: Names of common tensors with different shapes.
        dtypes: Names of common tensors with different dtypes.
        card: Differences in classes, model and preprocessing, as text; none unless both have a
            card.
        n_common: Number of common tensors.
    """

    theta_0: CheckpointReader
    theta_1: CheckpointReader
    only_0: tuple[str, ...]
    only_1: tuple[str, ...]
    shapes: tuple[str, ...]
    dtypes: tuple[str, ...]
    card: tuple[str, ...]
    n_common: int

    @property
    def has_equal_content(self) -> bool | None:
        """Whether the cards' content digests are equal; None without two of the same hash."""
        card_0, card_1 = self.theta_0.card, self.theta_1.card
        if not card_0 or not card_1:
            return None
        is_comparable = algorithm_of(card_0.digest) == algorithm_of(card_1.digest)
        return card_0.digest == card_1.digest if is_comparable else None

    def describe(self) -> list[str]:
        """Return one line per difference, those of the cards first."""
        lines = list(self.card)
        lines += [f"{name}: only in {self.theta_0.path}" for name in self.only_0]
        lines += [f"{name}: only in {self.theta_1.path}" for name in self.only_1]
        for name in sorted({*self.shapes, *self.dtypes}):
            a, b = self.theta_0.tensors[name], self.theta_1.tensors[name]
            if name in self.shapes:
                lines.append(f"{name}: shape {b.shape}, expected {a.shape}")
            if name in self.dtypes:
                lines.append(f"{name}: dtype {b.dtype}, expected {a.dtype}")
        return lines

    @property
    def factored(self) -> list[FactoredWeight]:
        """Weights that either file stores as several tensors, by module."""
        found = {
            weight
            for reader in (self.theta_0, self.theta_1)
            for weight in find_factored_weights(reader.tensors)
        }
        return sorted(found, key=lambda weight: (weight.module, weight.names))

    def likely_cause(self) -> str | None:
        """Return the likely cause of the differences and its remedy, or None if unknown."""
        for side, reader in (("first", self.theta_0), ("second", self.theta_1)):
            if reader.partial is not None:
                what, remedy = reader.partial
                return f"the {side} file is {what}; {remedy}"
        tensors_0, tensors_1 = self.theta_0.tensors, self.theta_1.tensors
        if self.only_0 or self.only_1:
            return find_cause(tensors_0, tensors_1)
        if self.shapes or (self.dtypes and all(map(self._is_convertible, self.dtypes))):
            common = tensors_0.keys() & tensors_1.keys()
            return find_cause(*({n: t[n] for n in common} for t in (tensors_0, tensors_1)))
        return None

    def without_accepted(self, *, converts: bool, copies_missing: bool) -> Comparison:
        """Return the differences that a merge with these options does not accept."""
        # Files without a common tensor, or with a prefix in one, are a mistake even then.
        accepts_missing = (
            copies_missing
            and self.n_common > 0
            and find_renaming(self.theta_0.tensors, self.theta_1.tensors) is None
        )
        return replace(
            self,
            only_0=() if accepts_missing else self.only_0,
            only_1=() if accepts_missing else self.only_1,
            dtypes=tuple(
                name for name in self.dtypes if not (converts and self._is_convertible(name))
            ),
        )

    def _is_convertible(self, name: str) -> bool:
        infos = self.theta_0.tensors[name], self.theta_1.tensors[name]
        return all(info.dtype in INTERPOLATED_DTYPES for info in infos)


def compare(theta_0: CheckpointReader, theta_1: CheckpointReader) -> Comparison:
    """Compare two checkpoints by their headers and cards.

    Raises:
        CheckpointError: A card is damaged.
    """
    names_0, names_1 = theta_0.tensors.keys(), theta_1.tensors.keys()
    common = sorted(names_0 & names_1)
    pairs = [(theta_0.tensors[name], theta_1.tensors[name]) for name in common]
    card_0, card_1 = theta_0.card, theta_1.card
    return Comparison(
        theta_0=theta_0,
        theta_1=theta_1,
        only_0=tuple(sorted(names_0 - names_1)),
        only_1=tuple(sorted(names_1 - names_0)),
        shapes=tuple(a.name for a, b in pairs if a.shape != b.shape),
        dtypes=tuple(a.name for a, b in pairs if a.dtype != b.dtype),
        card=tuple(_compare_cards(card_0, card_1)) if card_0 and card_1 else (),
        n_common=len(common),
    )


def _compare_cards(card_0: Card, card_1: Card) -> Iterator[str]:
    ids_0, ids_1 = ([entry.id for entry in card.classes] for card in (card_0, card_1))
    if len(ids_0) != len(ids_1):
        yield f"classes: {len(ids_1)}, expected {len(ids_0)}"
    else:
        changed = [i for i, (a, b) in enumerate(zip(ids_0, ids_1, strict=True)) if a != b]
        if changed:
            i = changed[0]
            yield (
                f"classes: {len(changed)} of {len(ids_0)} differ, the first at index {i}: "
                f"{ids_1[i]!r}, expected {ids_0[i]!r}"
            )
    if card_0.model is not None and card_1.model is not None:
        yield from _compare_settings("model", card_0.model.config, card_1.model.config)
    if card_0.preprocess is not None and card_1.preprocess is not None:
        yield from _compare_settings(
            "preprocessing",
            canonical_preprocess(card_0.preprocess),
            canonical_preprocess(card_1.preprocess),
        )


def _compare_settings(
    what: str, settings_0: Mapping[str, Any], settings_1: Mapping[str, Any]
) -> Iterator[str]:
    """Yield one line per entry that differs; nested entries have dotted names."""
    for key in sorted({*settings_0, *settings_1}):
        a, b = settings_0.get(key), settings_1.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _compare_settings(f"{what}.{key}", a, b)
        elif a != b:
            yield f"{what}.{key}: {json.dumps(b)}, expected {json.dumps(a)}"


def require_compatible(
    theta_0: CheckpointReader,
    theta_1: CheckpointReader,
    *,
    converts: bool = False,
    copies_missing: bool = False,
) -> None:
    """Reject two checkpoints that cannot be merged, with all differences in one error.

    Args:
        converts: Whether floating dtypes may differ, because all tensors are converted to one.
        copies_missing: Whether tensors that only one checkpoint has are accepted.
    Raises:
        IncompatibleCheckpointsError: They differ, or store a weight as several tensors.
        NotACheckpointError: One is a shard of a checkpoint, or the saved state of a run.
        CheckpointError: A card is damaged.
    """
    for reader in (theta_0, theta_1):
        require_whole_checkpoint(reader)
    found = compare(theta_0, theta_1).without_accepted(
        converts=converts, copies_missing=copies_missing
    )
    differences = found.describe()
    if not differences:
        require_whole_weights(theta_0, theta_1, converts=converts)
        return
    n_tensors = len({*found.only_0, *found.only_1, *found.shapes, *found.dtypes})
    n_all = len({*theta_0.tensors, *theta_1.tensors})
    where = f" at {n_tensors} of {counted(n_all, 'tensor')}" if n_tensors else ""
    raise IncompatibleCheckpointsError(
        f"{theta_1.path} does not match {theta_0.path}{where}",
        faults=differences,
        hint=found.likely_cause(),
    )


def require_roles_in_order(theta_0: CheckpointReader, theta_1: CheckpointReader) -> None:
    """Reject a zero-shot checkpoint in the place of the fine-tuned one.

    Raises:
        CheckpointError: The second checkpoint is zero-shot and the first is not.
    """
    card_0, card_1 = theta_0.card, theta_1.card
    if card_0 and card_1 and card_1.role == "zeroshot" and card_0.role != "zeroshot":
        raise CheckpointError(
            f"{theta_0.path}: is a {card_0.role} checkpoint, expected a zero-shot checkpoint",
            hint="name the zero-shot checkpoint first: wiseft merge "
            + shlex.join([str(theta_1.path), str(theta_0.path)]),
        )


def descent_warnings(theta_0: CheckpointReader, theta_1: CheckpointReader) -> Iterator[str]:
    """Yield reasons to doubt that the second checkpoint was fine-tuned from the first.

    Any two checkpoints can be interpolated, but WiSE-FT's results are about a zero-shot model
    and a model fine-tuned from it (arXiv:2109.01903, section 5).
    """
    card_0, card_1 = theta_0.card, theta_1.card
    for reader in (theta_0, theta_1):
        n_empty = sum(info.nbytes == 0 for info in reader.tensors.values())
        if 2 * n_empty > len(reader.tensors):
            yield (
                f"{reader.path}: {n_empty} of {counted(len(reader.tensors), 'tensor')} are empty, "
                f"as {ZERO_3}"
            )
    if theta_0.files[0].samefile(theta_1.files[0]):
        yield f"{theta_0.path} and {theta_1.path} are the same file, so every merge equals it"
    if card_0 is None or card_1 is None:
        yield from _missing_card_warnings(theta_0, theta_1)
        return
    parents = zeroshot_parents(card_1)
    if card_0.role != "zeroshot":
        kinds = _describe_descendants(card_0, card_1)
        yield (
            f"{theta_0.path} and {theta_1.path} are {kinds}: alpha 0 is the first of them, not a "
            "zero-shot model"
        )
    elif parents and card_0.digest not in parents:
        if algorithm_of(parents[-1]) != algorithm_of(card_0.digest):
            yield (
                f"{theta_1.path} was fine-tuned from {parents[-1][:19]}, and {theta_0.path} is "
                f"{str(card_0.digest)[:19]}: digests by two hashes cannot be compared"
            )
            return
        yield (
            f"{theta_1.path} was fine-tuned from another zero-shot checkpoint "
            f"({shorten(parents[-1])}) than {theta_0.path} ({shorten(card_0.digest)})"
        )


def zeroshot_parents(card: Card) -> list[str]:
    """Return the digests of the zero-shot checkpoints that a checkpoint was made from."""
    return [
        item.digest
        for entry in card.history
        if entry.command in ("finetune", "merge", "convert")
        for item in entry.inputs
        if item.role == "zeroshot"
    ]


def _describe_descendants(card_0: Card, card_1: Card) -> str:
    """Return the roles of two checkpoints that are not zero-shot, and their parents."""
    parents_0, parents_1 = zeroshot_parents(card_0), zeroshot_parents(card_1)
    roles = f"a {card_0.role} and a {card_1.role} checkpoint"
    if card_0.role == card_1.role:
        roles = f"two {card_0.role} checkpoints"
    if shared := [digest for digest in parents_1 if digest in parents_0]:
        return f"{roles} with the same zero-shot parent {shorten(shared[-1])}"
    if parents_0 and parents_1:
        digests = f"{shorten(parents_0[-1])} and {shorten(parents_1[-1])}"
        return f"{roles} with different zero-shot parents {digests}"
    return f"{roles} without a common zero-shot parent"


def _missing_card_warnings(theta_0: CheckpointReader, theta_1: CheckpointReader) -> Iterator[str]:
    """Yield the consequence for the result's card if only one of two checkpoints has a card."""
    for reader, other in ((theta_0, theta_1), (theta_1, theta_0)):
        if reader.card is not None or other.card is None:
            continue
        if card_of_result([theta_0, theta_1]) is not None:
            yield (
                f"{reader.path} has no wiseft card: the result takes its classes and model from "
                "the other file"
            )
        else:
            unknown = len(reader.tensors.keys() - other.tensors.keys())
            yield (
                f"{reader.path} has no wiseft card, and {counted(unknown, 'tensor')} that "
                f"{other.path} lacks: the result is not a classifier, and its card has no model"
            )


def require_equal_bytes(
    theta_0: CheckpointReader, theta_1: CheckpointReader, names: Sequence[str]
) -> None:
    """Reject tensors that cannot be interpolated and differ.

    Their dtypes have no arithmetic here: packed 4-bit and 6-bit floats, complex numbers, scales.

    Raises:
        IncompatibleCheckpointsError: A tensor of `names` differs.
    """
    faults = [
        f"{name}: dtype {theta_0.tensors[name].dtype} cannot be interpolated, and the bytes differ"
        for name in names
        if not has_equal_bytes(theta_0, theta_1, name)
    ]
    if faults:
        raise IncompatibleCheckpointsError(
            f"{theta_1.path} cannot be merged with {theta_0.path}",
            faults=faults,
            hint="convert these tensors to float16, bfloat16 or float32 in both files first",
        )

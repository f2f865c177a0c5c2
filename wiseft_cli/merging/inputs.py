"""Checks over all inputs of a merge: compatibility, roles, descent, and tensors to copy.

The checks of two inputs are in `compatibility.py`. Of more inputs, those that differ from most of
the others are named.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from wiseft_cli.checkpoint.digest import algorithm_of, shorten
from wiseft_cli.checkpoint.format import INTEGER_DTYPES
from wiseft_cli.checkpoint.reader import (
    CheckpointReader,
    has_equal_bytes,
    require_whole_checkpoint,
)
from wiseft_cli.errors import (
    CheckpointError,
    IncompatibleCheckpointsError,
    counted,
    list_some,
)
from wiseft_cli.merging.arithmetic import INTERPOLATED_DTYPES
from wiseft_cli.merging.compatibility import (
    Comparison,
    compare,
    descent_warnings,
    require_compatible,
    zeroshot_parents,
)
from wiseft_cli.merging.factored import require_whole_weights

_COUNTERS = ".num_batches_tracked"
"""BatchNorm counts its training steps, which differ between runs of different lengths."""


def require_compatible_inputs(
    inputs: Sequence[CheckpointReader], *, converts: bool, copies_missing: bool
) -> None:
    """Reject inputs that cannot be merged, with all differences in one error.

    Args:
        converts: Whether floating dtypes may differ, because all tensors are converted to one.
        copies_missing: Whether tensors that only some inputs have are accepted.
    Raises:
        IncompatibleCheckpointsError: They differ, or store a weight as several tensors.
        NotACheckpointError: One is a shard of a checkpoint, or another kind of file.
        CheckpointError: A card is damaged.
    """
    if len(inputs) == 2:
        require_compatible(*inputs, converts=converts, copies_missing=copies_missing)
        return
    for reader in inputs:
        require_whole_checkpoint(reader)
    pairs = {
        index: [
            compare(reader, other).without_accepted(
                converts=converts, copies_missing=copies_missing
            )
            for other in inputs
        ]
        for index, reader in enumerate(inputs)
    }
    n_agreeing = [sum(not found.describe() for found in pairs[i]) for i in range(len(inputs))]
    reference = n_agreeing.index(max(n_agreeing))
    wrong = [found for found in pairs[reference] if found.describe()]
    if wrong:
        _raise_incompatible(inputs[reference], wrong, n_agreeing[reference] - 1)
    for other in inputs[1:]:
        require_whole_weights(inputs[0], other, converts=converts)


def _raise_incompatible(
    reference: CheckpointReader, wrong: Sequence[Comparison], n_agreeing: int
) -> None:
    faults = []
    for found in wrong:
        lines = found.describe()
        faults += [f"{found.theta_1.path}: {line}" for line in list_some(lines, limit=4)]
    names = ", ".join(list_some([str(found.theta_1.path) for found in wrong], limit=4))
    others = (
        f"{reference.path} and the {counted(n_agreeing, 'input')} like it"
        if n_agreeing
        else str(reference.path)
    )
    cause = wrong[0].likely_cause()
    raise IncompatibleCheckpointsError(
        f"{names} {'does' if len(wrong) == 1 else 'do'} not match {others}",
        faults=faults,
        hint=cause
        and f"of {reference.path} (first file) and {wrong[0].theta_1.path} (second file), {cause}",
    )


def require_zeroshot_first(inputs: Sequence[CheckpointReader]) -> None:
    """Reject a zero-shot checkpoint in the place of a fine-tuned one.

    Raises:
        CheckpointError: A later checkpoint is zero-shot and the first is not.
    """
    card_0 = inputs[0].card
    for index, reader in enumerate(inputs[1:], start=1):
        if card_0 and reader.card and reader.card.role == "zeroshot" != card_0.role:
            others = [*inputs[:index], *inputs[index + 1 :]]
            command = ["wiseft", "merge", *(str(one.path) for one in (reader, *others))]
            raise CheckpointError(
                f"{inputs[0].path}: is a {card_0.role} checkpoint, expected a zero-shot checkpoint",
                hint=f"name the zero-shot checkpoint first: {shlex.join(command)}",
            )


def doubts(inputs: Sequence[CheckpointReader], *, has_base: bool) -> list[str]:
    """Return reasons to doubt that these inputs belong together."""
    if has_base:
        found = [text for tuned in inputs[1:] for text in descent_warnings(inputs[0], tuned)]
    else:
        found = list(_soup_warnings(inputs))
    tuned = inputs[int(has_base) :]
    for index, reader in enumerate(tuned):
        for other in tuned[:index]:
            if reader.files[0].samefile(other.files[0]):
                found.append(f"{other.path} and {reader.path} are the same file, given twice")
    return list(dict.fromkeys(found))


def _soup_warnings(inputs: Sequence[CheckpointReader]) -> Iterator[str]:
    parents_by_hash: dict[str, dict[str, CheckpointReader]] = {}
    for reader in inputs:
        if reader.card is None:
            continue
        if reader.card.role == "zeroshot":
            yield (
                f"{reader.path} is a zero-shot checkpoint and is averaged like the others; --base "
                "merges the mean of the others with it"
            )
        elif digests := zeroshot_parents(reader.card):
            parents = parents_by_hash.setdefault(algorithm_of(digests[-1]), {})
            parents.setdefault(digests[-1], reader)
    # Digests by two hashes cannot be compared.
    for parents in (found for found in parents_by_hash.values() if len(found) > 1):
        (digest_0, first), (digest_1, second), *_ = parents.items()
        yield (
            f"{second.path} was fine-tuned from another zero-shot checkpoint "
            f"({shorten(digest_1)}) than {first.path} ({shorten(digest_0)})"
        )


def choose_copied(inputs: Sequence[CheckpointReader], *, has_base: bool) -> Mapping[str, int]:
    """Return the input that each tensor comes from which several inputs have and none merges.

    Integers and booleans come from the fine-tuned inputs, and these must agree; of BatchNorm's
    counters the largest is taken. Tensors that only some inputs have must agree where they are.
    Only these tensors are read.

    Args:
        has_base: Whether the first input is the zero-shot checkpoint.
    Raises:
        IncompatibleCheckpointsError: A tensor differs between the inputs that it could come from.
    """
    n_base = int(has_base)
    if len(inputs) == 1 + n_base:
        return {}
    names = sorted({name for reader in inputs for name in reader.tensors})
    copied, faults = {}, []
    for name in names:
        having = [index for index, reader in enumerate(inputs) if name in reader.tensors]
        if len(having) == len(inputs):
            if inputs[0].tensors[name].dtype in INTERPOLATED_DTYPES:
                continue
            if inputs[0].tensors[name].dtype in INTEGER_DTYPES:
                having = having[n_base:]
        if name.endswith(_COUNTERS) and _is_counter(inputs[having[-1]], name):
            values = {index: int(inputs[index].read_array(name).item()) for index in having}
            copied[name] = max(having, key=lambda index: (values[index], index))
            continue
        copied[name] = having[-1]
        faults += [
            f"{name}: {inputs[index].path} and {inputs[having[-1]].path}"
            for index in having[:-1]
            if not _is_equal(inputs[index], inputs[having[-1]], name)
        ]
    if faults:
        raise IncompatibleCheckpointsError(
            "tensors that are copied and not merged (integers, or missing in some inputs) differ",
            faults=faults,
            hint="make these tensors equal in all inputs, or merge the inputs two at a time",
        )
    return copied


def _is_counter(reader: CheckpointReader, name: str) -> bool:
    info = reader.tensors[name]
    return info.dtype in INTEGER_DTYPES and info.shape in ((), (1,))


def _is_equal(first: CheckpointReader, second: CheckpointReader, name: str) -> bool:
    a, b = first.tensors[name], second.tensors[name]
    return (a.dtype, a.shape) == (b.dtype, b.shape) and has_equal_bytes(first, second, name)

"""Merge an adapter whose modules have other names than the base model's tensors.

An adapter is trained on transformers' modules, and the base model may be stored under the names
of open_clip, as every checkpoint of wiseft is. The adapter is applied to a view of the base with
the names of transformers, and the result is read under the names of the base again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from wiseft_cli import __version__
from wiseft_cli.checkpoint.card import Card, HistoryEntry, HistoryInput, join_histories
from wiseft_cli.checkpoint.reader import (
    CheckpointReader,
    open_checkpoint,
    read_content,
    require_card_digest,
)
from wiseft_cli.checkpoint.shards import is_adapter
from wiseft_cli.convert.lora import open_adapter, open_adapter_weights
from wiseft_cli.convert.names import Naming
from wiseft_cli.convert.plain_names import read_plainly, rename
from wiseft_cli.convert.view import ConvertedReader, Derived, Piece, plan_names
from wiseft_cli.errors import CheckpointError

_VISION_MODEL = "vision_model."


@dataclass(frozen=True)
class _View:
    """A base model under other names, and how to give them back."""

    reader: CheckpointReader
    restore: Callable[[CheckpointReader], CheckpointReader]


def open_adapted(path: Path, base: CheckpointReader) -> CheckpointReader:
    """Open a PEFT adapter merged into a base model, under the base model's names.

    Closing the reader closes the adapter, and not the base model.

    Args:
        path: The adapter's folder, or its weights file.
        base: The model that the adapter was trained on.
    Raises:
        CheckpointError: The adapter is damaged or not a plain LoRA, or belongs to another model.
    """
    views = _views(base)
    adapted = open_adapter(path, *(view.reader for view in views))
    view = next(view for view in views if view.reader is adapted.base)
    restored = view.restore(adapted)
    if restored is adapted:
        return adapted
    if lost := sorted(base.tensors.keys() - restored.tensors.keys()):
        adapted.__exit__()
        raise CheckpointError(f"{path}: the adapter changes the shape of weights", faults=lost)
    return _Owner(restored, adapted)


@contextmanager
def open_with_adapters(paths: Sequence[Path]) -> Iterator[Sequence[CheckpointReader]]:
    """Open the inputs of a merge, of which all but the first may be adapters of the first.

    Raises:
        CheckpointError: One cannot be read, or an adapter does not fit the first.
    """
    with ExitStack() as stack:
        base = stack.enter_context(open_checkpoint(paths[0], allow_shards=True))
        readers = [base]
        for path in paths[1:]:
            opened = (
                open_adapted(path, base)
                if is_adapter(path)
                else open_checkpoint(path, allow_shards=True)
            )
            readers.append(stack.enter_context(opened))
        yield readers


def finetuned_card(base: CheckpointReader, adapter: Path) -> Card | None:
    """Return the card of a base model with an adapter merged into it; None if the base has none.

    Raises:
        CheckpointError: The base does not have the digest of its card.
    """
    if base.card is None:
        return None
    require_card_digest(base, read_content(base).digest)
    with open_adapter_weights(adapter if adapter.is_dir() else adapter.parent) as weights:
        digest = read_content(weights).digest
    inputs = HistoryInput(base.card.role, str(base.card.digest)), HistoryInput("adapter", digest)
    entry = HistoryEntry("convert", __version__, {"adapter": "lora"}, inputs)
    history = (*join_histories(base.card), entry)
    return replace(base.card, role="finetuned", alpha=None, history=history, digest=None)


def _views(base: CheckpointReader) -> list[_View]:
    """Return the base model under its own names, and under those that an adapter may have."""
    views = [_View(base, lambda reader: reader)]
    plain, naming, _ = read_plainly(base)
    if plain is not base:
        assert isinstance(plain, ConvertedReader)
        stored = {new: each.pieces[0].name for new, each in plain.derived.items()}
        views.append(_View(plain, lambda reader: rename(reader, _known(reader, stored))))
    if naming is None or naming.library != "open_clip":
        return views
    restore_plain = views[-1].restore
    other = Naming("transformers", naming.family)
    converted = _convert(plain, other, to_open_clip=False)

    def restore(reader: CheckpointReader) -> CheckpointReader:
        return restore_plain(_convert(reader, other, to_open_clip=True))

    def restore_vision(reader: CheckpointReader) -> CheckpointReader:
        return restore(rename(reader, {name: full.get(name, name) for name in reader.tensors}))

    full = {name.removeprefix(_VISION_MODEL): name for name in converted.tensors}
    short = rename(converted, {name: name.removeprefix(_VISION_MODEL) for name in full.values()})
    return [*views, _View(converted, restore), _View(short, restore_vision)]


def _known(reader: CheckpointReader, names: Mapping[str, str]) -> dict[str, str]:
    return {name: names.get(name, name) for name in reader.tensors}


def _convert(reader: CheckpointReader, naming: Naming, *, to_open_clip: bool) -> ConvertedReader:
    """Return a view with other names, in which unknown tensors keep theirs."""
    plan = plan_names(reader, naming, to_open_clip=to_open_clip)
    rest = {
        name: Derived(info.dtype, info.shape, (Piece(name, 0, info.nbytes),))
        for name in (*plan.unknown, *plan.dropped)
        for info in (reader.tensors[name],)
    }
    return ConvertedReader(reader, {**rest, **plan.derived})


class _Owner(ConvertedReader):
    """A view that closes the adapter behind it."""

    def __init__(self, view: CheckpointReader, adapted: CheckpointReader) -> None:
        assert isinstance(view, ConvertedReader)
        super().__init__(view.source, view.derived)
        self.path, self.files = adapted.path, adapted.files
        self._adapted = adapted

    def __exit__(self, *_: object) -> None:
        self._adapted.__exit__()

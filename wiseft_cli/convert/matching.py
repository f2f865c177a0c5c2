"""Read checkpoints whose names differ only in spelling under the same names.

Wrappers (`module.`), prefixes (`vision_model.`) and the names of another library are matched; a
tensor without a counterpart keeps its name, and the usual comparison reports it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.convert.adapted import open_with_adapters
from wiseft_cli.convert.convert import convert_names
from wiseft_cli.convert.plain_names import read_plainly, rename
from wiseft_cli.convert.view import ConvertedReader
from wiseft_cli.errors import counted
from wiseft_cli.merging.causes import find_renaming


class NameMatcher:
    """Opens checkpoints under the names of the last one, or of the only one with a card.

    Attributes:
        notes: What was matched, for the user; set by `open`.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def open(self, paths: Sequence[Path]) -> Iterator[Sequence[CheckpointReader]]:
        """Open checkpoints as `open_with_adapters` does, under matched names.

        Raises:
            CheckpointError: One cannot be read, or has tensors that the tables do not know.
        """
        with open_with_adapters(paths) as readers:
            carded = [reader for reader in readers if reader.card is not None]
            target = carded[0] if len(carded) == 1 else readers[-1]
            yield [
                reader if reader is target else self._match(reader, target) for reader in readers
            ]

    def _match(self, reader: CheckpointReader, target: CheckpointReader) -> CheckpointReader:
        view, how = match_names(reader, target)
        common = view.tensors.keys() & target.tensors.keys()
        if view is not reader:
            assert isinstance(view, ConvertedReader)
            view.added = {"match_names": True}
            example = next((name for name in target.tensors if name in common), None)
            self.notes.append(
                f"{reader.path}: {how}; {counted(len(common), 'tensor')} of {len(view.tensors)} "
                f"have names of {target.path}" + (f", for example {example}" if example else "")
            )
        return view


def match_names(reader: CheckpointReader, target: CheckpointReader) -> tuple[CheckpointReader, str]:
    """Return a view of a checkpoint under the names of another one, and what was changed.

    Returns:
        The reader itself if its names need no change.
    Raises:
        CheckpointError: The names are of another library, and some are unknown.
    """
    if reader.tensors.keys() == target.tensors.keys():
        return reader, ""
    found, wanted = read_plainly(reader)[1], read_plainly(target)[1]
    steps = []
    if found and wanted and found.library != wanted.library:
        conversion = convert_names(reader, wanted.library)
        reader = conversion.reader
        steps = [f"{found} read as {wanted}", *conversion.notes]
    renaming = find_renaming(target.tensors, reader.tensors)
    if renaming is None:
        return reader, "; ".join(steps)
    keys = [
        _keys(tensors, prefix)
        for tensors, prefix in zip(renaming.sides, renaming.prefixes, strict=True)
    ]
    originals = {key: name for name, key in _originals(target.tensors, keys[0]).items()}
    names = {
        name: originals.get(key, key) for name, key in _originals(reader.tensors, keys[1]).items()
    }
    if len(set(names.values())) < len(names) or all(a == b for a, b in names.items()):
        return reader, "; ".join(steps)
    return rename(reader, names), "; ".join([*steps, "wrappers and prefixes ignored"])


def _keys(tensors: Mapping[str, TensorInfo], prefix: str) -> dict[str, str]:
    """Return names without the prefix by the names in the file."""
    return {info.name: name.removeprefix(prefix) for name, info in tensors.items()}


def _originals(tensors: Mapping[str, TensorInfo], keys: Mapping[str, str]) -> dict[str, str]:
    return {name: keys.get(name, name) for name in tensors}

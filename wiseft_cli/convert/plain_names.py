"""Read a checkpoint without the wrappers and prefixes that programs add to its names."""

from __future__ import annotations

from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.convert.names import Naming, find_naming
from wiseft_cli.convert.view import ConvertedReader, Derived, Piece
from wiseft_cli.merging.causes import remove_wrappers

_ANCHORS = (
    "vision_model.embeddings.patch_embedding.weight",
    "embeddings.patch_embedding.weight",
    "visual.conv1.weight",
    "visual.trunk.patch_embed.proj.weight",
    "patch_embed.proj.weight",
)
"""Names that every file of a naming has; what precedes them is a prefix."""


def read_plainly(reader: CheckpointReader) -> tuple[CheckpointReader, Naming | None, str | None]:
    """Return a file's tensors without wrappers and prefixes, and their naming.

    Wrappers are `module.`, `_orig_mod.` and so on. `vision_model.`, which transformers omits in
    the file of an image encoder alone, is added.

    Returns:
        The reader or a view of it, the naming if it is known, and what was removed.
    """
    names = {name: plain for plain, name in _plain_names(reader).items()}
    removed = sorted({name.replace(plain, "") for name, plain in names.items() if name != plain})
    prefix = _find_prefix(list(names.values()))
    if prefix:
        names = {name: plain.removeprefix(prefix) for name, plain in names.items()}
        removed.append(prefix)
    plain_names = set(names.values())
    if _ANCHORS[1] in plain_names and _ANCHORS[0] not in plain_names:
        names = {name: f"vision_model.{plain}" for name, plain in names.items()}
    if {"visual.conv1.weight", "text.positional_embedding"} <= plain_names:
        names = {name: plain.removeprefix("text.") for name, plain in names.items()}
    if len(set(names.values())) < len(names) or all(n == plain for n, plain in names.items()):
        return reader, find_naming(reader.tensors), None
    view = rename(reader, names)
    return view, find_naming(view.tensors), " and ".join(removed) or None


def rename(reader: CheckpointReader, names: dict[str, str]) -> ConvertedReader:
    """Return a view of a reader with other names.

    Args:
        names: New names by old ones.
    """
    return ConvertedReader(
        reader,
        {
            new: Derived(info.dtype, info.shape, (Piece(old, 0, info.nbytes),))
            for old, new in names.items()
            for info in (reader.tensors[old],)
        },
    )


def _plain_names(reader: CheckpointReader) -> dict[str, str]:
    """Return the old name of each tensor by its name without wrappers."""
    plain = remove_wrappers(reader.tensors)
    if len(plain) < len(reader.tensors):  # two names differ only in wrappers
        return {name: name for name in reader.tensors}
    return {new: info.name for new, info in plain.items()}


def _find_prefix(names: list[str]) -> str:
    """Return the prefix in front of a characteristic name, such as `model.`."""
    for anchor in _ANCHORS:
        for name in names:
            if name == anchor:
                return ""
            if name.endswith(f".{anchor}"):
                return name.removesuffix(anchor)
    return ""

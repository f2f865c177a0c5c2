"""Finds what a published set is made of below the folder that a person names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.lookup import is_folder, is_there
from wiseft_cli.errors import DatasetError, list_some


def first_folder(root: Path, folders: Sequence[str]) -> Path:
    """Return the first of the folders that is there below the root; the root where none is."""
    return next((root / folder for folder in folders if is_folder(root / folder)), root)


def require_files(
    card: DatasetCard, part: Part, folder: Path, needed: Sequence[str], *, name: str
) -> None:
    """Refuse a folder that lacks what the set is read from.

    Args:
        needed: Files and folders below the folder, the latter perhaps with a `/` at the end.
        name: What the set is called, for the message.
    Raises:
        DatasetError: All that is missing, where a copy is looked for, and where to get one.
    """
    missing = [f"  {path}" for path in needed if not is_there(folder / path)]
    if not missing:
        return
    below = list(map("{}/".format, part.folders))
    places = " or ".join(filter(None, [", ".join(below[:-1]), *below[-1:]]))
    found = "is no copy" if is_folder(folder) else "is no folder, and no copy"
    raise DatasetError(
        "\n".join(
            [
                f"image set {name!r}: {folder} {found} of {card.title}: {len(missing)} of"
                f" {len(needed)} that it is read from are not there:",
                *list_some(missing),
            ]
        ),
        hint=f"get it from {card.source}; it is looked for in the folder that is named"
        + (f", or below it in {places}" if places else ""),
    )

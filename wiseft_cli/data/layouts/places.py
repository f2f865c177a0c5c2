"""Finds what a published set is made of below the folder that a person names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.files import is_folder, path_exists
from wiseft_cli.errors import DatasetError, list_some

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


def find_folder(card: DatasetCard, part: Part, root: Path, *, name: str) -> Path:
    """Return where a split lies: the first of its folders below the root, or the root itself.

    Raises:
        DatasetError: Neither, as the root is another split's folder or holds one.
    """
    found = _first(root, part.folders)
    if found is not None:
        return found
    other = _other_split(card, part, root)
    if other is not None:
        raise DatasetError(
            f"image set {name!r}: {root} is no copy of {card.title}, split {part.split}: it has"
            f" {none_of(part.folders)}, and {other}",
            hint=f"`split` chooses another one, {', '.join(of.split for of in card.parts)}; this"
            f" one is at {card.source}",
        )
    return root


def packed_in(folder: Path) -> list[str]:
    """Return the archives that lie in a folder, sorted; none where it cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if name.lower().endswith(_ARCHIVES)]


def none_of(folders: Sequence[str]) -> str:
    """Say that there is none of some folders, at least one."""
    few = len(folders) == 1
    return f"no folder {folders[0]}" if few else f"none of the folders {', '.join(folders)}"


def _first(root: Path, folders: Sequence[str]) -> Path | None:
    return next((root / folder for folder in folders if is_folder(root / folder)), None)


def _other_split(card: DatasetCard, part: Part, root: Path) -> str | None:
    """Return what makes the root another split's; None where it may stand for this one's folder."""
    own_name = Path(os.path.abspath(root)).name
    if not part.folders or own_name in map(_last, part.folders):
        return None
    for other in card.parts:
        if other.folders == part.folders:
            continue
        there = _first(root, other.folders)
        if there is not None:
            return f"has {there.relative_to(root)}, which is split {other.split}"
        if not other.folders or own_name in map(_last, other.folders):
            return f"is itself the folder of split {other.split}"
    return None


def _last(folder: str) -> str:
    return Path(folder).name


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
    missing = [f"  {path}" for path in needed if not path_exists(folder / path)]
    if not missing:
        return
    below = list(map("{}/".format, part.folders))
    places = " or ".join(filter(None, [", ".join(below[:-1]), *below[-1:]]))
    found = "is no copy" if is_folder(folder) else "is no folder, and no copy"
    packed = packed_in(folder)
    remedy = f"unpack {', '.join(list_some(packed))}, or get it" if packed else "get it"
    raise DatasetError(
        "\n".join(
            [
                f"image set {name!r}: {folder} {found} of {card.title}: {len(missing)} of"
                f" {len(needed)} that it is read from are not there:",
                *list_some(missing),
            ]
        ),
        hint=f"{remedy} from {card.source}; it is looked for in the folder that is named"
        + (f", or below it in {places}" if places else ""),
    )

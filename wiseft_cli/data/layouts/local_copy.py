"""A published set on the user's disk: where its files are, and which of them are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.data.dataset_card import DatasetCard, Split
from wiseft_cli.data.files import is_folder, path_exists
from wiseft_cli.errors import DatasetError, list_some

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


@dataclass(frozen=True)
class LocalCopy:
    """A copy of one split of a published set.

    Attributes:
        card: The set's card.
        split: The split.
        root: The folder that the user names.
        name: The set's name in reports and messages.
    """

    card: DatasetCard
    split: Split
    root: Path
    name: str

    @property
    def title(self) -> str:
        """The full name of the set and its split."""
        return f"{self.card.title}, split {self.split.name}" if self.split.name else self.card.title

    def error(
        self, message: str, *, faults: Sequence[str] = (), hint: str | None = None
    ) -> DatasetError:
        """Return an error that begins with the name of the set."""
        return DatasetError(f"image set {self.name!r}: {message}", faults=faults, hint=hint)

    def find_folder(self) -> Path:
        """Return the first of the split's folders that exists below the root, or the root itself.

        Raises:
            DatasetError: The root is the folder of another split, or has one.
        """
        found = _first_folder(self.root, self.split)
        if found is not None:
            return found
        other = self._sign_of_another_split()
        if other is not None:
            raise self.error(
                f"{self.root} is not a copy of {self.title}: it {other}, and has"
                f" {none_of(self.split.folders)}",
                hint="choose the split with ?split=, one of"
                f" {', '.join(split.name for split in self.card.splits)}, or get this one from"
                f" {self.card.source}",
            )
        return self.root

    def _sign_of_another_split(self) -> str | None:
        own_name = Path(os.path.abspath(self.root)).name
        if not self.split.folders or own_name in _last_names(self.split):
            return None
        for split in self.card.splits:
            if split.folders == self.split.folders:
                continue
            found = _first_folder(self.root, split)
            if found is not None:
                return f"has the folder {found.relative_to(self.root)} of split {split.name}"
            if not split.folders or own_name in _last_names(split):
                return f"is itself the folder of split {split.name}"
        return None

    def require_files(self, folder: Path, needed: Sequence[str]) -> None:
        """Check that files and folders, given relative to a folder, exist.

        Raises:
            DatasetError: Some are missing; all of them are listed.
        """
        missing = [path for path in needed if not path_exists(folder / path)]
        if not missing:
            return
        problem = "is not a copy" if is_folder(folder) else "is not a folder with a copy"
        archives = archives_in(folder)
        remedy = f"unpack {', '.join(list_some(archives))}, or get it" if archives else "get it"
        places = " or ".join(f"{below}/" for below in self.split.folders)
        raise self.error(
            f"{folder} {problem} of {self.card.title}: {len(missing)} of {len(needed)} required"
            " files are missing",
            faults=missing,
            hint=f"{remedy} from {self.card.source}; it is expected in the folder that you name"
            + (f", or below it in {places}" if places else ""),
        )


def archives_in(folder: Path) -> list[str]:
    """Return the names of the archives in a folder, sorted; none if it cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if name.lower().endswith(_ARCHIVES)]


def none_of(folders: Sequence[str]) -> str:
    """Name one or more folders as missing: `no folder a`, `none of the folders a, b`."""
    is_one = len(folders) == 1
    return f"no folder {folders[0]}" if is_one else f"none of the folders {', '.join(folders)}"


def _first_folder(root: Path, split: Split) -> Path | None:
    return next((root / folder for folder in split.folders if is_folder(root / folder)), None)


def _last_names(split: Split) -> set[str]:
    return {Path(folder).name for folder in split.folders}

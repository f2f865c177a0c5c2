"""Finds what a published set is made of below the folder that a person names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def first_folder(root: Path, folders: Sequence[str]) -> Path:
    """Return the first of the folders that is there below the root; the root where none is."""
    return next((root / folder for folder in folders if (root / folder).is_dir()), root)

"""Reads the files of YTBB-Robust: people's marks of frames, and the first class of each anchor.

What the marks mean is `ytbb_robust.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from wiseft_cli.data.layouts.csv_table import read_columns
from wiseft_cli.data.layouts.faults import refuse
from wiseft_cli.data.layouts.json_tables import describe, positions_of, read_object, texts_of

_COLUMNS = ("ytid", "time_ms", "label")


def read_marks(path: Path, needed: AbstractSet[str]) -> Mapping[str, frozenset[str]]:
    """Return what people ticked for each key; of a key that comes twice the later entry.

        {"annotations": [{"key": ..., "labels": [positions in the list below]}], "labels": [...]}

    Args:
        needed: What the list of labels has to have.
    Raises:
        DatasetError: Unreadable, or not of that form; the keys are named.
    """
    root = read_object(path)
    faults: list[str] = []
    names = texts_of(root.get("labels"), where="'labels'", faults=faults)
    lacking = sorted(needed - set(names))
    if not faults and lacking:
        faults.append(f"  'labels': does not have {', '.join(map(repr, lacking))}")
    entries = root.get("annotations")
    if not isinstance(entries, list):
        faults.append(f"  'annotations': is {describe(entries)}, expected a list of objects")
        entries = []
    refuse(path, faults)
    marks = {}
    for number, entry in enumerate(entries, start=1):
        key = _key(entry, f"'annotations', entry {number}", faults)
        if key is not None:
            ticked = positions_of(entry.get("labels"), names, where=repr(key), faults=faults)
            marks[key] = frozenset(ticked)
    refuse(path, faults)
    return marks


def _key(entry: Any, where: str, faults: list[str]) -> str | None:
    key = entry.get("key") if isinstance(entry, dict) else None
    if isinstance(key, str):
        return key
    found = describe(key if isinstance(entry, dict) else entry)
    faults.append(f"  {where}: expected a text as key, found {found}")
    return None


def read_first_classes(path: Path, classes: Sequence[str]) -> Mapping[str, str]:
    """Return the class of each anchor's folder, `ytid_time_ms`; of two rows the later one.

    Args:
        classes: By the numbers of the column label.
    Raises:
        DatasetError: Unreadable, or not of that form; the lines are named.
    """
    faults: list[str] = []
    found = {}
    for line, (video, time_ms, label) in read_columns(path, _COLUMNS, faults):
        if label.isascii() and label.isdigit() and int(label) < len(classes):
            found[f"{video}_{time_ms}"] = classes[int(label)]
        else:
            expected = f"expected 0 to {len(classes) - 1}"
            faults.append(f"  line {line}: label is {label!r:.20}, {expected}")
    refuse(path, faults)
    return found

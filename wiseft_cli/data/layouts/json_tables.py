"""Reads the JSON files of published sets: one object, every key once, each value of its kind.

Faults are gathered with the keys they stand at. It does not know what a file means.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wiseft_cli.errors import DatasetError
from wiseft_cli.prompts.documents import read_text


class _KeyTwiceError(Exception):
    """An object has a key twice, of which a plain loader would drop the first."""


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        DatasetError: Unreadable, not JSON, no object, or a key stands in an object twice.
    """
    text = read_text(path, DatasetError)
    try:
        root = json.loads(text, object_pairs_hook=_unique)
    except _KeyTwiceError as error:
        raise DatasetError(f"{path}: the key {error.args[0]!r} stands there twice") from None
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless nesting
        raise DatasetError(f"{path}: is not JSON that can be read: {error}") from None
    if not isinstance(root, dict):
        raise DatasetError(f"{path}: holds {describe(root)}, expected an object")
    return root


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwiceError(next(key for key in keys if keys.count(key) > 1))
    return members


def describe(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"the number {value!s:.20}"
    if isinstance(value, str):
        return f"the text {value!r:.60}"
    return "an object" if isinstance(value, dict) else "a list"


def texts_of(value: Any, *, where: str, faults: list[str]) -> tuple[str, ...]:
    """Return a list of texts; anything else is a fault, and so is a text that stands twice."""
    if not isinstance(value, list):
        faults.append(f"  {where}: is {describe(value)}, expected a list of texts")
        return ()
    faults += [
        f"  {where}: has {describe(item)}, expected texts"
        for item in value
        if not isinstance(item, str)
    ]
    texts = [item for item in value if isinstance(item, str)]
    repeated = [text for text, n_times in Counter(texts).items() if n_times > 1]
    faults += [f"  {where}: has {text!r} twice" for text in repeated]
    return tuple(texts)


def positions_of(value: Any, names: Sequence[str], *, where: str, faults: list[str]) -> list[str]:
    """Return the names at a list's positions; anything that is no position of one is a fault."""
    if not isinstance(value, list):
        faults.append(f"  {where}: is {describe(value)}, expected a list of numbers")
        return []
    found = []
    for item in value:
        if type(item) is int and 0 <= item < len(names):
            found.append(names[item])
        else:
            faults.append(f"  {where}: has {describe(item)}, expected 0 to {len(names) - 1}")
    return found

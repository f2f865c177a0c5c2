"""The classes of a head: their order, their ids, and the names that prompts use.

A source is a text file, a YAML or JSON file, or a folder whose subfolders are the classes.
The id is what image sets are joined by; without ids the name is the id too.
It does not look at images, and it does not know prompts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import ClassNamesError, list_some
from wiseft_cli.prompts.class_documents import read_json_classes, read_yaml_classes
from wiseft_cli.prompts.text_file import read_text

MAX_CHARACTERS = 250
"""Longest id or name. A longer line is a file of another kind, not a class."""

_ID_FORM = "give each class an id of its own: id<TAB>name, one a line"


@dataclass(frozen=True)
class Found:
    """A class as it was found: where, its name, and its id where one was given."""

    where: str
    name: str
    id: str | None = None


@dataclass(frozen=True)
class ClassList:
    """The classes of a head, in the order of its rows.

    Attributes:
        entries: The classes.
        source_kind: What the classes were read from.
        notes: What the person should know of how names were made.
    """

    entries: tuple[ClassEntry, ...]
    source_kind: Literal["text", "yaml", "json", "folder"]
    notes: tuple[str, ...] = ()


def read_class_names(source: Path) -> ClassList:
    """Read a class list.

    Args:
        source: A folder, a `.yaml`, `.yml` or `.json` file, or any other file as text with
            `name` or `id<TAB>name` a line (blank lines are skipped).
    Returns:
        The classes in the order of the file, or sorted by folder name.
    Raises:
        ClassNamesError: Nothing there, unreadable, empty, or entries that are blank, too long,
            repeated or malformed; each is named with its line.
    """
    if source.is_dir():
        return _read_folder(source)
    if source.suffix.lower() in (".yaml", ".yml"):
        found = [Found(*item) for item in read_yaml_classes(source)]
        return ClassList(_checked(source, found), "yaml")
    if source.suffix.lower() == ".json":
        found = [Found(*item) for item in read_json_classes(source)]
        return ClassList(_checked(source, found), "json")
    return ClassList(_checked(source, _read_lines(source)), "text")


def _read_folder(folder: Path) -> ClassList:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise ClassNamesError(f"{folder}: cannot be read: {error.strerror}") from None
    ids = [path.name for path in children if path.is_dir() and not path.name.startswith(".")]
    if not ids:
        raise ClassNamesError(
            f"{folder}: has no subfolders, expected one a class",
            hint="give a folder with one subfolder a class, or a text file with one name a line",
        )
    found = [Found(f"folder {name!r}", name.replace("_", " ").strip(), name) for name in ids]
    renamed = sum(entry.name != entry.id for entry in found)
    notes = (
        (
            f"class names come from folder names, with underscores read as spaces in {renamed} "
            f"of {len(ids)}; ids keep the folder names",
        )
        if renamed
        else ()
    )
    return ClassList(_checked(folder, found), "folder", notes)


def _read_lines(path: Path) -> list[Found]:
    found = []
    problems = []
    for number, line in enumerate(read_text(path, ClassNamesError).split("\n"), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        where = f"line {number}"
        if len(fields) == 1:
            found.append(Found(where, fields[0]))
        elif len(fields) == 2:
            found.append(Found(where, fields[1], fields[0]))
        else:
            problems.append(f"{where}: {len(fields) - 1} tabs, expected id<TAB>name")
    without_id = [entry for entry in found if entry.id is None]
    if 0 < len(without_id) < len(found):
        problems += [f"{entry.where}: no id, unlike other lines" for entry in without_id]
    _refuse(path, problems, hint="write every line as `name`, or every line as `id<TAB>name`")
    return found


def _checked(source: Path, found: Sequence[Found]) -> tuple[ClassEntry, ...]:
    if not found:
        raise ClassNamesError(
            f"{source}: holds no class", hint="write one class a line: name, or id<TAB>name"
        )
    _refuse(source, _bad_texts(found), hint="each class needs a short name, and a short id if any")
    entries = tuple(
        ClassEntry(entry.name if entry.id is None else entry.id, entry.name) for entry in found
    )
    has_ids = found[0].id is not None
    repeats = _repeats((entry.where, made.id) for entry, made in zip(found, entries, strict=True))
    _refuse(
        source,
        [f"{' and '.join(places)}: {text!r}" for text, places in repeats],
        what=f"repeats {'class ids' if has_ids else 'class names'}",
        hint="each id may stand once" if has_ids else _ID_FORM,
    )
    return entries


def _bad_texts(found: Sequence[Found]) -> list[str]:
    problems = []
    for entry in found:
        for kind, text in (("id", entry.id), ("name", entry.name)):
            if text is None:
                continue
            if not text:
                problems.append(f"{entry.where}: the {kind} is empty")
            elif len(text) > MAX_CHARACTERS:
                problems.append(
                    f"{entry.where}: the {kind} has {len(text)} characters, at most "
                    f"{MAX_CHARACTERS} are allowed"
                )
            elif any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
                problems.append(f"{entry.where}: the {kind} {text!r} has control characters")
    return problems


def _repeats(items: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    places: dict[str, list[str]] = {}
    for where, text in items:
        places.setdefault(text, []).append(where)
    return [(text, found) for text, found in places.items() if len(found) > 1]


def _refuse(
    source: Path, problems: Sequence[str], *, what: str = "is not a class list", hint: str
) -> None:
    if problems:
        lines = "".join(f"\n  {line}" for line in list_some(problems))
        raise ClassNamesError(f"{source}: {what}{lines}", hint=hint)

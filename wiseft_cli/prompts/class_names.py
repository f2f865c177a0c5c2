"""The classes of a head: their order, their ids, and the names or prompts they are given.

A source is a text file, a YAML or JSON file, or a folder whose subfolders are the classes.
The id is what image sets are joined by; without ids the name is the id too.
It does not look at images, and it does not hold the built-in sets: their names come from
open_clip, which is the model room's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import ClassNamesError, brief, list_some
from wiseft_cli.prompts.class_documents import Found, read_class_document
from wiseft_cli.prompts.documents import YAML_SUFFIXES
from wiseft_cli.prompts.templates import fill_template
from wiseft_cli.prompts.text_file import read_text

BUILTIN_CLASSES = ("imagenet",)
"""Names that stand for a class list of the model room's `builtin_sets.py`."""

MAX_CHARACTERS = 250
"""Longest id or name. A longer line is a file of another kind, not a class."""

MAX_PROMPT_CHARACTERS = 2000
"""Longest prompt of a class's own; no text tower reads as much."""

_ID_FORM = "give each class an id of its own: id<TAB>name, one a line"


@dataclass(frozen=True)
class ClassList:
    """The classes of a head, in the order of its rows.

    Attributes:
        entries: The classes.
        source_kind: What the classes were read from.
        notes: What the person should know of how names were made.
        synonyms: Further names by id; templates are filled with each.
        own_prompts: Prompts by id of classes that bring theirs; templates do not touch these.
    """

    entries: tuple[ClassEntry, ...]
    source_kind: Literal["text", "yaml", "json", "folder", "built-in"]
    notes: tuple[str, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own_prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def needs_templates(self) -> bool:
        """Whether any class has no prompts of its own."""
        return len(self.own_prompts) < len(self.entries)

    @property
    def has_own_wording(self) -> bool:
        """Whether prompts are more than each name in each template."""
        return bool(self.synonyms or self.own_prompts)

    def prompts(self, templates: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Yield each class's index with each of its prompts, class after class."""
        for index, entry in enumerate(self.entries):
            if entry.id in self.own_prompts:
                for prompt in self.own_prompts[entry.id]:
                    yield index, prompt
                continue
            for name in (entry.name, *self.synonyms.get(entry.id, ())):
                for template in templates:
                    yield index, fill_template(template, name)


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
    suffix = source.suffix.lower()
    if suffix in YAML_SUFFIXES:
        return _class_list(source, read_class_document(source), "yaml")
    if suffix == ".json":
        return _class_list(source, read_class_document(source), "json")
    return _class_list(source, _read_lines(source), "text")


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
    found = [Found(f"folder {name!r}", (name.replace("_", " ").strip(),), name) for name in ids]
    renamed = sum(entry.names != (entry.id,) for entry in found)
    notes = (
        (
            f"class names come from folder names, with underscores read as spaces in {renamed} "
            f"of {len(ids)}; ids keep the folder names",
        )
        if renamed
        else ()
    )
    return _class_list(folder, found, "folder", notes)


def _read_lines(path: Path) -> list[Found]:
    found = []
    problems = []
    for number, line in enumerate(read_text(path, ClassNamesError).split("\n"), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        where = f"line {number}"
        if len(fields) == 1:
            found.append(Found(where, (fields[0],)))
        elif len(fields) == 2:
            found.append(Found(where, (fields[1],), fields[0]))
        else:
            problems.append(f"{where}: {len(fields) - 1} tabs, expected id<TAB>name")
    without_id = [entry for entry in found if entry.id is None]
    if 0 < len(without_id) < len(found):
        problems += [f"{entry.where}: no id, unlike other lines" for entry in without_id]
    _refuse(path, problems, hint="write every line as `name`, or every line as `id<TAB>name`")
    return found


def _class_list(
    source: Path,
    found: Sequence[Found],
    kind: Literal["text", "yaml", "json", "folder"],
    notes: tuple[str, ...] = (),
) -> ClassList:
    if not found:
        raise ClassNamesError(
            f"{source}: holds no class", hint="write one class a line: name, or id<TAB>name"
        )
    problems = [problem for entry in found for problem in _bad_texts(entry)]
    _refuse(source, problems, hint="each class needs a short name, and a short id if any")
    entries = tuple(
        ClassEntry(entry.names[0] if entry.id is None else entry.id, entry.names[0])
        for entry in found
    )
    has_ids = found[0].id is not None
    repeats = _repeats((entry.where, made.id) for entry, made in zip(found, entries, strict=True))
    _refuse(
        source,
        [f"{' and '.join(places)}: {text!r}" for text, places in repeats],
        what=f"repeats {'class ids' if has_ids else 'class names'}",
        hint="each id may stand once" if has_ids else _ID_FORM,
    )
    synonyms, prompts = {}, {}
    for entry, made in zip(found, entries, strict=True):
        if entry.prompts is not None:
            prompts[made.id] = entry.prompts
        elif len(entry.names) > 1:
            synonyms[made.id] = entry.names[1:]
    return ClassList(entries, kind, notes, synonyms, prompts)


def _bad_texts(entry: Found) -> list[str]:
    texts = [] if entry.id is None else [("id", entry.id, MAX_CHARACTERS)]
    texts += [("name", name, MAX_CHARACTERS) for name in entry.names]
    texts += [("prompt", prompt, MAX_PROMPT_CHARACTERS) for prompt in entry.prompts or ()]
    problems = []
    for kind, text, limit in texts:
        if not text:
            problems.append(f"{entry.where}: the {kind} is empty")
        elif len(text) > limit:
            problems.append(
                f"{entry.where}: the {kind} has {len(text)} characters, at most {limit} are allowed"
            )
        elif kind != "prompt" and any(
            unicodedata.category(character) in ("Cc", "Cs") for character in text
        ):
            problems.append(f"{entry.where}: the {kind} {brief(text)!r} has control characters")
    if not entry.names:
        problems.append(f"{entry.where}: the list of names is empty")
    if entry.prompts == ():
        problems.append(f"{entry.where}: the list of prompts is empty")
    if entry.prompts is not None and len(entry.names) > 1:
        problems.append(f"{entry.where}: synonyms are of no use beside prompts of its own")
    for kind, values in (("name", entry.names), ("prompt", entry.prompts or ())):
        repeated = _repeats(("", text) for text in values if text)
        problems += [
            f"{entry.where}: the {kind} {brief(text)!r} stands twice" for text, _ in repeated
        ]
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

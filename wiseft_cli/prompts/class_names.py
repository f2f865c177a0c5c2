"""Read class lists: the order of the classes, their ids, and their names or prompts.

A class list is a text file, a YAML or JSON file, or a folder with one subfolder per class. Image
sets are joined by class id; without ids, the name is also the id.
The class names of the built-in sets come from open_clip, so `model/zeroshot_prompts.py` holds them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import ClassNamesError, brief
from wiseft_cli.prompts import documents
from wiseft_cli.prompts.templates import fill_template

BUILTIN_CLASSES = ("imagenet",)
"""Names of the built-in class lists."""

_MODEL_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".safetensors"})

MAX_CHARACTERS = 250
"""Longest id or name; a longer line suggests that the file is not a class list."""

MAX_PROMPT_CHARACTERS = 2000
"""Longest prompt in a class file; no text tower reads as many characters."""

_DOCUMENT_HINT = (
    "write a list of names, or a mapping of each id to a name (n01440764: tench), to a list of "
    "synonyms, or to {name: ..., prompts: [...]}"
)

_LINES_HINT = "write every line as `name`, or every line as `id<TAB>name`, without blank lines"
_FORM_HINT = (
    "write a text file with one name, or one id<TAB>name, per line; or a YAML or JSON file (.yaml, "
    ".json) with a list of names or a mapping of ids to names"
)

_OTHER_FORMS = {
    "a Python or JSON list or mapping": r"(\w+\s*=\s*)?"
    r"([\[{].*[\]}]|\(\s*['\"].*['\"],?\s*\))[,;]?",
    "an XML or HTML document": r"<.*>",
    "a table with a header": r"\W*(id|idx|index|name|wnid|synset|(class|label)([_ ]?(id|name))?)\W*"
    r"[\t,;|]\W*\w*(id|index|name|class|label|synset)\w*\W*\n.*",
}
"""Regular expressions for the whole text of files with another form."""

_OTHER_LINES = {
    "a list of quoted names": r"(['\"]).*\1\s*,?$",
    "a list with a bullet in front of each name": "[-*+\u2022]\\s+\\S",
    "a list of ids and names without a tab between them": r"n\d{8}[ ,;:]+\S",
    "a mapping of ids to names": r"[^\s:]+:\s+\S",
    # A comma with a space behind it also occurs in names: `Paris, France`.
    "a CSV table": r"[^\t]+(,(?! )|;|\|)[^\t]+$",
}
"""Regular expressions that match every line of files with another form."""

SourceKind = Literal["text", "yaml", "json", "folder", "built-in", "list"]


@dataclass(frozen=True)
class ClassList:
    """The classes of a head, in the order of its rows.

    Attributes:
        entries: Id and name of each class.
        source_kind: Kind of source that the classes were read from.
        notes: Remarks for the user about how names were derived.
        synonyms: Further names by class id; each fills every template.
        own_prompts: Prompts by class id, for classes that do not use templates.
    """

    entries: tuple[ClassEntry, ...]
    source_kind: SourceKind
    notes: tuple[str, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own_prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def needs_templates(self) -> bool:
        """Whether any class lacks prompts of its own."""
        return len(self.own_prompts) < len(self.entries)

    @property
    def has_own_wording(self) -> bool:
        """Whether any class has synonyms or prompts of its own."""
        return bool(self.synonyms or self.own_prompts)

    def prompts(self, templates: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Yield (class index, prompt) pairs in the order of the classes."""
        for index, entry in enumerate(self.entries):
            if entry.id in self.own_prompts:
                for prompt in self.own_prompts[entry.id]:
                    yield index, prompt
                continue
            for name in (entry.name, *self.synonyms.get(entry.id, ())):
                for template in templates:
                    yield index, fill_template(template, name)


@dataclass(frozen=True)
class _Class:
    """A class as written in its source.

    Attributes:
        where: Its line, entry or folder.
        names: Its name, then its synonyms.
        id: None if the source gives no id.
        prompts: Its own prompts, or None if it has none.
    """

    where: str
    names: tuple[str, ...]
    id: str | None = None
    prompts: tuple[str, ...] | None = None


def read_class_names(source: Path) -> ClassList:
    """Read a class list.

    Args:
        source: A folder with one subfolder per class; a `.yaml`, `.yml` or `.json` file with a
            list of names or a mapping of ids; or a text file with one `name` or `id<TAB>name`
            per line (blank lines are allowed only at the end).
    Returns:
        The classes in file order, or sorted by folder name.
    Raises:
        ClassNamesError: The source is missing, unreadable, malformed, empty or in another form
            (CSV, Python), or it has empty, overlong or duplicate entries; the message gives their
            lines.
    """
    if source.is_dir():
        return _read_folder(source)
    suffix = source.suffix.lower()
    if suffix in _MODEL_SUFFIXES:
        raise ClassNamesError(
            f"{source}: is a file of weights, expected a class list",
            hint="write one name per line; `wiseft inspect FILE --json` lists the classes of a"
            " checkpoint",
        )
    if suffix in documents.YAML_SUFFIXES:
        return _class_list(source, _read_document(source), "yaml")
    if suffix == ".json":
        return _class_list(source, _read_document(source), "json")
    return _class_list(source, _read_lines(source), "text")


def make_class_list(names: Sequence[str] | Mapping[str, str]) -> ClassList:
    """Return a class list of names, or of a mapping of ids to names.

    Raises:
        ClassNamesError: The list is empty, or entries are empty, too long or duplicated.
    """
    if isinstance(names, Mapping):
        classes = [_Class(f"id {key!r}", (name.strip(),), key) for key, name in names.items()]
    else:
        classes = [_Class(f"name {at}", (name.strip(),)) for at, name in enumerate(names, start=1)]
    return _class_list("class names", classes, "list")


def _read_folder(folder: Path) -> ClassList:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise ClassNamesError(f"{folder}: cannot be read: {error.strerror}") from None
    ids = [path.name for path in children if path.is_dir() and not path.name.startswith(".")]
    if not ids:
        raise ClassNamesError(
            f"{folder}: contains no subfolders, expected one per class",
            hint="give a folder with one subfolder per class, or a text file with one name per "
            "line",
        )
    classes = [_Class(f"folder {name!r}", (name.replace("_", " ").strip(),), name) for name in ids]
    renamed = sum(entry.names != (entry.id,) for entry in classes)
    notes = (
        f"class names are folder names with underscores replaced by spaces ({renamed} of "
        f"{len(ids)} changed); ids are the folder names",
    )
    return _class_list(folder, classes, "folder", notes if renamed else ())


def _read_lines(path: Path) -> list[_Class]:
    lines = documents.read_text(path, ClassNamesError).split("\n")
    while lines and _is_blank(lines[-1]):
        lines.pop()
    form = _find_other_form(path, lines)
    if form is not None:
        raise ClassNamesError(
            f"{path}: is {form}, expected one name or one id<TAB>name per line", hint=_FORM_HINT
        )
    classes, faults = [], []
    for number, line in enumerate(lines, start=1):
        if _is_blank(line):
            faults.append(f"line {number}: blank, but each line is one row of the head")
            continue
        fields = [field.strip() for field in line.split("\t")]
        where = f"line {number}"
        if len(fields) == 1:
            classes.append(_Class(where, (fields[0],)))
        elif len(fields) == 2:
            classes.append(_Class(where, (fields[1],), fields[0]))
        else:
            faults.append(f"{where}: {len(fields) - 1} tabs, expected id<TAB>name")
    without_id = [entry for entry in classes if entry.id is None]
    if 0 < len(without_id) < len(classes):
        faults += [f"{entry.where}: no id, but other lines have one" for entry in without_id]
    _raise_if_any(path, faults, hint=_LINES_HINT)
    return classes


def _find_other_form(path: Path, lines: Sequence[str]) -> str | None:
    """Name the form of a file that is not a list with one class per line, if it is known."""
    if path.suffix.lower() == ".csv":
        return "a CSV table"
    filled = [line.strip() for line in lines if not _is_blank(line)]
    for form, pattern in _OTHER_FORMS.items():
        if re.fullmatch(pattern, "\n".join(filled), re.DOTALL | re.IGNORECASE):
            return form
    for form, pattern in _OTHER_LINES.items():
        if filled and all(re.match(pattern, line) for line in filled):
            return form
    if _is_numbered(filled):
        return "a list with a number in front of each name"
    if len(filled) == 1 and "," in filled[0] and "\t" not in filled[0]:
        return "a list of names in one line"
    return None


def _is_numbered(lines: Sequence[str]) -> bool:
    found = [re.match(r"(\d+)[ ,;:.)]+\S", line) for line in lines]
    numbers = [int(match[1]) for match in found if match]
    return (
        len(numbers) == len(lines) > 1
        and numbers[0] in (0, 1)
        and numbers == list(range(numbers[0], numbers[0] + len(lines)))
    )


def _is_blank(text: str) -> bool:
    """Return whether a text has no visible character; zero-width characters are not visible."""
    return all(c.isspace() or unicodedata.category(c) == "Cf" for c in text)


def _read_document(path: Path) -> list[_Class]:
    """Read a list of names, or a mapping of ids to names, synonyms or {name, prompts}."""
    root = documents.read_document(path, ClassNamesError)
    if root is None:
        return []
    if isinstance(root, documents.Listing):
        return [_Class(item.where, (_text(path, item),)) for item in root.items]
    if isinstance(root, documents.Mapping):
        return [
            _read_member(path, key.where, _text(path, key), value) for key, value in root.members
        ]
    raise _unexpected(path, root, "a list or a mapping")


def _read_member(path: Path, where: str, class_id: str, value: documents.Node) -> _Class:
    if not isinstance(value, documents.Mapping):
        return _Class(where, _names(path, value), class_id)
    fields: dict[str, documents.Node] = {}
    for key, item in value.members:
        name = _text(path, key)
        if name not in ("name", "prompts"):
            raise ClassNamesError(
                f"{_place(path, key)}: unknown field {name!r}, expected name or prompts",
                hint=_DOCUMENT_HINT,
            )
        if name in fields:
            raise ClassNamesError(f"{_place(path, key)}: duplicate field {name!r}")
        fields[name] = item
    names = _names(path, fields["name"]) if "name" in fields else (class_id,)
    return _Class(where, names, class_id, _prompts(path, fields.get("prompts")))


def _names(path: Path, value: documents.Node) -> tuple[str, ...]:
    items = value.items if isinstance(value, documents.Listing) else (value,)
    return tuple(_text(path, item) for item in items)


def _prompts(path: Path, value: documents.Node | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, documents.Listing):
        raise _unexpected(path, value, "a list of prompts")
    return tuple(_text(path, item) for item in value.items)


def _text(path: Path, node: documents.Node) -> str:
    if isinstance(node, documents.Text):
        return node.text
    raise _unexpected(path, node, "a text")


def _unexpected(path: Path, node: documents.Node, expected: str) -> ClassNamesError:
    return ClassNamesError(
        f"{_place(path, node)}: expected {expected}, found {documents.describe(node)}",
        hint=_DOCUMENT_HINT,
    )


def _place(path: Path, node: documents.Node) -> str:
    return f"{path}, {node.where}" if node.where else f"{path}"


def _class_list(
    source: Path | str, classes: Sequence[_Class], kind: SourceKind, notes: tuple[str, ...] = ()
) -> ClassList:
    """Check the classes of a source and collect them."""
    if not classes:
        raise ClassNamesError(
            f"{source}: contains no classes", hint="write one class per line: name, or id<TAB>name"
        )
    faults = [fault for entry in classes for fault in _find_faults(entry)]
    _raise_if_any(
        source, faults, hint="each class needs a short name and, if it has one, a short id"
    )
    entries = tuple(
        ClassEntry(entry.names[0] if entry.id is None else entry.id, entry.names[0])
        for entry in classes
    )
    _raise_on_duplicate_ids(source, classes, entries)
    synonyms, prompts = {}, {}
    for entry, made in zip(classes, entries, strict=True):
        if entry.prompts is not None:
            prompts[made.id] = entry.prompts
        elif len(entry.names) > 1:
            synonyms[made.id] = entry.names[1:]
    return ClassList(entries, kind, notes, synonyms, prompts)


def _find_faults(entry: _Class) -> list[str]:
    faults = []
    for kind, texts, limit in (
        ("id", () if entry.id is None else (entry.id,), MAX_CHARACTERS),
        ("name", entry.names, MAX_CHARACTERS),
        ("prompt", entry.prompts or (), MAX_PROMPT_CHARACTERS),
    ):
        for text in texts:
            if _is_blank(text):
                faults.append(f"the {kind} is empty")
            elif len(text) > limit:
                faults.append(f"the {kind} has {len(text)} characters, at most {limit} are allowed")
            elif kind == "name" and "{}" in text:
                faults.append(f"the name {brief(text)!r} is a template; give it with --templates")
            elif kind != "prompt" and _has_control_characters(text):
                faults.append(f"the {kind} {brief(text)!r} has control characters")
        faults += [
            f"duplicate {kind} {brief(text)!r}"
            for text, _ in _repeated(("", text) for text in texts if text)
        ]
    if not entry.names:
        faults.append("the list of names is empty")
    if entry.prompts == ():
        faults.append("the list of prompts is empty")
    if entry.prompts is not None and len(entry.names) > 1:
        faults.append("synonyms have no effect on a class with its own prompts")
    return [f"{entry.where}: {fault}" for fault in faults]


def _has_control_characters(text: str) -> bool:
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _raise_on_duplicate_ids(
    source: Path | str, classes: Sequence[_Class], entries: Sequence[ClassEntry]
) -> None:
    places = ((entry.where, made.id) for entry, made in zip(classes, entries, strict=True))
    faults = [f"{' and '.join(found)}: {text!r}" for text, found in _repeated(places)]
    if classes[0].id is None:
        what, hint = "class names", "give each class its own id: one id<TAB>name per line"
    else:
        what, hint = "class ids", "each id may occur only once"
    _raise_if_any(source, faults, what=f"duplicate {what}", hint=hint)


def _repeated(items: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Return each text that occurs in several (place, text) pairs, with its places."""
    places: dict[str, list[str]] = {}
    for where, text in items:
        places.setdefault(text, []).append(where)
    return [(text, found) for text, found in places.items() if len(found) > 1]


def _raise_if_any(
    source: Path | str, faults: Sequence[str], *, what: str = "not a valid class list", hint: str
) -> None:
    if faults:
        raise ClassNamesError(f"{source}: {what}", faults=faults, hint=hint)

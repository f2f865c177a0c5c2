"""Read class lists written as YAML or JSON.

A document is a list of names, or a mapping of id to one of: a name; a list of synonyms, the
first of which names the class; a mapping with `name` (a name or such a list, the id where it is
left out) and `prompts` (a list of texts used as they stand).
It does not check the names; `class_names.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.errors import ClassNamesError
from wiseft_cli.prompts.documents import (
    YAML_SUFFIXES,
    Listing,
    Mapping,
    Node,
    Other,
    Text,
    describe,
    read_json,
    read_yaml,
)

_FORM = (
    "write a list of names, or a mapping of each id to a name (n01440764: tench), to a list of "
    "synonyms, or to {name: ..., prompts: [...]}"
)
_FIELDS = ("name", "prompts")


@dataclass(frozen=True)
class Found:
    """A class as it was found.

    Attributes:
        where: Its line or entry.
        names: Its name, and behind it synonyms.
        id: None where none was given.
        prompts: Its own prompts.
    """

    where: str
    names: tuple[str, ...]
    id: str | None = None
    prompts: tuple[str, ...] | None = None


def read_class_document(path: Path) -> list[Found]:
    """Return the classes of a `.yaml`, `.yml` or `.json` file.

    Raises:
        ClassNamesError: Unreadable, not of its format, or of none of the forms above.
    """
    is_yaml = path.suffix.lower() in YAML_SUFFIXES
    root = (read_yaml if is_yaml else read_json)(path, ClassNamesError)
    if root is None:
        return []
    if isinstance(root, Listing):
        return [Found(item.where, (_text(path, item),)) for item in root.items]
    if isinstance(root, Mapping):
        return [_entry(path, _text(path, key), key.where, value) for key, value in root.members]
    raise ClassNamesError(
        f"{_place(path, root.where)}: is a single value, not a class list", hint=_FORM
    )


def _entry(path: Path, class_id: str, where: str, value: Node) -> Found:
    if isinstance(value, Mapping):
        return _described(path, class_id, where, value)
    return Found(where, _names(path, value), class_id)


def _described(path: Path, class_id: str, where: str, value: Mapping) -> Found:
    fields: dict[str, Node] = {}
    for key, item in value.members:
        name = _text(path, key)
        if name not in _FIELDS:
            raise ClassNamesError(
                f"{_place(path, key.where)}: a class has no field {name!r}, but "
                f"{' and '.join(_FIELDS)}",
                hint=_FORM,
            )
        if name in fields:
            raise ClassNamesError(f"{_place(path, key.where)}: the field {name!r} stands twice")
        fields[name] = item
    names = _names(path, fields["name"]) if "name" in fields else (class_id,)
    return Found(where, names, class_id, _prompts(path, fields.get("prompts")))


def _names(path: Path, value: Node) -> tuple[str, ...]:
    if isinstance(value, Listing):
        return tuple(_text(path, item) for item in value.items)
    return (_text(path, value),)


def _prompts(path: Path, value: Node | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, Listing):
        raise ClassNamesError(
            f"{_place(path, value.where)}: the prompts are {describe(value)}, expected a list",
            hint=_FORM,
        )
    return tuple(_text(path, item) for item in value.items)


def _text(path: Path, node: Node | Other) -> str:
    if isinstance(node, Text):
        return node.text
    raise ClassNamesError(
        f"{_place(path, node.where)}: {describe(node)} stands where text is expected", hint=_FORM
    )


def _place(path: Path, where: str) -> str:
    return f"{path}, {where}" if where else f"{path}"

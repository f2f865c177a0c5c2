"""Read text, YAML and JSON files into nodes that know their line or entry.

Every scalar of a YAML file is read as the text it was written as, so an id such as `no` or `1e3`
is unchanged. Repeated keys are kept, which plain loaders drop.
This module does not interpret what a document contains.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

from wiseft_cli.errors import WiseftError, did_you_mean_path

YAML_SUFFIXES = (".yaml", ".yml")
_MAX_EXPANSION = 20
"""Values that a file may stand for through aliases, per character."""

_MAX_DEPTH = 5
"""Deepest level that is read; it also bounds YAML documents that contain themselves."""


@dataclass(frozen=True)
class Text:
    """A scalar, without leading and trailing whitespace."""

    where: str
    text: str


@dataclass(frozen=True)
class Listing:
    """A list."""

    where: str
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Mapping:
    """A mapping in file order, repeated keys included."""

    where: str
    members: tuple[tuple[Text | Other, Node], ...]


@dataclass(frozen=True)
class Other:
    """Any other value; `kind` describes it in words."""

    where: str
    kind: str


Node: TypeAlias = Text | Listing | Mapping | Other


def read_text(path: Path, error_type: type[WiseftError]) -> str:
    """Return a file's text, decoded as UTF-8 with or without a byte order mark.

    Raises:
        error_type: The file is missing, unreadable or not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise error_type(
            f"{path}: cannot be read: {error.strerror}", hint=did_you_mean_path(path)
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise error_type(
            f"{path}, line {line}: is not UTF-8 text (byte 0x{data[error.start]:02x})",
            hint="save the file as UTF-8",
        ) from None


def read_document(path: Path, error_type: type[WiseftError]) -> Node | None:
    """Read a `.yaml` or `.yml` file as YAML and any other file as JSON.

    Raises:
        error_type: The file is unreadable or malformed.
    """
    is_yaml = path.suffix.lower() in YAML_SUFFIXES
    return (read_yaml if is_yaml else read_json)(path, error_type)


def read_yaml(path: Path, error_type: type[WiseftError]) -> Node | None:
    """Read a YAML file; the place of a node is its line.

    Aliases that stand for very many values are rejected: a few of them can stand for a billion.

    Returns:
        The root node, or None for an empty file.
    Raises:
        error_type: The file is unreadable or not YAML.
    """
    import yaml  # lazy: slow to import, and not needed for text files and JSON

    text = read_text(path, error_type)
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        if root is not None and "*" in text and _count(root, {}) > _MAX_EXPANSION * len(text):
            raise error_type(
                f"{path}: its aliases stand for too many values", hint="write the values out"
            )
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise error_type(f"{path}{line}: is not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise error_type(f"{path}: is not YAML: {error}") from None
    return None if root is None else _from_yaml(root, 0)


def read_json(path: Path, error_type: type[WiseftError]) -> Node:
    """Read a JSON file; the place of a node is its entry in the outermost list or object.

    Raises:
        error_type: The file is unreadable, not JSON or nested too deeply.
    """
    text = read_text(path, error_type)
    try:
        root = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise error_type(f"{path}, line {error.lineno}: is not JSON: {error.msg}") from None
    except RecursionError:
        raise error_type(f"{path}: is nested too deeply to be read") from None
    return _from_json(root, "", 0)


def describe(node: Node) -> str:
    """Describe a node's kind in words: `a text`, `a list`, `a mapping`, `a number`..."""
    if isinstance(node, Other):
        return node.kind
    return {Text: "a text", Listing: "a list", Mapping: "a mapping"}[type(node)]


def _count(node: Any, counts: dict[int, float]) -> float:
    """Return the number of values that a node stands for; infinite if it contains itself."""
    if id(node) not in counts:
        counts[id(node)] = inf
        below = [] if node.id == "scalar" else node.value
        below = [at for pair in below for at in pair] if node.id == "mapping" else below
        counts[id(node)] = 1 + sum(_count(at, counts) for at in below)
    return counts[id(node)]


def _from_yaml(node: Any, depth: int) -> Node:
    where = f"line {node.start_mark.line + 1}"
    if depth > _MAX_DEPTH:
        return Other(where, "something nested")
    if node.id == "scalar":
        return Text(where, str(node.value).strip())
    if node.id == "sequence":
        return Listing(where, tuple(_from_yaml(item, depth + 1) for item in node.value))
    members = [
        (_key(_from_yaml(key, depth + 1)), _from_yaml(value, depth + 1))
        for key, value in node.value
    ]
    return Mapping(where, tuple(members))


def _key(node: Node) -> Text | Other:
    return node if isinstance(node, Text) else Other(node.where, describe(node))


class _Pairs:
    """The members of a JSON object, repeated keys included."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _from_json(value: Any, where: str, depth: int) -> Node:
    if depth > _MAX_DEPTH:
        return Other(where, "something nested")
    if isinstance(value, str):
        return Text(where, value.strip())
    if isinstance(value, list):
        items = [
            _from_json(item, where or f"entry {number}", depth + 1)
            for number, item in enumerate(value, start=1)
        ]
        return Listing(where, tuple(items))
    if isinstance(value, _Pairs):
        members = []
        for number, (key, item) in enumerate(value.pairs, start=1):
            place = where or f"entry {number}"
            members.append((Text(place, key), _from_json(item, place, depth + 1)))
        return Mapping(where, tuple(members))
    if isinstance(value, bool):
        return Other(where, "true or false")
    return Other(where, "null" if value is None else "a number")

"""Read a YAML or JSON file as texts, lists and mappings that know where they stand.

Every scalar of a YAML file is taken as the text it was written as, so that an id such as `no`
or `1e3` stays what it is; and a key that stands twice is kept twice, which plain loaders drop.
It does not know what a document means.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from wiseft_cli.errors import WiseftError
from wiseft_cli.prompts.text_file import read_text

YAML_SUFFIXES = (".yaml", ".yml")
_DEEPEST = 5
"""Levels that are looked at: more than any document here has, and an end to recursive ones."""


@dataclass(frozen=True)
class Text:
    """A text, without the blanks around it."""

    where: str
    text: str


@dataclass(frozen=True)
class Listing:
    """A list."""

    where: str
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Mapping:
    """A mapping, in its order, with its repeats."""

    where: str
    members: tuple[tuple[Text | Other, Node], ...]


@dataclass(frozen=True)
class Other:
    """What is none of these, in words."""

    where: str
    kind: str


Node: TypeAlias = Text | Listing | Mapping | Other


def read_yaml(path: Path, error_type: type[WiseftError]) -> Node | None:
    """Return a YAML file's content, places being lines; None for an empty file.

    Raises:
        error_type: Unreadable, or not YAML.
    """
    try:
        root = yaml.compose(read_text(path, error_type), Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise error_type(f"{path}{line}: is not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise error_type(f"{path}: is not YAML: {error}") from None
    return None if root is None else _from_yaml(root, 0)


def read_json(path: Path, error_type: type[WiseftError]) -> Node:
    """Return a JSON file's content, places being entries of the outermost list or object.

    Raises:
        error_type: Unreadable, not JSON, or nested without end.
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
    """Return what a node is, in words."""
    if isinstance(node, Other):
        return node.kind
    return {Text: "a text", Listing: "a list", Mapping: "a mapping"}[type(node)]


def _from_yaml(node: yaml.Node, depth: int) -> Node:
    where = f"line {node.start_mark.line + 1}"
    if depth > _DEEPEST:
        return Other(where, "something nested")
    if isinstance(node, yaml.ScalarNode):
        return Text(where, str(node.value).strip())
    if isinstance(node, yaml.SequenceNode):
        return Listing(where, tuple(_from_yaml(item, depth + 1) for item in node.value))
    members = [
        (_key(_from_yaml(key, depth + 1)), _from_yaml(value, depth + 1))
        for key, value in node.value
    ]
    return Mapping(where, tuple(members))


def _key(node: Node) -> Text | Other:
    return node if isinstance(node, Text) else Other(node.where, describe(node))


class _Pairs:
    """A JSON object with all its members, repeated keys included."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _from_json(value: Any, where: str, depth: int) -> Node:
    if depth > _DEEPEST:
        return Other(where, "something nested")
    if isinstance(value, str):
        return Text(where, value.strip())
    if isinstance(value, list):
        places = [where or f"entry {number}" for number in range(1, len(value) + 1)]
        items = zip(value, places, strict=True)
        return Listing(where, tuple(_from_json(item, place, depth + 1) for item, place in items))
    if isinstance(value, _Pairs):
        places = [where or f"entry {number}" for number in range(1, len(value.pairs) + 1)]
        pairs = zip(value.pairs, places, strict=True)
        members = [
            (Text(place, key), _from_json(item, place, depth + 1)) for (key, item), place in pairs
        ]
        return Mapping(where, tuple(members))
    if isinstance(value, bool):
        return Other(where, "true or false")
    return Other(where, "null" if value is None else "a number")

"""Read class lists written as YAML or JSON: a mapping of id to name, or a list of names.

Every scalar of a YAML file is taken as the text it was written as, so that an id such as `no`
or `1e3` stays what it is; and a key that stands twice is seen, which plain loaders drop.
It does not check the names; `class_names.py` does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from wiseft_cli.errors import ClassNamesError
from wiseft_cli.prompts.text_file import read_text

ClassItem = tuple[str, str, "str | None"]
"""Where it stands, the name, and the id where there is one."""

_FORM = "write a mapping of ids to names (n01440764: tench), or a list of names"


def read_yaml_classes(path: Path) -> list[ClassItem]:
    """Return the classes of a YAML file with their lines.

    Raises:
        ClassNamesError: Not YAML, or not a mapping of texts or a list of texts.
    """
    try:
        root = yaml.compose(read_text(path, ClassNamesError), Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ClassNamesError(f"{path}{line}: is not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ClassNamesError(f"{path}: is not YAML: {error}") from None
    if isinstance(root, yaml.MappingNode):
        return [(_line(key), _scalar(path, value), _scalar(path, key)) for key, value in root.value]
    if isinstance(root, yaml.SequenceNode):
        return [(_line(value), _scalar(path, value), None) for value in root.value]
    if root is None:
        return []
    raise ClassNamesError(f"{path}, {_line(root)}: is a single value, not a class list", hint=_FORM)


def read_json_classes(path: Path) -> list[ClassItem]:
    """Return the classes of a JSON file with their places.

    Raises:
        ClassNamesError: Not JSON, or not a mapping of texts or a list of texts.
    """
    text = read_text(path, ClassNamesError)
    try:
        root = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise ClassNamesError(f"{path}, line {error.lineno}: is not JSON: {error.msg}") from None
    except RecursionError:
        raise ClassNamesError(f"{path}: is nested too deeply to be a class list") from None
    if isinstance(root, _Pairs):
        return [
            (f"entry {number}", _text(path, number, name), key)
            for number, (key, name) in enumerate(root.pairs, start=1)
        ]
    if isinstance(root, list):
        return [
            (f"entry {number}", _text(path, number, name), None)
            for number, name in enumerate(root, start=1)
        ]
    raise ClassNamesError(f"{path}: is a single value, not a class list", hint=_FORM)


class _Pairs:
    """A JSON object with all its members, repeated keys included."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _text(path: Path, number: int, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    kind = "an object" if isinstance(value, _Pairs) else type(value).__name__
    raise ClassNamesError(f"{path}, entry {number}: the name is {kind}, expected text", hint=_FORM)


def _scalar(path: Path, node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value).strip()
    kind = "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
    raise ClassNamesError(
        f"{path}, {_line(node)}: {kind} stands where text is expected", hint=_FORM
    )


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"

"""Suites: YAML files that list several image sets with their options.

Paths in a suite start at its folder. It opens no set; `spec.py` does.
"""

from __future__ import annotations

from pathlib import Path

from wiseft_cli.data.set_options import OPTION_NAMES, SetSpec, parse_set_options
from wiseft_cli.errors import DatasetError
from wiseft_cli.prompts import documents

SUITE_SUFFIXES = (".yaml", ".yml")
_FORM = "write a list of sets, each with `data:` and perhaps `name:` and options"


def read_suite(path: Path) -> tuple[SetSpec, ...]:
    """Return the sets of a suite, in its order.

    Raises:
        DatasetError: Unreadable, not YAML, or an entry is not of the form above.
    """
    root = documents.read_yaml(path, DatasetError)
    if not isinstance(root, documents.Listing) or not root.items:
        found = "nothing" if root is None else documents.describe(root)
        raise DatasetError(f"{path}: holds {found}, expected a list of image sets", hint=_FORM)
    return tuple(_read_entry(path, item) for item in root.items)


def _read_entry(path: Path, node: documents.Node) -> SetSpec:
    where = f"{path}, {node.where}"
    if not isinstance(node, documents.Mapping):
        found = documents.describe(node)
        raise DatasetError(f"{where}: is {found}, expected an image set", hint=_FORM)
    texts: dict[str, str] = {}
    for key, value in node.members:
        name = key.text if isinstance(key, documents.Text) else key.kind
        place = f"{path}, {key.where}"
        if name in texts:
            raise DatasetError(f"{place}: {name!r} stands there twice")
        if name not in ("name", "data", *OPTION_NAMES):
            raise DatasetError(
                f"{place}: unknown key {name!r}",
                hint=f"a set has name, data, {', '.join(OPTION_NAMES)}",
            )
        if not isinstance(value, documents.Text) or not value.text:
            raise DatasetError(f"{place}: {name} is not a text, expected one")
        texts[name] = value.text
    data = texts.pop("data", "")
    if not data:
        raise DatasetError(f"{where}: the image set has no `data:`", hint=_FORM)
    if data.lower().endswith(SUITE_SUFFIXES):
        raise DatasetError(f"{where}: {data!r} is a suite; a suite lists image sets alone")
    set_name = texts.pop("name", None)
    options = parse_set_options(texts, where=where, error_type=DatasetError, folder=path.parent)
    return SetSpec(set_name, str(path.parent / data), options)

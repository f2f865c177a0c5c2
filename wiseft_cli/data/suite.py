"""Suites: YAML files that list several image sets with their options.

Paths in a suite start at its folder, or at a root that is named for it. Suites that ship with the
package go by name and always need one. It opens no set; `spec.py` does.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from wiseft_cli.data.set_options import OPTION_NAMES, SetSpec, parse_set_options
from wiseft_cli.errors import DatasetError, UsageError
from wiseft_cli.prompts import documents

SUITE_SUFFIXES = (".yaml", ".yml")
_FORM = "write a list of sets, each with `data:` and perhaps `name:` and options"


def suite_names() -> tuple[str, ...]:
    """Return the names of the suites that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in _shipped().iterdir() if path.suffix == ".yaml"))


def find_suite(source: str) -> Path:
    """Return the file of a suite.

    Args:
        source: The name of one that ships with the package, or a path.
    Raises:
        UsageError: No suite has that name.
    """
    if source in suite_names():
        return _shipped() / f"{source}.yaml"
    if not source.lower().endswith(SUITE_SUFFIXES):
        raise UsageError(
            f"no suite is called {source!r}; there are {', '.join(suite_names())}",
            hint="a suite of your own is named by its path, with .yaml at the end",
        )
    return Path(source)


def _shipped() -> Path:
    return Path(str(resources.files("wiseft_cli.data"))) / "suites"


def read_suite(path: Path, *, root: Path | None = None) -> tuple[SetSpec, ...]:
    """Return the sets of a suite, in its order.

    Args:
        root: Where the paths of its data start; the folder of the suite where None.
    Raises:
        DatasetError: Unreadable, not YAML, or an entry is not of the form above.
    """
    document = documents.read_yaml(path, DatasetError)
    if not isinstance(document, documents.Listing) or not document.items:
        found = "nothing" if document is None else documents.describe(document)
        raise DatasetError(f"{path}: holds {found}, expected a list of image sets", hint=_FORM)
    return tuple(_read_entry(path, item, root or path.parent) for item in document.items)


def _read_entry(path: Path, node: documents.Node, root: Path) -> SetSpec:
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
    return SetSpec(set_name, str(root / data), options)

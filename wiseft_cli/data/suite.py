"""Suites: YAML files that list several image sets with their options.

Suites that ship with the package are referred to by name and need a root folder; the paths in any
other suite are relative to its own folder, or to a given root. `sources.py` opens the sets.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.files import expand_home, is_folder, path_exists
from wiseft_cli.data.spec import NO_CARD, OPTION_NAMES, SetSpec, parse_options
from wiseft_cli.errors import DatasetError, UsageError
from wiseft_cli.prompts import documents

_FORM = "write a list of sets, each with `data:`, and optionally `name:` and options"


def suite_names() -> tuple[str, ...]:
    """Return the names of the suites that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in _folder().iterdir() if path.suffix == ".yaml"))


def _folder() -> Path:
    return Path(str(resources.files("wiseft_cli.data"))) / "suites"


def find_suite(source: str) -> Path:
    """Return the file of a suite.

    Args:
        source: Name of a suite that ships with the package, or a path.
    Raises:
        UsageError: No suite has that name.
    """
    if source in suite_names():
        return _folder() / f"{source}.yaml"
    if not source.lower().endswith(documents.YAML_SUFFIXES):
        raise UsageError(
            f"unknown suite {source!r}; the suites are {', '.join(suite_names())}",
            hint="give your own suite as a path that ends in .yaml",
        )
    return Path(source)


def read_suite(path: Path, *, root: Path | None = None) -> tuple[SetSpec, ...]:
    """Read the sets of a suite, in its order.

    Args:
        root: Folder that the paths of the data are relative to; None for the suite's own folder.
    Raises:
        DatasetError: The file cannot be read, is not YAML, or an entry is not an image set.
    """
    document = documents.read_yaml(path, DatasetError)
    if not isinstance(document, documents.Listing) or not document.items:
        found = "nothing" if document is None else documents.describe(document)
        raise DatasetError(f"{path}: contains {found}, expected a list of image sets", hint=_FORM)
    return tuple(_read_entry(path, item, root or path.parent) for item in document.items)


def _read_entry(path: Path, node: documents.Node, root: Path) -> SetSpec:
    where = f"{path}, {node.where}"
    if not isinstance(node, documents.Mapping):
        found = documents.describe(node)
        raise DatasetError(f"{where}: expected an image set, found {found}", hint=_FORM)
    texts: dict[str, str] = {}
    for key, value in node.members:
        name = key.text if isinstance(key, documents.Text) else key.kind
        place = f"{path}, {key.where}"
        if name in texts:
            raise DatasetError(f"{place}: {name!r} occurs more than once")
        if name not in ("name", "data", *OPTION_NAMES):
            raise DatasetError(
                f"{place}: unknown key {name!r}",
                hint=f"the keys of a set are name, data, {', '.join(OPTION_NAMES)}",
            )
        if not isinstance(value, documents.Text) or not value.text:
            raise DatasetError(f"{place}: the value of {name} is not text")
        texts[name] = value.text
    data = texts.pop("data", "")
    if not data:
        raise DatasetError(f"{where}: the image set has no `data:`", hint=_FORM)
    set_name = texts.pop("name", None)
    options = parse_options(texts, where=where, error_type=DatasetError, folder=path.parent)
    spec = SetSpec(set_name, str(root / expand_home(data)), options)
    if spec.is_suite:
        raise DatasetError(f"{where}: {data!r} is a suite; a suite lists only image sets")
    return spec


def find_suite_sets(source: str, root: Path | None) -> tuple[SetSpec, ...]:
    """Read a suite and check that the data of all its sets exists.

    Args:
        source: Name of a suite that ships with the package, or the path of a file.
        root: Folder that contains one folder per set, named as in the suite; None for the suite's
            own folder.
    Raises:
        UsageError: No suite has that name, or it needs a root.
        DatasetError: The suite cannot be read, or sets are missing; all of them are listed.
    """
    specs = [_as_unpacked(spec) for spec in read_suite(find_suite(source), root=root)]
    if source in suite_names() and root is None:
        names = ", ".join(dict.fromkeys(Path(spec.data).name for spec in specs))
        raise UsageError(
            f"the suite {source!r} needs --root", hint=f"name the folder that contains {names}"
        )
    if root is not None and not is_folder(root):
        found = "is not a folder" if path_exists(root) else "does not exist"
        raise DatasetError(f"suite {source}: the root {root} {found}")
    missing = [f"{spec.title}: {spec.data}" for spec in specs if not path_exists(Path(spec.data))]
    if missing:
        raise DatasetError(
            f"suite {source}: {len(missing)} of {len(specs)} sets are missing",
            faults=missing,
            hint="`wiseft datasets show NAME` shows where to download a set, and the names of its"
            " folders; to evaluate fewer sets, give each with --data, or write your own suite",
        )
    return tuple(specs)


def _as_unpacked(spec: SetSpec) -> SetSpec:
    """Point the spec of a published set to the root if its download was unpacked there."""
    place, source = Path(spec.data), spec.options.card
    if path_exists(place) or source is None or source == NO_CARD:
        return spec
    split = read_dataset_card(source).split(spec.options.split)
    if not any(is_folder(place.parent / folder) for folder in split.folders):
        return spec
    return replace(spec, data=str(place.parent))

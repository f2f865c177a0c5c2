"""Label maps: YAML or JSON files that map the labels of an image set to classes of a head.

With a label map, a test set of coarser classes, or with several correct answers per image, is
scored with a head of finer classes. `label_join.py` applies label maps.

Source: ObjectNet (Barbu et al. 2019) and ImageNet-Vid-Robust (Shankar et al., arXiv 1906.02168),
which score a class by the highest logit of the head's classes that it stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wiseft_cli.errors import DatasetError
from wiseft_cli.prompts import documents

_FORM = (
    "write a mapping of each label to classes of the head (mug: [n03063599, n03797390]), or such"
    " mappings under `classes:` and `any_of:`, and lists of labels under `unmapped:` and"
    " `leave_out:`"
)
_SECTIONS = ("classes", "any_of", "unmapped", "leave_out")


@dataclass(frozen=True)
class LabelMap:
    """The meaning of the labels of an image set.

    Attributes:
        path: The file.
        classes: The head's classes, by id or name, that each label stands for; their highest
            logit is the score of the label.
        any_of: For each label with several correct answers, labels of `classes`, or classes of
            the head.
        unmapped: Labels without a class in the head. They are never predicted; an image that has
            only such labels is always counted as wrong.
        leave_out: Labels whose images are not used.
    """

    path: Path
    classes: Mapping[str, tuple[str, ...]]
    any_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    unmapped: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of `classes` and of `unmapped`."""
        return (*self.classes, *self.unmapped)


def read_label_map(path: Path) -> LabelMap:
    """Read a label map from a `.yaml`, `.yml` or `.json` file.

    Raises:
        DatasetError: The file cannot be read or parsed, or is not a label map; every fault is
            listed with its place.
    """
    is_yaml = path.suffix.lower() in documents.YAML_SUFFIXES
    root = (documents.read_yaml if is_yaml else documents.read_json)(path, DatasetError)
    if not isinstance(root, documents.Mapping) or not root.members:
        found = "nothing" if root is None else documents.describe(root)
        raise DatasetError(f"{path}: contains {found}, expected a mapping of labels", hint=_FORM)
    faults: list[str] = []
    sections = _sections(root, faults)
    classes = _read_table(sections.get("classes"), faults)
    any_of = _read_table(sections.get("any_of"), faults)
    unmapped = _read_list(sections.get("unmapped"), faults)
    leave_out = _read_list(sections.get("leave_out"), faults)
    counts = Counter([*classes, *any_of, *unmapped, *leave_out])
    faults += [f"label {label!r} occurs more than once" for label, n in counts.items() if n > 1]
    if faults:
        raise DatasetError(f"{path}: not a valid label map", faults=faults, hint=_FORM)
    return LabelMap(path, classes, any_of, leave_out, unmapped)


def _sections(root: documents.Mapping, faults: list[str]) -> dict[str, documents.Node]:
    """Return the sections of a file; a file without sections is the section `classes`."""
    if not any(isinstance(value, documents.Mapping) for _, value in root.members):
        return {"classes": root}
    sections: dict[str, documents.Node] = {}
    for key, value in root.members:
        name = key.text if isinstance(key, documents.Text) else key.kind
        if name not in _SECTIONS:
            faults.append(f"{key.where}: unknown key {name!r}, expected {', '.join(_SECTIONS)}")
        elif name in sections:
            faults.append(f"{key.where}: {name!r} occurs more than once")
        else:
            sections[name] = value
    return sections


def _read_table(table: documents.Node | None, faults: list[str]) -> dict[str, tuple[str, ...]]:
    if table is None:
        return {}
    if not isinstance(table, documents.Mapping):
        faults.append(f"{table.where}: expected a mapping, found {_found(table)}")
        return {}
    entries: dict[str, tuple[str, ...]] = {}
    for key, value in table.members:
        if not isinstance(key, documents.Text) or not key.text:
            faults.append(f"{key.where}: expected a label, found {_found(key)}")
            continue
        if isinstance(value, documents.Listing) and not value.items:
            faults.append(f"{key.where}: {key.text!r} has no classes")
        if key.text in entries:
            faults.append(f"{key.where}: label {key.text!r} occurs more than once")
        entries[key.text] = tuple(dict.fromkeys(_read_list(value, faults)))
    return entries


def _read_list(node: documents.Node | None, faults: list[str]) -> tuple[str, ...]:
    """Return the texts of a list, or a single text."""
    if node is None:
        return ()
    items = node.items if isinstance(node, documents.Listing) else (node,)
    faults += [
        f"{item.where}: expected an id or name, found {_found(item)}"
        for item in items
        if not isinstance(item, documents.Text) or not item.text
    ]
    return tuple(item.text for item in items if isinstance(item, documents.Text))


def _found(node: documents.Node) -> str:
    return "empty text" if isinstance(node, documents.Text) else documents.describe(node)

"""Label maps: files that say which of a head's classes a label of an image set stands for.

They make a test set of coarser classes, or of several right answers an image, usable with a
head of finer ones. This module reads them; `label_space.py` joins through them.

Source: ObjectNet (Barbu et al. 2019) and ImageNet-Vid-Robust (Shankar et al., arXiv 1906.02168)
are scored so: a class's score is the highest among the head's classes that it stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wiseft_cli.errors import DatasetError, list_some
from wiseft_cli.prompts import documents

_FORM = (
    "write a mapping of each label to classes of the head (mug: [n03063599, n03797390]), or such"
    " mappings under `classes:` and `any_of:`, and lists of labels under `unmapped:` and"
    " `leave_out:`"
)
_SECTIONS = ("classes", "any_of", "unmapped", "leave_out")


@dataclass(frozen=True)
class LabelMap:
    """What the labels of a set stand for.

    Attributes:
        path: The file.
        classes: Label to the head's classes it stands for, by id or name; their highest logit
            is the label's score.
        any_of: Label to what is right for it: labels of `classes`, or classes of the head.
        unmapped: Labels that no class of the head stands for: they never win, and an image of no
            other label is never right.
        leave_out: Labels whose images take no part.
    """

    path: Path
    classes: Mapping[str, tuple[str, ...]]
    any_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    unmapped: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it explains, those of several answers aside."""
        return (*self.classes, *self.unmapped)


def read_label_map(path: Path) -> LabelMap:
    """Read a map from a `.yaml`, `.yml` or `.json` file.

    Raises:
        DatasetError: Unreadable, not of its format, or not of a map's form; every place is
            listed.
    """
    is_yaml = path.suffix.lower() in documents.YAML_SUFFIXES
    root = (documents.read_yaml if is_yaml else documents.read_json)(path, DatasetError)
    if not isinstance(root, documents.Mapping) or not root.members:
        found = "nothing" if root is None else documents.describe(root)
        raise DatasetError(f"{path}: holds {found}, expected a mapping of labels", hint=_FORM)
    faults: list[str] = []
    sections = _sections(root, faults)
    classes = _read_table(sections.get("classes"), faults)
    any_of = _read_table(sections.get("any_of"), faults)
    unmapped = _read_list(sections.get("unmapped"), faults)
    leave_out = _read_list(sections.get("leave_out"), faults)
    times = Counter([*classes, *any_of, *unmapped, *leave_out])
    repeated = [label for label, n_times in times.items() if n_times > 1]
    faults += [f"  {label!r} stands there more than once" for label in repeated]
    if faults:
        raise DatasetError("\n".join([f"{path}: is no label map:", *list_some(faults)]), hint=_FORM)
    return LabelMap(path, classes, any_of, leave_out, unmapped)


def _sections(root: documents.Mapping, faults: list[str]) -> dict[str, documents.Node]:
    """Return the parts of a file: those it names, or the file itself as `classes`."""
    if not any(isinstance(value, documents.Mapping) for _, value in root.members):
        return {"classes": root}
    sections: dict[str, documents.Node] = {}
    for key, value in root.members:
        name = key.text if isinstance(key, documents.Text) else key.kind
        if name not in _SECTIONS:
            faults.append(f"  {key.where}: {name!r} is none of {', '.join(_SECTIONS)}")
        elif name in sections:
            faults.append(f"  {key.where}: {name!r} stands there twice")
        else:
            sections[name] = value
    return sections


def _read_table(table: documents.Node | None, faults: list[str]) -> dict[str, tuple[str, ...]]:
    if table is None:
        return {}
    if not isinstance(table, documents.Mapping):
        faults.append(f"  {table.where}: expected a mapping, found {_found(table)}")
        return {}
    entries: dict[str, tuple[str, ...]] = {}
    for key, value in table.members:
        if not isinstance(key, documents.Text) or not key.text:
            faults.append(f"  {key.where}: expected a label, found {_found(key)}")
            continue
        if isinstance(value, documents.Listing) and not value.items:
            faults.append(f"  {key.where}: {key.text!r} names no class")
        if key.text in entries:
            faults.append(f"  {key.where}: {key.text!r} stands there twice")
        entries[key.text] = tuple(dict.fromkeys(_read_list(value, faults)))
    return entries


def _read_list(node: documents.Node | None, faults: list[str]) -> tuple[str, ...]:
    """Return the texts of a list, or of one text."""
    if node is None:
        return ()
    items = node.items if isinstance(node, documents.Listing) else (node,)
    faults += [
        f"  {item.where}: expected an id or name, found {_found(item)}"
        for item in items
        if not isinstance(item, documents.Text) or not item.text
    ]
    return tuple(item.text for item in items if isinstance(item, documents.Text))


def _found(node: documents.Node) -> str:
    if isinstance(node, documents.Text):
        return "an empty text"
    return documents.describe(node)

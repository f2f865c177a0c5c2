"""Find the weights in an object that torch.save wrote, and name them as other files do.

The object is a state dict; a training checkpoint that holds one beside its optimizer (open_clip,
Lightning); or a whole module, as wise-ft and model-soups save it. A whole module is a tree of
records with `_parameters`, `_buffers` and `_modules`; an archive of TorchScript has attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wiseft_cli.convert.pickles import Record, StoredTensor, UnsupportedTensor
from wiseft_cli.errors import CheckpointError, UsageError, brief, counted, list_some

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel, DistributedDataParallel and torch.compile add to every name."""

_HEAD = "classification_head."
_CLASSIFIER_TOWER = re.compile(r"(?:image_encoder\.)?model\.(visual\..+)")
"""Names of the image encoder in wise-ft's ImageClassifier and in model-soups' ModelWrapper."""

_MAX_DEPTH = 100


@dataclass(frozen=True)
class StateDict:
    """The weights in a file.

    Attributes:
        tensors: By name.
        notes: What was chosen, renamed and left out, one sentence each.
    """

    tensors: Mapping[str, StoredTensor]
    notes: tuple[str, ...] = ()


def find_state_dict(root: Any, path: Path, *, key: str | None = None) -> StateDict:
    """Return the weights in a saved object.

    Args:
        root: The object, as `pickles.load_pickle` returns it.
        path: The file, for messages.
        key: Where the weights are: a key of a dict, or several with dots between them.
    Raises:
        UsageError: The object has no such key, or several that hold weights and `key` is None.
        CheckpointError: It has no weights, or tensors without plain values.
    """
    value, notes = (root, []) if key is None else (_at_key(root, key, path), [f"weights of {key}"])
    if key is None and (candidates := _candidates(root)):
        if len(candidates) > 1:
            raise UsageError(
                f"{path}: holds several sets of weights: {', '.join(candidates)}",
                hint=f"choose one with --key, for example --key {candidates[0]}",
            )
        notes = [f"weights of {candidates[0]!r}; the file's other entries are left out"]
        value = root[candidates[0]]
    found = dict(_named_values(value))
    _reject_unsupported(found, path)
    tensors = {name: at for name, at in found.items() if isinstance(at, StoredTensor)}
    if not tensors:
        raise _without_weights(root, path)
    if others := sorted(found.keys() - tensors.keys()):
        shown = ", ".join(list_some(list(map(brief, others)), limit=3))
        notes.append(f"{counted(len(others), 'entry', plural='entries')} not tensors: {shown}")
    if isinstance(value, Record):
        notes.append(f"tensors of a saved module of the class {value.cls}")
    state = _without_wrappers(StateDict(tensors, tuple(notes)))
    return _as_classifier(state, _normalizes(value))


def _at_key(root: Any, key: str, path: Path) -> Any:
    value = root
    for part in key.split("."):
        entries = _entries(value)
        if part not in entries:
            known = ", ".join(list_some([brief(str(at)) for at in entries if isinstance(at, str)]))
            raise UsageError(f"{path}: has no entry {key!r}", hint=known and f"it has {known}")
        value = entries[part]
    return value


def _entries(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Record):
        return value.items or value.attributes
    return value if isinstance(value, dict) else {}


def _candidates(root: Any) -> list[str]:
    """Return the keys of a training checkpoint that hold weights."""
    if not isinstance(root, dict):
        return []
    return [name for name, at in root.items() if isinstance(name, str) and _is_weights(at)]


def _is_weights(value: Any) -> bool:
    if isinstance(value, Record) and _is_module(value):
        return True
    entries = _entries(value)
    tensors = (StoredTensor, UnsupportedTensor)
    return all(isinstance(name, str) for name in entries) and any(
        isinstance(at, tensors) for at in entries.values()
    )


def _is_module(record: Record) -> bool:
    is_script = record.cls.module.startswith("__torch__")
    return is_script or {"_parameters", "_modules"} <= record.attributes.keys()


def _named_values(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a state dict, or the parameters and buffers of a module."""
    if not isinstance(value, Record) or not _is_module(value):
        for name, at in _entries(value).items():
            if isinstance(name, str):
                yield name, at
        return
    pending, seen = [("", value)], set[int]()
    while pending:
        prefix, module = pending.pop()
        if id(module) in seen or prefix.count(".") > _MAX_DEPTH:
            continue
        seen.add(id(module))
        for name, at in _own_values(module):
            if isinstance(at, Record) and _is_module(at):
                pending.append((f"{prefix}{name}.", at))
            elif isinstance(at, StoredTensor | UnsupportedTensor):
                yield prefix + name, at


def _own_values(module: Record) -> Iterator[tuple[str, Any]]:
    """Yield the parameters, persistent buffers and submodules of one module."""
    attributes = module.attributes
    tables: list[Any] = [attributes.get(at) for at in ("_parameters", "_buffers", "_modules")]
    if module.cls.module.startswith("__torch__"):
        tables = [attributes]
    hidden = attributes.get("_non_persistent_buffers_set")
    skipped = hidden.elements if isinstance(hidden, Record) else []
    if isinstance(hidden, Record) and hidden.args and isinstance(hidden.args[0], list):
        skipped = [*skipped, *hidden.args[0]]
    for table in tables:
        for name, at in _entries(table).items():
            if isinstance(name, str) and name not in skipped:
                yield name, at


def _reject_unsupported(found: Mapping[str, Any], path: Path) -> None:
    faults = [
        f"{name}: is {at.kind}" for name, at in found.items() if isinstance(at, UnsupportedTensor)
    ]
    if faults:
        raise CheckpointError(
            f"{path}: holds tensors that are not plain arrays",
            faults=faults,
            hint="save plain tensors from the program that wrote them: model.state_dict() on the "
            "CPU, dequantized and dense, with torch.save",
        )


def _without_weights(root: Any, path: Path) -> CheckpointError:
    names = [brief(str(name)) for name in _entries(root) if isinstance(name, str)]
    found = f"an object of {root.cls}" if isinstance(root, Record) else f"a {type(root).__name__}"
    keys = f" with the entries {', '.join(list_some(names))}" if names else ""
    return CheckpointError(
        f"{path}: holds no state dict and no module, but {found}{keys}",
        hint="if the weights are deeper in it, name the place with --key A.B",
    )


def _without_wrappers(state: StateDict) -> StateDict:
    """Remove the prefixes of wrappers that every name has."""
    tensors, removed = state.tensors, ""
    while prefix := next((at for at in _WRAPPERS if all(n.startswith(at) for n in tensors)), ""):
        tensors = {name.removeprefix(prefix): at for name, at in tensors.items()}
        removed += prefix
    if not removed:
        return state
    return StateDict(tensors, (*state.notes, f"prefix {removed} removed from every name"))


def _normalizes(value: Any) -> bool | None:
    """Return whether a saved classifier normalizes its features; None if the file cannot say."""
    if not isinstance(value, Record):
        return None
    heads = [dict(_own_values(value)).get("classification_head"), value]
    for at in heads:
        normalizes = at.attributes.get("normalize") if isinstance(at, Record) else None
        if isinstance(normalizes, bool):
            return normalizes
    return None


def _as_classifier(state: StateDict, normalizes: bool | None) -> StateDict:
    """Give the tensors of a wise-ft or model-soups classifier the names of a wiseft checkpoint."""
    names = {
        name: match[1] if (match := _CLASSIFIER_TOWER.fullmatch(name)) else name
        for name in state.tensors
    }
    heads = {name for name in names if name.startswith(_HEAD)}
    kept = {old: new for old, new in names.items() if old in heads or new != old}
    if not heads or len(kept) == len(heads):
        return state
    if normalizes is False:
        note = "its head takes features that are not normalized, which no wiseft checkpoint does"
        return replace(state, notes=(*state.notes, f"{note}: names are kept as they are"))
    notes = [*state.notes, "a classifier: its image encoder is named visual.*"]
    if normalizes is None:
        notes.append("the file does not say whether features are normalized; wiseft assumes it")
    if left := sorted(names.keys() - kept.keys()):
        shown = ", ".join(list_some(list(map(brief, left)), limit=3))
        notes.append(f"{counted(len(left), 'tensor')} outside it left out: {shown}")
    return StateDict({new: state.tensors[old] for old, new in kept.items()}, tuple(notes))

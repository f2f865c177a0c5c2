"""The request of a merge: options of the command line, and the YAML file that states the same.

A plan file has the names of the options as keys, with underscores or hyphens. An option replaces
the key of the same name. Places in the file are reported by their lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wiseft_cli.errors import MergePlanError, UsageError, did_you_mean
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.layers import layer_alpha, parse_layer_alpha
from wiseft_cli.merging.methods import DEFAULT_METHOD, METHODS
from wiseft_cli.merging.settings import LayerAlpha, MergeSettings, resolve_alphas, resolve_settings
from wiseft_cli.prompts import documents

METHOD_OPTIONS = tuple(
    dict.fromkeys(option.name for method in METHODS.values() for option in method.options)
)
"""Names of the options that some method has."""

_WORDS = {"dtype": ("float32", "float16", "bfloat16"), "missing": ("refuse", "copy")}
_SWITCHES = {"true": True, "yes": True, "false": False, "no": False}
_LISTS = ("alpha", "weights", "fisher")
KEYS = ("method", *_LISTS, "layer_alpha", *METHOD_OPTIONS, *_WORDS, "extrapolate")
"""The keys of a plan file."""


@dataclass(frozen=True)
class MergeRequest:
    """What to merge by, from the options and the plan file.

    Attributes:
        method: Name of the method.
        alpha: Texts of `--alpha`; empty for the method's default.
        weights: Exact decimals; empty for equal weights.
        layer_alpha: Alphas by pattern.
        options: Options of the method by name.
        fisher: Fisher file of every input.
        dtype: Dtype to store floating tensors in; None keeps theirs.
        missing: `refuse` or `copy`.
        extrapolate: Whether alpha may be outside [0, 1].
    """

    method: str = DEFAULT_METHOD
    alpha: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    layer_alpha: tuple[LayerAlpha, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    fisher: tuple[str, ...] = ()
    dtype: str | None = None
    missing: str = "refuse"
    extrapolate: bool = False

    def resolve(self, n_finetuned: int) -> tuple[MergeSettings, tuple[Alpha | None, ...]]:
        """Return the settings and alphas of a merge with this number of fine-tuned inputs.

        Raises:
            UsageError: A value is wrong, or does not fit the method or the inputs.
        """
        settings = resolve_settings(
            self.method,
            n_finetuned=n_finetuned,
            weights=self.weights,
            layer_alphas=self.layer_alpha,
            options=self.options,
        )
        return settings, resolve_alphas(settings, self.alpha, extrapolate=self.extrapolate)


def combine_request(path: Path | None, given: Mapping[str, Any]) -> MergeRequest:
    """Return the request of a plan file, with options in place of its keys.

    Args:
        path: The plan file, if there is one.
        given: Options by key; None and empty ones are not given.
    Raises:
        MergePlanError: The file is not YAML, or has unknown, repeated or wrong keys.
        UsageError: A pattern of `--layer-alpha` is malformed.
    """
    values = read_plan_file(path) if path else {}
    values |= {
        key: value
        for key, value in given.items()
        if value is not False and value not in (None, (), [])  # 0 equals False, and is a value
    }
    if rows := values.get("layer_alpha"):
        values["layer_alpha"] = tuple(
            parse_layer_alpha(row) if isinstance(row, str) else row for row in rows
        )
    weights = [part.strip() for text in values.get("weights", ()) for part in text.split(",")]
    return MergeRequest(
        method=values.get("method", DEFAULT_METHOD),
        alpha=tuple(values.get("alpha", ())),
        weights=tuple(weights),
        layer_alpha=tuple(values.get("layer_alpha", ())),
        options={name: str(values[name]) for name in METHOD_OPTIONS if name in values},
        fisher=tuple(values.get("fisher", ())),
        dtype=values.get("dtype"),
        missing=values.get("missing", "refuse"),
        extrapolate=values.get("extrapolate", False),
    )


def read_plan_file(path: Path) -> dict[str, Any]:
    """Return the values of a plan file by key.

    Raises:
        MergePlanError: The file is not YAML, or has unknown, repeated or wrong keys.
    """
    root = documents.read_yaml(path, MergePlanError)
    if not isinstance(root, documents.Mapping):
        found = "nothing" if root is None else documents.describe(root)
        raise MergePlanError(
            f"{path}: holds {found}, expected a mapping of options",
            hint="`wiseft merge --print-plan` prints a plan to start from",
        )
    values: dict[str, Any] = {}
    faults: list[str] = []
    for node, value in root.members:
        written = node.text if isinstance(node, documents.Text) else "?"
        key = written.replace("-", "_")
        try:
            if key not in KEYS:
                near = did_you_mean(key, KEYS)
                raise ValueError(f"unknown key {written!r}" + (f"; {near}" if near else ""))
            if key in values:
                raise ValueError(f"{written} is set again")
            values[key] = _read_value(key, value)
        except (ValueError, UsageError) as error:
            faults.append(f"{path}, {node.where}: {error}")
    if faults:
        raise MergePlanError(
            faults[0] if len(faults) == 1 else f"{path}: {len(faults)} mistakes",
            faults=faults if len(faults) > 1 else (),
            hint=f"the keys are {', '.join(KEYS)}",
        )
    return values


def _read_value(key: str, node: documents.Node) -> Any:
    if key == "layer_alpha":
        return _read_layer_alphas(node)
    if key in _LISTS:
        items = node.items if isinstance(node, documents.Listing) else (node,)
        return [_read_text(key, item) for item in items]
    text = _read_text(key, node)
    if key == "extrapolate":
        if text.lower() not in _SWITCHES:
            raise ValueError(f"{key} is {text!r}, expected true or false")
        return _SWITCHES[text.lower()]
    if key in _WORDS and text not in _WORDS[key]:
        raise ValueError(f"{key} is {text!r}, expected {' or '.join(_WORDS[key])}")
    return text


def _read_text(key: str, node: documents.Node) -> str:
    if not isinstance(node, documents.Text) or not node.text:
        raise ValueError(f"{key} is {documents.describe(node)}, expected one value")
    return node.text


def _read_layer_alphas(node: documents.Node) -> list[LayerAlpha]:
    if not isinstance(node, documents.Mapping):
        raise ValueError(f"layer_alpha is {documents.describe(node)}, expected pattern: alpha")
    return [
        layer_alpha(_read_text("a pattern of layer_alpha", name), _read_text("layer_alpha", value))
        for name, value in node.members
    ]


def render_plan(request: MergeRequest, n_finetuned: int) -> str:
    """Return a request as YAML that `read_plan_file` reads back, with every default filled in.

    Raises:
        UsageError: See `MergeRequest.resolve`.
    """
    settings, alphas = request.resolve(n_finetuned)
    rows: dict[str, Any] = {"method": settings.method}
    if texts := [alpha.text for alpha in alphas if alpha]:
        rows["alpha"] = texts
    if settings.weights:
        rows["weights"] = [weight.text for weight in settings.weights]
    lines = [f"{key}: {_render(value)}" for key, value in rows.items()]
    if settings.layer_alphas:
        lines.append("layer_alpha:")
        lines += [f"  {json.dumps(row.pattern)}: {row.alpha.text}" for row in settings.layer_alphas]
    lines += [f"{key}: {value}" for key, value in settings.options.items()]
    if request.fisher:
        lines.append(f"fisher: {json.dumps(request.fisher)}")
    if request.dtype:
        lines.append(f"dtype: {request.dtype}")
    lines.append(f"missing: {request.missing}")
    if request.extrapolate:
        lines.append("extrapolate: true")
    return "".join(f"{line}\n" for line in lines)


def _render(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else f"[{', '.join(value)}]"

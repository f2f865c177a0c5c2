"""Write the README.md of an exported model folder: a model card in the form of the hub.

The front matter has what the hub reads: library, task, base model, data sets and metrics. The
licence is left to the person who publishes the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wiseft_cli.checkpoint.card import EXIF_ORIENTATION, Card
from wiseft_cli.errors import list_some
from wiseft_cli.reporting.report_text import markdown_text
from wiseft_cli.reporting.results import ResultLine

_PAPER = "[WiSE-FT](https://arxiv.org/abs/2109.01903)"
_METHODS = {
    "zeroshot": "a zero-shot classifier",
    "finetuned": "a fine-tuned model",
    "merged": f"a merge of a zero-shot and a fine-tuned model ({_PAPER})",
}


@dataclass(frozen=True)
class Usage:
    """How the files of a folder are used.

    Attributes:
        library: Name of the library on the hub.
        code: Python code that loads the folder.
        notes: Sentences below the code.
    """

    library: str
    code: str
    notes: tuple[str, ...] = ()


def results_of(card: Card, lines: Sequence[ResultLine]) -> list[ResultLine]:
    """Return the results lines of a checkpoint: of the file, or of the merge that it is.

    A row of `wiseft eval --alpha` has the weights of the merged file without its digest.
    """
    inputs = {item.digest for item in card.history[-1].inputs} if card.history else set()
    return [
        line
        for line in lines
        if {one.digest for one in line.checkpoints} == {card.digest}
        or (
            line.alpha is not None
            and line.alpha == card.alpha
            and {one.digest for one in line.checkpoints} == inputs
            and not line.ensemble
        )
    ]


def render_model_card(
    card: Card,
    usage: Usage,
    *,
    name: str,
    base_model: str | None = None,
    lines: Sequence[ResultLine] = (),
) -> str:
    """Return a README.md with front matter.

    Args:
        card: The card of the checkpoint.
        name: Name of the model.
        base_model: Repository of the base model on the hub; None if it has none.
        lines: Results lines of the checkpoint, from `results_of`.
    """
    front = _front_matter(card, usage, name, base_model, lines)
    parts = [front, f"# {markdown_text(name)}", _description(card)]
    parts.append(f"## Use\n\n```python\n{usage.code.strip()}\n```")
    parts += usage.notes
    if lines:
        parts.append(_results_table(lines))
    parts += [_classes(card), _preprocessing(card), _provenance(card)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(
    card: Card, usage: Usage, name: str, base_model: str | None, lines: Sequence[ResultLine]
) -> str:
    """Return YAML; JSON strings and lists are YAML too."""
    fields: list[str] = [
        "# license: choose the licence; that of the base model and of the data may bind you",
        f"library_name: {usage.library}",
        "pipeline_tag: image-classification",
        "tags: [wise-ft, clip, robust-fine-tuning]",
    ]
    if base_model:
        fields.append(f"base_model: {json.dumps(base_model)}")
    names = list(dict.fromkeys([*_training_sets(card), *(line.set_name for line in lines)]))
    if names:
        fields.append(f"datasets: {json.dumps(names)}")
    if lines:
        fields.append(f"model-index: {json.dumps(_model_index(name, lines))}")
    return "\n".join(["---", *fields, "---"])


def _training_sets(card: Card) -> list[str]:
    """Return the names of the training sets in the recipe, without folders."""
    value = (card.recipe or {}).get("train")
    values = value if isinstance(value, list) else [value]
    return [text.rpartition("/")[2] for text in values if isinstance(text, str) and text]


_METRIC_TYPES = {"macro_f1": "f1"}
"""The hub's types of metrics that are not accuracies."""


def _model_index(name: str, lines: Sequence[ResultLine]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "results": [
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"name": line.set_name, "type": line.set_name},
                    "metrics": [
                        {"type": _METRIC_TYPES.get(metric, "accuracy"), "name": metric}
                        | {"value": found.value}
                        for metric, found in line.metrics.items()
                    ],
                }
                for line in lines
            ],
        }
    ]


def _description(card: Card) -> str:
    model = card.model
    source = markdown_text((model.source if model else None) or "random weights")
    name = markdown_text(model.name if model else "unknown")
    text = f"This is {_METHODS[card.role]}, made with wiseft. Base model: {name}, weights {source}."
    if card.alpha is not None:
        text += f" alpha, the weight of the fine-tuned model: {card.alpha}."
    if method := card.extra.get("method"):
        text += f" Merge method: {markdown_text(str(method))}."
    return text


def _results_table(lines: Sequence[ResultLine]) -> str:
    rows = ["| Data set | Images | Metric | Value | 95 % interval |", "|---|---|---|---|---|"]
    for line in lines:
        for name, metric in line.metrics.items():
            ends = ""
            if metric.low is not None and metric.high is not None:
                ends = f"{100 * metric.low:.2f} to {100 * metric.high:.2f}"
            value = f"{100 * metric.value:.2f} %"
            names = (markdown_text(line.set_name), f"{line.n_images:,}", markdown_text(name))
            rows.append(f"| {' | '.join(names)} | {value} | {ends} |")
    return "## Results\n\n" + "\n".join(rows)


def _classes(card: Card) -> str:
    names = [markdown_text(" ".join(entry.name.split())) for entry in card.classes]
    return f"## Classes\n\n{len(names)} classes: " + ", ".join(list_some(names, limit=50)) + "."


def _preprocessing(card: Card) -> str:
    fields = dict(card.preprocess or {})
    lines = [f"- {key}: {json.dumps(value)}" for key, value in sorted(fields.items())]
    if fields.get(EXIF_ORIENTATION) == "apply":
        lines.append("- images are turned upright by their EXIF orientation before everything else")
    return "## Preprocessing\n\n" + "\n".join(lines)


def _provenance(card: Card) -> str:
    steps = " -> ".join(markdown_text(entry.command) for entry in card.history)
    return (
        f"## Provenance\n\nCheckpoint {card.digest}, made by {steps or 'unknown steps'}."
        + (f" Seed {card.seed}." if card.seed is not None else "")
        + (f"\n\nRecipe: `{json.dumps(dict(card.recipe), sort_keys=True)}`" if card.recipe else "")
    )

"""The card of a fine-tuned checkpoint: the parent's, with one run at the end of its history.

It is known before the run begins, and so says whether something on disk belongs to that run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wiseft_cli import __version__
from wiseft_cli.checkpoint.card import (
    Card,
    HistoryEntry,
    HistoryInput,
    card_document,
    join_histories,
)
from wiseft_cli.checkpoint.digest import canonical_json, sha256_of
from wiseft_cli.training.plan import FinetunePlan


def finetuned_card(plan: FinetunePlan) -> Card:
    """Return the card of the plan's output: the parent's, with this run at the history's end."""
    recipe = plan.recipe.as_mapping()
    entry = HistoryEntry(
        command="finetune",
        version=__version__,
        options={"recipe": recipe, "seed": plan.recipe.seed, "train": dict(plan.train_record)},
        inputs=(HistoryInput(plan.card.role, plan.parent_digest),),
    )
    return replace(
        plan.card,
        role="finetuned",
        alpha=None,
        recipe=recipe,
        seed=plan.recipe.seed,
        history=(*join_histories(plan.card), entry),
        digest=None,
    )


def list_changes(found: Card, wanted: Card) -> list[str]:
    """Return how the card of one run differs from that of another, one line for each value.

    Versions of wiseft and content digests do not count.

    Args:
        found: From a file.
        wanted: Of the run that is about to begin.
    """
    then, now = _describe(found), _describe(wanted)
    return [
        f"{name}: {then.get(name, 'unknown')} there, {now.get(name, 'unknown')} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _describe(card: Card) -> dict[str, Any]:
    """Return what makes up a run: its options by dotted name, the rest of its card as a whole."""
    document = card_document(card)
    *earlier, last = document.pop("history") or [{}]
    # Both stand among the last entry's options.
    for name in ("digest", "recipe", "seed"):
        document.pop(name, None)
    described = {
        name: sha256_of(canonical_json(value).encode())[:19] for name, value in document.items()
    }
    described["earlier history"] = sha256_of(canonical_json(earlier).encode())[:19]
    described["command"] = last.get("command")
    for source in last.get("inputs", ()):
        described[f"digest of the {source['role']} checkpoint"] = source["digest"]
    return described | _flatten(last.get("options", {}))


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.loads(json.dumps(value))  # a tuple comes back as a list
    return flat

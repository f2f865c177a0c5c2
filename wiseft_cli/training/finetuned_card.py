"""The card of a fine-tuned checkpoint: the parent's, with one run at the end of its history.

It is known before the run begins, and so says whether something on disk belongs to that run.
"""

from __future__ import annotations

from dataclasses import replace

from wiseft_cli import __version__
from wiseft_cli.checkpoint.card import Card, HistoryEntry, HistoryInput, join_histories
from wiseft_cli.training.plan import FinetunePlan


def finetuned_card(plan: FinetunePlan) -> Card:
    """Return the card of the plan's output: the parent's, with this run at the history's end."""
    recipe = plan.recipe.as_mapping()
    train = {"fingerprint": plan.train_fingerprint, "n_images": plan.recipe.n_images}
    entry = HistoryEntry(
        command="finetune",
        version=__version__,
        options={"recipe": recipe, "seed": plan.recipe.seed, "train": train},
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

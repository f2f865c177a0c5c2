"""The history as a tree, also if a merge equals one of its inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wiseft_cli.checkpoint.card import Card, HistoryEntry, HistoryInput, join_histories
from wiseft_cli.checkpoint.summary import draw_history


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


@pytest.mark.parametrize(("alpha", "output"), [("0", "a"), ("0.5", "c"), ("1", "b")])
def test_every_step_is_drawn_once_at_every_alpha(alpha: str, output: str) -> None:
    head = HistoryEntry("zeroshot-head", "0.1.0", {}, (), digest("a"))
    tuned = HistoryEntry(
        "finetune", "0.1.0", {}, (HistoryInput("zeroshot", digest("a")),), digest("b")
    )
    inputs = (HistoryInput("zeroshot", digest("a")), HistoryInput("finetuned", digest("b")))
    merge = HistoryEntry("merge", "0.1.0", {"alpha": alpha}, inputs)
    card = Card(role="merged", alpha=alpha, history=(head, tuned, merge), digest=digest(output))
    commands = [word for line in draw_history(card) for word in line.split()]
    assert [commands.count(name) for name in ("merge", "finetune", "zeroshot-head")] == [1, 1, 1]


def test_a_history_continued_from_a_merge_that_equals_its_input_lists_each_output_once() -> None:
    head = HistoryEntry("zeroshot-head", "0.1.0", {}, (), digest("a"))
    merge = HistoryEntry("merge", "0.1.0", {"alpha": "0"}, (HistoryInput("zeroshot", digest("a")),))
    card = Card(role="merged", history=(head, merge), digest=digest("a"))
    outputs = [entry.output for entry in join_histories(replace(card))]
    assert outputs == [digest("a")]

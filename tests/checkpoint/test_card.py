"""The card: canonical form, round trip, unknown fields, damage and joined histories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from wiseft_cli.checkpoint.card import (
    Card,
    ClassEntry,
    HistoryEntry,
    HistoryInput,
    ModelSpec,
    closed_history,
    join_histories,
    parse_card,
    render_card,
)
from wiseft_cli.errors import CheckpointError

PATH = Path("a.safetensors")


def digest(letter: str) -> str:
    return "blake3:" + letter * 64


def make_card() -> Card:
    return Card(
        role="merged",
        model=ModelSpec("ViT-B-32", "openai", {"embed_dim": 512, "quick_gelu": True}),
        preprocess={"size": [224, 224]},
        classes=(ClassEntry("n01440764", "tench"),),
        templates=("a photo of a {}.",),
        logit_scale=100.0,
        alpha="0.5",
        recipe={"lr": 3e-5},
        seed=0,
        history=(HistoryEntry("merge", "0.1.0", {"alpha": "0.5"}, ()),),
        digest=digest("a"),
    )


def test_parsing_a_rendered_card_returns_the_card() -> None:
    assert parse_card(render_card(make_card()), PATH) == make_card()


def test_the_text_is_canonical_json() -> None:
    text = render_card(make_card())
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text.isascii()


def test_fields_of_a_later_version_are_kept() -> None:
    document = json.loads(render_card(make_card()))
    document["licence"] = {"name": "MIT"}
    card = parse_card(json.dumps(document), PATH)
    assert json.loads(render_card(card)) == document


def test_an_unknown_digest_has_the_width_of_a_known_one() -> None:
    assert len(render_card(replace(make_card(), digest=None))) == len(render_card(make_card()))


def test_a_newer_schema_is_refused_with_the_remedy() -> None:
    document = {**json.loads(render_card(make_card())), "schema": 3}
    with pytest.raises(CheckpointError) as caught:
        parse_card(json.dumps(document), PATH)
    assert (
        caught.value.message == "a.safetensors: its card has schema 3, this version reads up to 2"
    )
    assert caught.value.hint == "update wiseft-cli"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"role": "teacher"}, "role is 'teacher', expected one of zeroshot, finetuned, merged"),
        ({"classes": "tench"}, "classes is 'tench'"),
        ({"classes": [{"id": "n1"}]}, "field 'name' is missing"),
        ({"logit_scale": "100"}, "logit_scale is '100'"),
        ({"history": [3]}, "'int' object is not subscriptable"),
        ({"digest": None}, "digest is None"),
        ({"schema": "one"}, "schema is 'one', expected 1 to 2"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_a_damaged_field_is_named(change: dict[str, object], what: str) -> None:
    document = {**json.loads(render_card(make_card())), **change}
    with pytest.raises(CheckpointError) as caught:
        parse_card(json.dumps(document), PATH)
    assert caught.value.message == f"a.safetensors: damaged card (metadata key 'wiseft'): {what}"


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000])
def test_text_that_is_not_a_card_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.safetensors: damaged card"):
        parse_card(text, PATH)


def test_histories_join_without_repeats_and_parents_come_first() -> None:
    head = HistoryEntry("zeroshot-head", "0.1.0", {}, ())
    zeroshot = replace(make_card(), history=(head,), digest=digest("0"))
    training = HistoryEntry("finetune", "0.1.0", {}, (HistoryInput("zeroshot", digest("0")),))
    finetuned = replace(
        make_card(), history=(*closed_history(zeroshot), training), digest=digest("1")
    )
    joined = join_histories(zeroshot, finetuned)
    assert [entry.output for entry in joined] == [digest("0"), digest("1")]
    assert [entry.command for entry in joined] == ["zeroshot-head", "finetune"]

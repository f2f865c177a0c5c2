"""Built-in sets: ids and names agree class by class, templates are the published ones."""

from __future__ import annotations

from collections import Counter

import open_clip
import pytest
from timm.data import ImageNetInfo

from wiseft_cli.model.builtin_sets import imagenet_classes, template_set
from wiseft_cli.prompts.templates import BUILTIN_TEMPLATES, PLACEHOLDER, fill_template

KNOWN = {
    0: ("n01440764", "tench"),
    134: ("n02012849", "crane bird"),
    281: ("n02123045", "tabby cat"),
    517: ("n03126707", "construction crane"),
    639: ("n03710721", "one-piece bathing suit"),
    657: ("n03773504", "missile"),
    744: ("n04008634", "missile"),
    836: ("n04355933", "sunglasses"),
    951: ("n07749582", "lemon"),
    999: ("n15075141", "toilet paper"),
}


def test_imagenet_has_a_thousand_ids_in_the_order_of_the_labels() -> None:
    ids = [entry.id for entry in imagenet_classes().entries]
    assert len(ids) == len(set(ids)) == 1000
    assert ids == sorted(ids)


@pytest.mark.parametrize("index", KNOWN)
def test_known_classes_stand_at_their_labels(index: int) -> None:
    entry = imagenet_classes().entries[index]
    assert (entry.id, entry.name) == KNOWN[index]


def test_names_share_a_word_with_what_timm_says_of_the_same_id() -> None:
    """Two libraries' orders agree: shifted by one class, hardly any name would."""
    info = ImageNetInfo("imagenet-1k")
    entries = imagenet_classes().entries

    def agreeing(shift: int) -> int:
        count = 0
        for index in range(1000 - shift):
            told = info.index_to_description(index, detailed=True).lower()
            words = entries[index + shift].name.lower().replace("-", " ").split()
            count += any(word in told for word in words)
        return count

    assert agreeing(0) > 950
    assert agreeing(1) < 400


def test_only_two_names_stand_twice() -> None:
    names = Counter(entry.name for entry in imagenet_classes().entries)
    assert {name for name, count in names.items() if count > 1} == {"missile", "sunglasses"}


@pytest.mark.parametrize(("name", "count"), [("openai", 80), ("simple", 7)])
def test_template_sets_fill_as_open_clips_own(name: str, count: int) -> None:
    published = {
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }[name]
    templates = template_set(name)
    assert len(templates) == count
    assert all(template.count(PLACEHOLDER) == 1 for template in templates)
    assert [fill_template(t, "sea lion") for t in templates] == [f("sea lion") for f in published]


def test_every_name_the_command_takes_is_a_set() -> None:
    assert all(template_set(name) for name in BUILTIN_TEMPLATES)

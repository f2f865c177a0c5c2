"""Classes and templates come from lists, files, built-in sets and data set cards."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
from timm.data import ImageNetInfo

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import ClassNamesError, TemplatesError, UsageError
from wiseft_cli.model.zeroshot_prompts import builtin_templates, imagenet_classes, resolve_prompts
from wiseft_cli.prompts.templates import BUILTIN_TEMPLATES, PLACEHOLDER, fill_template

KNOWN_CLASSES = {
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


def test_imagenet_has_1000_ids_in_label_order() -> None:
    ids = [entry.id for entry in imagenet_classes().entries]
    assert len(ids) == len(set(ids)) == 1000
    assert ids == sorted(ids)


@pytest.mark.parametrize("index", KNOWN_CLASSES)
def test_imagenet_has_known_classes_at_their_labels(index: int) -> None:
    entry = imagenet_classes().entries[index]
    assert (entry.id, entry.name) == KNOWN_CLASSES[index]


def test_imagenet_names_match_timms_descriptions_of_the_same_ids() -> None:
    """Two libraries agree: shifted by one class, few names would share a word."""
    info = ImageNetInfo("imagenet-1k")
    entries = imagenet_classes().entries

    def count_matches(shift: int) -> int:
        count = 0
        for index in range(1000 - shift):
            description = info.index_to_description(index, detailed=True).lower()
            words = entries[index + shift].name.lower().replace("-", " ").split()
            count += any(word in description for word in words)
        return count

    assert count_matches(0) > 950
    assert count_matches(1) < 400


def test_imagenet_has_only_two_duplicate_names() -> None:
    names = Counter(entry.name for entry in imagenet_classes().entries)
    assert {name for name, count in names.items() if count > 1} == {"missile", "sunglasses"}


@pytest.mark.parametrize(("name", "count"), [("openai", 80), ("simple", 7)])
def test_builtin_templates_give_the_prompts_of_open_clip(name: str, count: int) -> None:
    published = {
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }[name]
    templates = builtin_templates(name)
    assert len(templates) == count
    assert all(template.count(PLACEHOLDER) == 1 for template in templates)
    assert [fill_template(t, "sea lion") for t in templates] == [f("sea lion") for f in published]


def test_every_builtin_template_set_exists() -> None:
    assert all(builtin_templates(name) for name in BUILTIN_TEMPLATES)


def test_classes_and_templates_can_be_lists() -> None:
    prompts, lines = resolve_prompts(["cat", " sea lion"], ["a {}.", "the {}"])
    assert prompts.classes.entries == (ClassEntry("cat", "cat"), ClassEntry("sea lion", "sea lion"))
    assert list(prompts) == [
        (0, "a cat."),
        (0, "the cat"),
        (1, "a sea lion."),
        (1, "the sea lion"),
    ]
    assert lines == ["classes: 2", "templates: 2, as given; 4 prompts"]


def test_classes_can_be_a_mapping_of_ids_to_names() -> None:
    prompts, _ = resolve_prompts({"n01440764": "tench"})
    assert prompts.classes.entries == (ClassEntry("n01440764", "tench"),)
    assert list(prompts) == [(0, "a photo of a tench.")]


@pytest.mark.parametrize("kind", [str, Path])
def test_classes_and_templates_can_be_files(kind: Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "templates.txt").write_text("a {}.\n")
    prompts, _ = resolve_prompts(kind(tmp_path / "classes.txt"), kind(tmp_path / "templates.txt"))
    assert list(prompts) == [(0, "a cat.")]


def test_templates_can_be_a_builtin_set_and_follow_other_sources(tmp_path: Path) -> None:
    assert resolve_prompts(["cat"], "simple")[0].templates == builtin_templates("simple")
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\n")
    mixed, _ = resolve_prompts(["cat"], ["{}"], ["simple", path])
    assert mixed.templates == (*builtin_templates("simple"), "a {}.", "{}")


def test_wrong_classes_in_a_list_are_rejected() -> None:
    with pytest.raises(ClassNamesError, match=r"name 2: the name is empty"):
        resolve_prompts(["cat", " "])
    with pytest.raises(ClassNamesError, match=r"name 1 and name 3: 'cat'"):
        resolve_prompts(["cat", "dog", "cat"])
    with pytest.raises(ClassNamesError, match="no classes"):
        resolve_prompts([])


def test_templates_without_placeholder_are_rejected() -> None:
    with pytest.raises(TemplatesError, match="'a photo'"):
        resolve_prompts(["cat"], ["a photo"])


def test_templates_for_classes_with_their_own_prompts_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("cat: {prompts: [a cat]}\n")
    assert list(resolve_prompts(tmp_path / "own.yaml")[0]) == [(0, "a cat")]
    with pytest.raises(UsageError, match="every class has prompts of its own"):
        resolve_prompts(tmp_path / "own.yaml", ["a {}"])


def test_wrong_classes_are_reported_without_importing_torch() -> None:
    program = (
        "import sys\n"
        "from wiseft_cli.model.zeroshot_checkpoint import build_zeroshot_checkpoint\n"
        "from wiseft_cli.errors import ClassNamesError\n"
        "try:\n    build_zeroshot_checkpoint('z', model='ViT-B-32', classes=[])\n"
        "except ClassNamesError:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr

"""`wiseft zeroshot-head` with built-in sets, synonyms and prompts of a class's own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest

from tests.cli.test_zeroshot_head import head, place
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.cli import zeroshot_head as command

__all__ = ["place"]

Captured = pytest.CaptureFixture[str]


def head_weight(path: str) -> np.ndarray[Any, Any]:
    with open_checkpoint(Path(path)) as reader:
        return reader.read_array("classification_head.weight")


@pytest.mark.usefixtures("place")
def test_imagenet_has_its_ids_and_a_folder_of_that_name_is_told_of(capsys: Captured) -> None:
    Path("imagenet").mkdir()
    assert head("--template", "{}", "--truncate", "-o", "z.safetensors", classes="imagenet") == 0
    card = read_card(Path("z.safetensors"))
    assert len(card.classes) == 1000
    assert (card.classes[1].id, card.classes[1].name) == ("n01443537", "goldfish")
    assert head_weight("z.safetensors").shape == (1000, 24)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "classes: 1000 from imagenet (built-in)",
        "templates: 1, as given; 1000 prompts",
        "note: imagenet is the built-in set; the file or folder of that name would be ./imagenet",
    ]


@pytest.mark.usefixtures("place")
def test_folder_named_as_a_built_in_set_is_meant_with_a_leading_dot() -> None:
    Path("imagenet/sea_lion").mkdir(parents=True)
    assert head("-o", "z.safetensors", classes="./imagenet") == 0
    assert [entry.id for entry in read_card(Path("z.safetensors")).classes] == ["sea_lion"]


@pytest.mark.usefixtures("place")
def test_template_sets_go_into_the_card_as_templates() -> None:
    assert head("--templates", "simple", "--template", "{}", "-o", "z.safetensors") == 0
    expected = [template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
    assert read_card(Path("z.safetensors")).templates == (*expected, "{}")


@pytest.mark.usefixtures("place")
def test_own_prompts_give_the_head_of_the_same_prompts_and_their_digest(capsys: Captured) -> None:
    Path("own.yaml").write_text(
        "cat: {prompts: [a cat., the cat]}\ndog: [dog]\nowl: {prompts: [a owl., the owl]}\n"
    )
    assert head("--templates", "templates.txt", "-o", "plain.safetensors") == 0
    capsys.readouterr()
    arguments = ("--templates", "templates.txt", "-o", "own.safetensors")
    assert head(*arguments, classes="own.yaml") == 0
    assert capsys.readouterr().err.splitlines()[1] == (
        "templates: 2, as given; 6 prompts, 2 of 3 classes bring their own"
    )
    assert np.array_equal(head_weight("own.safetensors"), head_weight("plain.safetensors"))
    prompts = [[name, f"{word} {name}{end}"] for name in ("cat", "dog", "owl")
               for word, end in (("a", "."), ("the", ""))]  # fmt: skip
    lines = "".join(canonical_json(prompt) + "\n" for prompt in prompts)
    digest = "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    card = read_card(Path("own.safetensors"))
    assert card.templates == {"digest": digest, "count": 6}
    assert card.history[-1].options["templates"] == digest


@pytest.mark.usefixtures("place")
def test_synonyms_are_averaged_as_further_prompts() -> None:
    Path("synonyms.json").write_text('{"x": ["cat", "dog"]}')
    Path("both.yaml").write_text("x: {prompts: [a cat, a dog]}\n")
    assert head("--template", "a {}", "-o", "s.safetensors", classes="synonyms.json") == 0
    assert head("-o", "b.safetensors", classes="both.yaml") == 0
    assert np.array_equal(head_weight("s.safetensors"), head_weight("b.safetensors"))
    assert read_card(Path("s.safetensors")).templates == read_card(Path("b.safetensors")).templates


@pytest.mark.usefixtures("place")
def test_templates_nobody_uses_are_a_usage_error(capsys: Captured) -> None:
    Path("own.yaml").write_text("cat: {prompts: [a cat]}\n")
    assert head("--templates", "openai", "-o", "z.safetensors", classes="own.yaml") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: templates were given, but every class brings its own prompts",
        "hint: leave --templates and --template out, or the prompts of the class file",
    ]


@pytest.mark.usefixtures("place")
def test_source_that_is_not_there_shows_the_built_in_sets(capsys: Captured) -> None:
    assert head("-o", "z.safetensors", classes="imagnet") == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: --classes imagnet: no such file or folder, and no built-in set"
    assert hint.startswith("hint: did you mean imagenet or ")
    assert "? built-in sets: imagenet, " in hint
    assert head("--templates", "a photo of a {}", "-o", "z.safetensors") == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: --templates a photo of a {}: no such file, and no built-in set"
    assert hint.startswith("hint: built-in sets: openai, simple, ")
    assert hint.endswith("; a template itself goes after --template")


def test_help_names_every_built_in_set() -> None:
    from wiseft_cli.prompts.class_names import BUILTIN_CLASSES
    from wiseft_cli.prompts.templates import BUILTIN_TEMPLATES

    text = Path(str(command.__file__)).read_text()
    for name in (*BUILTIN_CLASSES, *BUILTIN_TEMPLATES):
        assert name in text

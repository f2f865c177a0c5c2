"""`wiseft zeroshot-head` with built-in sets, synonyms and own prompts of classes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from tests.cli.test_zeroshot_head import head
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.cli import zeroshot_head as command

Captured = pytest.CaptureFixture[str]


def head_weight(path: str) -> np.ndarray[Any, Any]:
    with open_checkpoint(Path(path)) as reader:
        return reader.read_array("classification_head.weight")


@pytest.mark.usefixtures("place")
def test_imagenet_has_its_ids_and_a_folder_of_that_name_is_noted(capsys: Captured) -> None:
    Path("imagenet").mkdir()
    assert head("--template", "{}", "--truncate", "-o", "z.safetensors", classes="imagenet") == 0
    card = read_card(Path("z.safetensors"))
    assert len(card.classes) == 1000
    assert (card.classes[1].id, card.classes[1].name) == ("n01443537", "goldfish")
    assert head_weight("z.safetensors").shape == (1000, 24)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "classes: 1000 from imagenet (built-in)",
        "templates: 1, as given; 1,000 prompts",
        "note: imagenet is the built-in set; for the file or folder of that name use ./imagenet",
    ]


@pytest.mark.usefixtures("place")
def test_folder_named_like_a_built_in_set_is_used_with_a_leading_dot() -> None:
    Path("imagenet/sea_lion").mkdir(parents=True)
    assert head("-o", "z.safetensors", classes="./imagenet") == 0
    assert [entry.id for entry in read_card(Path("z.safetensors")).classes] == ["sea_lion"]


@pytest.mark.usefixtures("place")
def test_card_holds_the_templates_of_a_built_in_set() -> None:
    assert head("--templates", "simple", "--template", "{}", "-o", "z.safetensors") == 0
    expected = [template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
    assert read_card(Path("z.safetensors")).templates == (*expected, "{}")


@pytest.mark.usefixtures("place")
def test_own_prompts_give_the_head_of_the_same_templates_and_a_digest_in_the_card(
    capsys: Captured,
) -> None:
    Path("own.yaml").write_text(
        "cat: {prompts: [a cat., the cat]}\ndog: [dog]\nowl: {prompts: [a owl., the owl]}\n"
    )
    assert head("--templates", "templates.txt", "-o", "plain.safetensors") == 0
    capsys.readouterr()
    arguments = ("--templates", "templates.txt", "-o", "own.safetensors")
    assert head(*arguments, classes="own.yaml") == 0
    assert capsys.readouterr().err.splitlines()[1] == (
        "templates: 2, as given; 6 prompts, 2 of 3 classes have their own"
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
def test_synonyms_are_averaged_like_more_prompts() -> None:
    Path("synonyms.json").write_text('{"x": ["cat", "dog"]}')
    Path("both.yaml").write_text("x: {prompts: [a cat, a dog]}\n")
    assert head("--template", "a {}", "-o", "s.safetensors", classes="synonyms.json") == 0
    assert head("-o", "b.safetensors", classes="both.yaml") == 0
    assert np.array_equal(head_weight("s.safetensors"), head_weight("b.safetensors"))
    assert read_card(Path("s.safetensors")).templates == read_card(Path("b.safetensors")).templates


@pytest.mark.usefixtures("place")
def test_unused_templates_are_a_usage_error(capsys: Captured) -> None:
    Path("own.yaml").write_text("cat: {prompts: [a cat]}\n")
    assert head("--templates", "openai", "-o", "z.safetensors", classes="own.yaml") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: templates are given, but every class has prompts of its own",
        "hint: omit --templates and --template, or remove the prompts from the class file",
    ]


@pytest.mark.usefixtures("place")
def test_missing_source_lists_the_built_in_sets(capsys: Captured) -> None:
    assert head("-o", "z.safetensors", classes="imagnet") == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: imagnet: neither a file or folder nor a built-in class list"
    assert hint.startswith("hint: did you mean imagenet or ")
    assert "? built-in sets: imagenet, " in hint
    assert head("--templates", "a photo of a {}", "-o", "z.safetensors") == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: a photo of a {}: neither a file nor a built-in template set"
    assert hint.startswith("hint: built-in sets: openai, simple, ")
    assert hint.endswith("; give a template itself with --template")


@pytest.mark.parametrize("model", ["local-dir:tiny", "local-dir:tiny-siglip"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Turkey\nowl\nturkey\n", "'Turkey' and 'turkey'"),
        ("caf\xe9\ncafe\u0301\n", "'caf\xe9' and 'cafe\\u0301'"),
        ("sea lion\nsea\xa0lion\n", "'sea lion' and 'sea\\xa0lion'"),
        ("x\tOwl\ny\towl\nz\tOWL\n", "'Owl' (x) and 'owl' (y) and 'OWL' (z)"),
    ],
)
@pytest.mark.usefixtures("place")
def test_names_with_the_same_tokens_are_rejected(
    text: str, shown: str, model: str, capsys: Captured
) -> None:
    Path("alike.txt").write_text(text)
    arguments = ("--templates", "templates.txt", "-o", "z.safetensors")
    assert head(*arguments, classes="alike.txt", model=model) == 1
    assert capsys.readouterr().err.splitlines()[-3:-1] == [
        "error: alike.txt: the model cannot distinguish these classes, because their prompts have "
        "the same tokens:",
        f"  {shown}",
    ]
    assert not Path("z.safetensors").exists()


@pytest.mark.usefixtures("place")
def test_same_name_under_two_ids_is_warned_of(capsys: Captured) -> None:
    Path("twice.txt").write_text("n1\tmissile\nn2\towl\nn3\tmissile\n")
    assert head("-o", "z.safetensors", classes="twice.txt") == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        "warning: twice.txt: classes have the same name, so the model cannot distinguish them: "
        "'missile' (n1) and 'missile' (n3)"
    )
    weight = head_weight("z.safetensors")
    assert np.allclose(weight[0], weight[2])
    assert not np.allclose(weight[0], weight[1])


@pytest.mark.usefixtures("place")
def test_classes_that_share_some_prompts_are_warned_of(capsys: Captured) -> None:
    Path("shared.yaml").write_text("a: [bird, crane]\nb: [tower, Crane]\nc: cat\n")
    assert head("-o", "z.safetensors", classes="shared.yaml") == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        "warning: shared.yaml: classes share prompts that have the same tokens: "
        "'bird' (a) and 'tower' (b)"
    )


@pytest.mark.usefixtures("place")
def test_equal_rows_of_different_names_are_rejected(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_arguments: object, class_count: int, **_options: object) -> torch.Tensor:
        features = torch.eye(class_count, 24, dtype=torch.float64)
        features[2] = features[0]
        return features

    monkeypatch.setattr("wiseft_cli.model.zeroshot_head.encode_prompts", encode)
    assert head("-o", "z.safetensors") == 1
    assert capsys.readouterr().err.splitlines()[-3:-1] == [
        "error: classes.txt: the model cannot distinguish these classes, because their rows of the "
        "head are equal:",
        "  'cat' and 'owl'",
    ]


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        ({"classes": "Imagnet"}, "did you mean imagenet"),
        ({"classes": "clases.txt"}, "did you mean classes.txt?"),
        ({"classes": "./sub/clases.txt"}, "did you mean ./sub/classes.txt?"),
        ({"more": ("--templates", "opneai")}, "did you mean openai?"),
        ({"more": ("--templates", "template.txt")}, "did you mean templates.txt?"),
        ({"model": "vit-b-32"}, "did you mean ViT-B-32"),
        ({"model": "VIT_B_32"}, "did you mean ViT-B-32"),
        ({"model": "local-dir:tinny"}, "did you mean tiny"),
        (
            {"model": "ViT-B-32", "more": ("--pretrained", "laion2b_s34b_b79")},
            "did you mean laion2b_s34b_b79k?",
        ),
        (
            {"model": "ViT-B-32", "more": ("--pretrained", "weigts.pt")},
            "did you mean weights.pt?",
        ),
        ({"more": ("--image-encoder", "weight.pt.safetensors")}, "did you mean weights.pt"),
    ],
)
@pytest.mark.usefixtures("place")
def test_near_names_are_suggested_for_what_does_not_exist(
    arguments: dict[str, Any], question: str, capsys: Captured
) -> None:
    Path("sub").mkdir()
    shutil.copy("classes.txt", "sub")
    for name in ("weights.pt", "weights.pt.safetensors"):
        Path(name).write_bytes(b"x")
    more = arguments.pop("more", ())
    assert head(*more, "-o", "z.safetensors", **arguments) == 1
    hint = capsys.readouterr().err.splitlines()[-1]
    assert hint.startswith(f"hint: {question}")


def test_help_names_every_built_in_set() -> None:
    from wiseft_cli.prompts.class_names import BUILTIN_CLASSES
    from wiseft_cli.prompts.templates import BUILTIN_TEMPLATES

    text = Path(str(command.__file__)).read_text()
    for name in (*BUILTIN_CLASSES, *BUILTIN_TEMPLATES):
        assert name in text

"""Models, tokenizers and text towers of the hub are loaded, or an error says why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import transformers

from tests.families.catalog import family_of
from tests.families.pipeline import command, head_arguments, write_pictures, write_small_model
from tests.families.small_tokenizers import TOWERS, put_on_the_hub, write_small_tokenizer
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main

Captured = pytest.CaptureFixture[str]
SIGLIP, ROBERTA = family_of("ViT-B-16-SigLIP"), family_of("roberta-ViT-B-32")


def head_fails(folder: Path, place: Path, capsys: Captured) -> list[str]:
    capsys.readouterr()
    assert main(head_arguments(folder, place, place / "z.safetensors")) == 1
    lines = capsys.readouterr().err.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("error: ")) :]


def change_text_config(folder: Path, **fields: object) -> None:
    path = folder / "open_clip_config.json"
    document = json.loads(path.read_text())
    document["model_cfg"]["text_cfg"] |= fields
    path.write_text(json.dumps(document))


def test_folder_without_tokenizer_files_names_them(tmp_path: Path, capsys: Captured) -> None:
    folder = write_small_model(SIGLIP, tmp_path / "siglip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    error, hint = head_fails(folder, tmp_path, capsys)
    assert error.startswith(f"error: tokenizer of siglip: cannot be loaded from {folder}: ")
    assert hint == "hint: the folder must contain tokenizer.json and tokenizer_config.json"


def test_text_tower_that_is_not_cached_is_reported(tmp_path: Path, capsys: Captured) -> None:
    folder = write_small_model(ROBERTA, tmp_path / "roberta")
    change_text_config(folder, hf_model_name="tiny/absent")
    assert head_fails(folder, tmp_path, capsys) == [
        "error: config of the text tower tiny/absent: not in the local cache, and HF_HUB_OFFLINE "
        "forbids downloads",
        "hint: unset HF_HUB_OFFLINE, or download it elsewhere and set text_cfg.hf_model_name to "
        "its folder",
    ]


def test_vocabulary_larger_than_the_models_text_tower_is_an_error(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = write_small_model(SIGLIP, tmp_path / "siglip")
    change_text_config(folder, vocab_size=200)
    assert head_fails(folder, tmp_path, capsys) == [
        "error: the tokenizer of siglip has 259 tokens, but its text tower has 200",
        "hint: the tokenizer belongs to another model; use the files that came with the weights",
    ]


def test_vocabulary_larger_than_a_text_tower_of_the_hub_is_an_error(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = write_small_model(ROBERTA, tmp_path / "roberta")
    config = transformers.RobertaConfig(vocab_size=200)
    put_on_the_hub("tiny/narrow", lambda place: config.save_pretrained(str(place)))
    change_text_config(folder, hf_model_name="tiny/narrow")
    assert head_fails(folder, tmp_path, capsys)[0] == (
        "error: the tokenizer of roberta has 260 tokens, but its text tower has 200"
    )


def test_tokenizer_with_an_empty_vocabulary_is_an_error(tmp_path: Path, capsys: Captured) -> None:
    folder = write_small_model(ROBERTA, tmp_path / "roberta")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {name: at for name, at in vocabulary.items() if len(name) > 1}
    path.write_text(json.dumps(document))
    assert head_fails(folder, tmp_path, capsys) == [
        "error: the tokenizer of roberta gives the same tokens for different texts",
        "hint: its vocabulary is missing; download the tokenizer's files again",
    ]


def fill_with_tokenizer(kind: str, folder: Path) -> None:
    """Write a tokenizer with the config that transformers reads before it."""
    transformers.RobertaConfig().save_pretrained(str(folder))
    write_small_tokenizer(folder, kind)


@pytest.mark.parametrize("like", ["ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_model_of_the_hub_equals_the_model_of_the_same_folder(like: str, tmp_path: Path) -> None:
    family = family_of(like)
    folder = write_small_model(family, tmp_path / "model")
    if family.tokenizer != "clip":
        change_text_config(folder, hf_tokenizer_name=f"tiny/{like.lower()}-tokens")
        put_on_the_hub(
            f"tiny/{like.lower()}-tokens", partial(fill_with_tokenizer, family.tokenizer)
        )
    repository = f"tiny/{like.lower()}-clip"
    put_on_the_hub(repository, lambda place: shutil.copytree(folder, place, dirs_exist_ok=True))
    command(*head_arguments(folder, tmp_path, tmp_path / "local.safetensors"))
    arguments = head_arguments(folder, tmp_path, tmp_path / "hub.safetensors")
    arguments[arguments.index("--model") + 1] = f"hf-hub:{repository}"
    command(*arguments)
    local, hub = (read_card(tmp_path / f"{name}.safetensors") for name in ("local", "hub"))
    assert local.digest == hub.digest
    assert hub.model is not None
    assert (hub.model.name, hub.model.source) == (f"hf-hub:{repository}",) * 2


def test_text_tower_in_a_local_folder_works_but_cannot_be_exported(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = write_small_model(ROBERTA, tmp_path / "roberta")
    tower = tmp_path / "tower"
    TOWERS["roberta"]().save_pretrained(str(tower))
    change_text_config(folder, hf_model_name=str(tower))
    output = tmp_path / "z.safetensors"
    command(*head_arguments(folder, tmp_path, output))
    capsys.readouterr()
    arguments = ["export", output, "--model", f"local-dir:{folder}", "-o", tmp_path / "exported"]
    assert main([str(argument) for argument in arguments]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"error: roberta: the config of its text tower is in the folder {tower}, outside the "
        "model folder",
        "hint: set text_cfg.hf_model_name to a text tower on the hub",
    ]
    assert not (tmp_path / "exported").exists()


WITHOUT_HF = """
import json, sys
for name in ("transformers", "tokenizers", "sentencepiece"):
    sys.modules[name] = None
from wiseft_cli.cli.app import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def without_hf(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], str]:
    """Exit codes and stderr of commands in a process without the packages of `hf`."""
    place = tmp_path_factory.mktemp("without-hf")
    folder = write_small_model(family_of("ViT-B-32"), place / "model")
    siglip = write_small_model(SIGLIP, place / "siglip")
    images = write_pictures(place / "images", 32)
    z, f, m = (place / f"{name}.safetensors" for name in "zfm")
    cpu = ["--device", "cpu", "--workers", 0]
    hub = place / "hub.safetensors"
    command(*head_arguments(write_small_model(ROBERTA, place / "hub"), place, hub))
    commands: list[list[object]] = [
        [*head_arguments(folder, place, z)],
        ["finetune", z, "--train", images, "-o", f, "--steps", 1, "--warmup", 0, *cpu],
        ["merge", z, f, "--alpha", "0.5", "-o", m],
        ["eval", z, f, "--alpha", "0.5", "--data", images, *cpu],
        ["predict", m, images, *cpu],
        ["export", m, "--model", f"local-dir:{folder}", "-o", place / "exported"],
        # A classifier no longer needs the text tower of the hub that it was made with.
        ["eval", hub, "--data", images, *cpu],
        [*head_arguments(siglip, place, place / "siglip.safetensors")],
    ]
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_HF, words],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_every_command_works_without_the_extra_hf(without_hf: tuple[list[int], str]) -> None:
    codes, messages = without_hf
    assert codes[:7] == [0] * 7, messages


def test_hf_tokenizer_names_the_extra_if_it_is_not_installed(
    without_hf: tuple[list[int], str],
) -> None:
    codes, messages = without_hf
    assert codes[7] == 1
    assert messages.splitlines()[-2:] == [
        "error: tokenizer of siglip: needs transformers, sentencepiece, not installed",
        "hint: pip install 'wiseft-cli[hf]'",
    ]

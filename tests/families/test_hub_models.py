"""Tokenizers, text towers and whole models of the Hugging Face hub: found, or told why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
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
RunWiseft = Callable[..., "subprocess.CompletedProcess[str]"]
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


def test_folder_without_its_tokenizer_says_which_files_are_missing(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = write_small_model(SIGLIP, tmp_path / "siglip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    error, hint = head_fails(folder, tmp_path, capsys)
    assert error.startswith(f"error: the tokenizer of siglip cannot be loaded from {folder}: ")
    assert hint == (
        "hint: the folder needs the tokenizer's own files: tokenizer.json and tokenizer_config.json"
    )


def test_text_tower_that_is_not_on_this_machine_is_told(tmp_path: Path, capsys: Captured) -> None:
    folder = write_small_model(ROBERTA, tmp_path / "roberta")
    change_text_config(folder, hf_model_name="tiny/absent")
    assert head_fails(folder, tmp_path, capsys) == [
        "error: the config of the text tower tiny/absent: not on this machine, and "
        "HF_HUB_OFFLINE forbids downloads",
        "hint: unset HF_HUB_OFFLINE, or fetch them where there is a network, and give them as a "
        "folder that text_cfg.hf_model_name names",
    ]


def test_vocabulary_beyond_that_of_the_models_own_tower_is_an_error(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = write_small_model(SIGLIP, tmp_path / "siglip")
    change_text_config(folder, vocab_size=200)
    assert head_fails(folder, tmp_path, capsys) == [
        "error: the tokenizer of siglip has 259 tokens, but its text tower has 200",
        "hint: the tokenizer is another model's; take the files that came with the weights",
    ]


def test_vocabulary_beyond_that_of_a_tower_of_the_hub_is_an_error(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = write_small_model(ROBERTA, tmp_path / "roberta")
    config = transformers.RobertaConfig(vocab_size=200)
    put_on_the_hub("tiny/narrow", lambda place: config.save_pretrained(str(place)))
    change_text_config(folder, hf_model_name="tiny/narrow")
    assert head_fails(folder, tmp_path, capsys)[0] == (
        "error: the tokenizer of roberta has 260 tokens, but its text tower has 200"
    )


def test_tokenizer_without_a_vocabulary_is_an_error(tmp_path: Path, capsys: Captured) -> None:
    folder = write_small_model(ROBERTA, tmp_path / "roberta")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {name: at for name, at in vocabulary.items() if len(name) > 1}
    path.write_text(json.dumps(document))
    assert head_fails(folder, tmp_path, capsys) == [
        "error: the tokenizer of roberta gives the same tokens for different texts",
        "hint: its vocabulary is missing where it was loaded from; fetch the files again",
    ]


def fill_with_tokenizer(kind: str, folder: Path) -> None:
    """transformers asks a repository for a config before it takes its tokenizer."""
    transformers.RobertaConfig().save_pretrained(str(folder))
    write_small_tokenizer(folder, kind)


@pytest.mark.parametrize("like", ["ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_model_of_the_hub_is_the_model_of_the_same_folder(like: str, tmp_path: Path) -> None:
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


def test_text_tower_in_a_local_folder_works_and_cannot_be_exported(
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
        f"error: roberta: the config of its text tower is read from the folder {tower}, which "
        "open_clip looks for outside the model's folder",
        "hint: name a text tower of the hub in text_cfg.hf_model_name",
    ]
    assert not (tmp_path / "exported").exists()


WITHOUT_HF = """
import sys
for name in ("transformers", "tokenizers", "sentencepiece"):
    sys.modules[name] = None
from wiseft_cli.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def run_without_hf(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_HF, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parents[2],
    )


def test_every_command_works_where_the_extra_hf_is_not_installed(tmp_path: Path) -> None:
    """One process runs the commands in turn, in which the packages of `hf` cannot be imported."""
    folder = write_small_model(family_of("ViT-B-32"), tmp_path / "model")
    images = write_pictures(tmp_path / "images", 32)
    z, f, m = (tmp_path / f"{name}.safetensors" for name in "zfm")
    cpu = ["--device", "cpu", "--workers", 0]
    hub, from_hub = tmp_path / "hub.safetensors", tmp_path / "hub"
    command(*head_arguments(write_small_model(ROBERTA, from_hub), tmp_path, hub))
    commands: list[list[object]] = [
        [*head_arguments(folder, tmp_path, z)],
        ["finetune", z, "--train", images, "-o", f, "--steps", 1, "--warmup", 0, *cpu],
        ["merge", z, f, "--alpha", "0.5", "-o", m],
        ["eval", z, f, "--alpha", "0.5", "--data", images, *cpu],
        ["predict", m, images, *cpu],
        ["export", m, "--model", f"local-dir:{folder}", "-o", tmp_path / "exported"],
        # A classifier whose text tower came from the hub needs it no more.
        ["eval", hub, "--data", images, *cpu],
    ]
    chained = [[str(word) for word in words] for words in commands]
    program = WITHOUT_HF.replace(
        "sys.exit(main(sys.argv[1:]))",
        f"codes = [main(words) for words in {chained!r}]; assert codes == [0] * 7, codes",
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr


def test_tokenizer_of_the_hub_names_the_extra_where_it_is_not_installed(tmp_path: Path) -> None:
    folder = write_small_model(SIGLIP, tmp_path / "siglip")
    done = run_without_hf(*head_arguments(folder, tmp_path, tmp_path / "z.safetensors"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: the tokenizer of siglip needs a package that is not installed: transformers, "
        "sentencepiece",
        "hint: pip install 'wiseft-cli[hf]'",
    ]

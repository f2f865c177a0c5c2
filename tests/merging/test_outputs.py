"""Outputs of a merge in folders: created for {alpha}, or whole model folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.merging.pairs import write_foreign, write_pair, write_sharded
from tests.merging.test_merge import read_all
from wiseft_cli.cli.app import main

COMPANIONS = {
    "config.json": "{}",
    "merges.txt": "a b",
    "tokenizer.model": "t",
    "bpe.txt.gz": "z",
}
OTHERS = {
    "README.md": "card",
    "trainer_state.json": "{}",
    "optimizer.pt": "o",
    "wiseft_export.json": "{}",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_folder(folder: Path, value: float, form: str) -> Path:
    arrays = {name: np.full(3, value, np.float32) for name in "wv"}
    if form == "file":
        folder.mkdir()
        write_foreign(folder / "open_clip_model.safetensors", arrays)
    else:
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        index = write_sharded(folder, {names[0]: {"w": arrays["w"]}, names[1]: {"v": arrays["v"]}})
        if form == "shards":
            index.unlink()
    for name, text in {**COMPANIONS, **OTHERS}.items():
        (folder / name).write_text(f"{text}{value}" if name == "merges.txt" else text)
    return folder


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ("file", "open_clip_model.safetensors"),
        ("index", "model.safetensors"),
        ("shards", "model.safetensors"),
    ],
)
def test_a_slash_writes_a_folder_with_the_companions_of_finetuned(
    place: Path, capsys: pytest.CaptureFixture[str], form: str, weights: str
) -> None:
    for value, name in enumerate("ab"):
        write_folder(place / name, value, form)
    assert main(["merge", "a", "b", "--alpha", "0.5", "-o", "out/"]) == 0
    assert capsys.readouterr() == ("out\n", "")
    found = {path.name for path in (place / "out").iterdir()}
    assert found == {*COMPANIONS, weights, "wiseft_merge.json"}
    assert (place / "out" / "merges.txt").read_text() == "a b1"
    assert read_all(place / "out" / weights)["v"].tolist() == [0.5] * 3
    manifest = json.loads((place / "out" / "wiseft_merge.json").read_text())
    assert manifest["files"] == sorted({*COMPANIONS, weights})
    assert main(["merge", "a", "b", "-o", "out/"]) == 1
    assert main(["merge", "a", "b", "--alpha", "1", "-o", "out/", "--force"]) == 0
    assert read_all(place / "out" / weights)["v"].tolist() == [1] * 3
    (place / "out" / "mine.txt").write_text("precious")
    assert main(["merge", "a", "b", "-o", "out/", "--force"]) == 1


def test_several_alphas_write_several_folders(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, name in enumerate("ab"):
        write_folder(place / name, value, "file")
    assert main(["merge", "a", "b", "--alpha", "0,0.5,1", "-o", "sweep/{alpha}/m/"]) == 0
    assert capsys.readouterr().out == "sweep/0/m\nsweep/0.5/m\nsweep/1/m\n"
    for alpha in ("0", "0.5", "1"):
        merged = read_all(place / "sweep" / alpha / "m" / "open_clip_model.safetensors")
        assert merged["w"].tolist() == [float(alpha)] * 3


def test_a_file_as_finetuned_has_no_companions(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(place)
    assert main(["merge", "zs.safetensors", "ft.safetensors", "-o", "out/"]) == 2
    assert "hint: name that folder as FINETUNED" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_a_bare_file_of_a_folder_offers_the_folder_form(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, name in enumerate("ab"):
        write_folder(place / name, value, "file")
    assert main(["merge", "a", "b", "-o", "bare"]) == 0
    assert capsys.readouterr().err == (
        "4 files beside the weights of FINETUNED not copied: bpe.txt.gz, config.json, merges.txt, "
        "... and 1 more; -o DIR/ writes a folder with them\n"
    )


@pytest.mark.parametrize(
    "template", ["{alpha}/m.safetensors", "new/deep/{alpha}/x/m", "{alpha}/{alpha}.safetensors"]
)
def test_folders_named_by_alpha_are_created(place: Path, template: str) -> None:
    write_pair(place)
    command = ["merge", "zs.safetensors", "ft.safetensors", "--alpha", "0,0.5", "-o", template]
    assert main(command) == 0
    for alpha in ("0", "0.5"):
        assert (place / template.replace("{alpha}", alpha)).is_file()


@pytest.mark.parametrize("template", ["no/x", "no/{alpha}.safetensors", "no/{alpha}/"])
def test_other_folders_are_not_created(
    place: Path, capsys: pytest.CaptureFixture[str], template: str
) -> None:
    for value, name in enumerate("ab"):
        write_folder(place / name, value, "file")
    assert main(["merge", "a", "b", "-o", template]) == 1
    assert f"hint: mkdir -p {place / 'no'}" in capsys.readouterr().err
    assert not (place / "no").exists()


def test_created_folders_are_removed_if_the_merge_fails(place: Path) -> None:
    write_foreign(place / "a", {"w": np.array([np.nan], np.float32)})
    write_foreign(place / "b", {"w": np.array([1], np.float32)})
    (place / "kept").mkdir()
    command = ["merge", "a", "b", "--strict", "--alpha", "0,1", "-o", "kept/new/{alpha}/m"]
    assert main(command) == 1
    assert list((place / "kept").iterdir()) == []
    assert main([*command[:3], *command[4:]]) == 0
    assert (place / "kept" / "new" / "1" / "m").is_file()

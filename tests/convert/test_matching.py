"""`--match-names` merges and compares files whose names differ only in spelling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.convert.tiny import save, timm_model, transformers_model
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.convert.convert import convert_checkpoint

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CLIPs with transformers' names: a.safetensors and b.safetensors."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        model = transformers_model("clip")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        save(model, Path(f"{name}.safetensors"))


def merged(*arguments: str) -> dict[str, torch.Tensor]:
    assert main(["merge", *arguments, "-o", "m.safetensors", "--force"]) == 0
    return load_file("m.safetensors")


def write_wrapped(source: str, path: str, wrap: str) -> str:
    save_file({wrap.format(name): t for name, t in load_file(source).items()}, path)
    return path


@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "model.{}", "module._orig_mod.{}"])
def test_wrapped_names_merge_as_plain_ones(wrap: str, capsys: Captured) -> None:
    expected = merged("a.safetensors", "b.safetensors")
    wrapped = write_wrapped("a.safetensors", "w.safetensors", wrap)
    assert main(["merge", wrapped, "b.safetensors", "-o", "no.safetensors"]) == 1
    found = merged(wrapped, "b.safetensors", "--match-names")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "matched: w.safetensors: wrappers and prefixes ignored; 110 tensors of 110" in (
        capsys.readouterr().err
    )
    # The result has the names of the second file.
    names = merged("b.safetensors", wrapped, "--match-names").keys()
    assert names == load_file(wrapped).keys()


def test_transformers_and_open_clip_merge_as_two_files_of_open_clip(capsys: Captured) -> None:
    for name in "ab":
        convert_checkpoint(f"{name}.safetensors", f"{name}-oc.safetensors")
    expected = merged("a-oc.safetensors", "b-oc.safetensors")
    capsys.readouterr()
    found = merged("a.safetensors", "b-oc.safetensors", "--match-names", "--json")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (note,) = json.loads(capsys.readouterr().out)["matched"]
    assert "transformers names of CLIP read as open_clip names of CLIP" in note
    back = merged("a-oc.safetensors", "b.safetensors", "--match-names")
    assert back.keys() == load_file("b.safetensors").keys()


def test_the_history_says_that_names_were_matched(capsys: Captured) -> None:
    for name in "ab":
        convert_checkpoint(f"{name}.safetensors", f"{name}-oc.safetensors")
    words = ["merge", "a.safetensors", "b-oc.safetensors", "--match-names", "-o", "out.safetensors"]
    assert main(words) == 0
    entry = read_card(Path("out.safetensors")).history[-1]
    assert entry.options["match_names"] is True
    Path("a-oc.safetensors").rename("hidden")
    capsys.readouterr()
    assert main(["verify", "out.safetensors"]) == 1
    hint = "an input was renamed in memory by --match-names, and its digest is that of the renamed"
    assert hint in " ".join(capsys.readouterr().err.split())
    assert main(["inspect", "out.safetensors", "--commands"]) == 0
    script = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("wiseft merge") and "--match-names" in line for line in script) == 1
    assert "# the digest of a renamed input is that of its renamed tensors" in script
    Path("hidden").rename("a-oc.safetensors")
    assert main(["verify", "out.safetensors"]) == 0
    # Names that are equal were not matched.
    assert main(["merge", "a-oc.safetensors", *words[2:], "--force"]) == 0
    assert "match_names" not in read_card(Path("out.safetensors")).history[-1].options


def test_a_wrapped_target_keeps_its_wrapper() -> None:
    convert_checkpoint("b.safetensors", "b-oc.safetensors")
    wrapped = write_wrapped("b-oc.safetensors", "w.safetensors", "module.{}")
    found = merged("a.safetensors", wrapped, "--match-names")
    assert found.keys() == load_file(wrapped).keys()


def test_diff_compares_matched_names(capsys: Captured) -> None:
    convert_checkpoint("a.safetensors", "a-oc.safetensors")
    capsys.readouterr()
    assert main(["diff", "a.safetensors", "a-oc.safetensors", "--match-names", "--values"]) == 0
    out = capsys.readouterr().out
    assert "common tensors: 86, differences in headers and cards: 0" in out
    assert "bitwise equal: 86 of 86" in out
    assert out.startswith("matched: a.safetensors: transformers names of CLIP read as open_clip")
    arguments = ["diff", "a.safetensors", "a-oc.safetensors", "--match-names", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["is_compatible"]


def test_equal_names_are_left_alone(capsys: Captured) -> None:
    plain = merged("a.safetensors", "b.safetensors")
    capsys.readouterr()
    found = merged("a.safetensors", "b.safetensors", "--match-names")
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert "matched" not in capsys.readouterr().err


def test_models_that_do_not_match_are_still_rejected(capsys: Captured) -> None:
    save(timm_model("siglip"), Path("siglip.safetensors"))
    arguments = ["merge", "siglip.safetensors", "b.safetensors", "--match-names", "-o", "x"]
    assert main(arguments) == 1
    assert "does not match" in capsys.readouterr().err
    assert not Path("x").exists()


def test_a_matched_file_with_unknown_tensors_is_rejected_with_their_names(
    capsys: Captured,
) -> None:
    convert_checkpoint("b.safetensors", "b-oc.safetensors")
    save_file(load_file("a.safetensors") | {"gate.weight": torch.ones(1)}, "extra.safetensors")
    arguments = ["merge", "extra.safetensors", "b-oc.safetensors", "--match-names", "-o", "x"]
    assert main(arguments) == 1
    assert "gate.weight: not in the table of transformers names of CLIP" in capsys.readouterr().err

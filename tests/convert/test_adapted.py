"""An adapter of transformers' modules, on a base model with the names of open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.convert.tiny import CLIP_CONFIG
from wiseft_cli.checkpoint.card import Card, ClassEntry
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card, read_content
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.convert.adapted import open_adapted
from wiseft_cli.convert.convert import convert_checkpoint
from wiseft_cli.errors import CheckpointError, UsageError
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.merge import merge_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")


def make_adapter(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """Write adapter/, base.safetensors (open_clip) and return PEFT's merge under these names."""
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = transformers.CLIPConfig(**CLIP_CONFIG)
    if kind == "CLIPVisionModelWithProjection":
        config = config.vision_config
        config.projection_dim = CLIP_CONFIG["projection_dim"]
    model = getattr(transformers, kind)(config)

    def save(name: str) -> None:
        state = {at: tensor.clone().contiguous() for at, tensor in model.state_dict().items()}
        save_file(state, folder / "there.safetensors")
        convert_checkpoint(folder / "there.safetensors", folder / name, force=True)

    save("base.safetensors")
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj", "fc1", "visual_projection"],
            init_lora_weights=False,
        ),
    )
    adapted.save_pretrained(folder / "adapter")
    model = adapted.merge_and_unload()
    save("expected.safetensors")
    return load_file(folder / "expected.safetensors")


def with_head(path: Path) -> None:
    """Give a file the head of a wiseft checkpoint."""
    head = {
        "classification_head.weight": torch.ones(3, CLIP_CONFIG["projection_dim"]),
        "classification_head.bias": torch.zeros(3),
    }
    save_file({**load_file(path), **head}, path)


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModelWithProjection"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_result_has_the_names_of_the_base(tmp_path: Path, kind: str, prefix: str) -> None:
    expected = make_adapter(tmp_path, kind)
    base = tmp_path / "base.safetensors"
    save_file({prefix + name: at for name, at in load_file(base).items()}, base)
    with open_checkpoint(base) as model, open_adapted(tmp_path / "adapter", model) as reader:
        assert reader.tensors.keys() == model.tensors.keys()
        assert reader.tensors.keys() == {prefix + name for name in expected}
        for name, tensor in expected.items():
            found = reader.read_array(prefix + name)
            np.testing.assert_allclose(found, tensor.numpy(), rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_head_of_the_base_stays_as_it_is(tmp_path: Path) -> None:
    make_adapter(tmp_path, "CLIPVisionModelWithProjection")
    with_head(tmp_path / "base.safetensors")
    convert_checkpoint(
        tmp_path / "adapter", tmp_path / "out.safetensors", base=tmp_path / "base.safetensors"
    )
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["classification_head.weight"], torch.ones(3, 24))
    assert found.keys() == load_file(tmp_path / "base.safetensors").keys()


def test_an_adapter_of_the_text_tower_does_not_fit_an_image_encoder(tmp_path: Path) -> None:
    make_adapter(tmp_path, "CLIPModel")
    base = tmp_path / "base.safetensors"
    save_file({n: at for n, at in load_file(base).items() if n.startswith("visual.")}, base)
    with (
        open_checkpoint(base) as model,
        pytest.raises(CheckpointError, match="does not fit") as caught,
    ):
        open_adapted(tmp_path / "adapter", model)
    assert "the base model has no text_model.encoder.layers.0.mlp.fc1.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is a LoRA adapter, which changes a model"),
        ({"key": "x", "base": "base.safetensors"}, "--key does not apply"),
    ],
)
def test_options_are_checked(
    tmp_path: Path, monkeypatch: Any, options: dict[str, Any], message: str
) -> None:
    make_adapter(tmp_path, "CLIPModel")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        convert_checkpoint("adapter", "out.safetensors", **options)
    with pytest.raises(UsageError, match="--base does not apply"):
        convert_checkpoint("base.safetensors", "out.safetensors", base="expected.safetensors")
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("alpha", ["0", "0.3", "1"])
def test_merging_an_adapter_equals_merging_the_converted_file(
    tmp_path: Path, monkeypatch: Any, capsys: Any, alpha: str
) -> None:
    make_adapter(tmp_path, "CLIPVisionModelWithProjection")
    with_head(tmp_path / "base.safetensors")
    monkeypatch.chdir(tmp_path)
    convert_checkpoint("adapter", "tuned.safetensors", base="base.safetensors")
    merged = ["merge", "base.safetensors", "adapter", "--alpha", alpha, "--threads", "2"]
    assert main([*merged, "-o", "direct.safetensors"]) == 0
    assert main(["merge", "base.safetensors", "tuned.safetensors", "--alpha", alpha]) == 0
    outputs = capsys.readouterr().out.split()
    direct, other = (load_file(path) for path in outputs)
    assert direct.keys() == other.keys()
    assert all(torch.equal(direct[name], other[name]) for name in direct)


def test_the_history_names_an_adapter_and_verify_says_how_to_find_it(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    make_adapter(tmp_path, "CLIPModel")
    monkeypatch.chdir(tmp_path)
    arrays = {name: tensor.numpy() for name, tensor in load_file("base.safetensors").items()}
    write_checkpoint(Path("base.safetensors"), arrays, Card("zeroshot"), force=True)
    Path("expected.safetensors").unlink()
    assert main(["merge", "base.safetensors", "adapter", "-o", "out.safetensors"]) == 0
    with open_checkpoint(tmp_path / "adapter" / "adapter_model.safetensors") as weights:
        digest = read_content(weights).digest
    entry = read_card(Path("out.safetensors")).history[-1]
    assert entry.options["adapters"] == [digest]
    capsys.readouterr()
    assert main(["verify", "out.safetensors"]) == 1
    hint = f"an input was a LoRA adapter ({digest}) that was merged in memory: write it with"
    assert hint in " ".join(capsys.readouterr().err.split())
    assert main(["inspect", "out.safetensors", "--commands"]) == 0
    script = capsys.readouterr().out.splitlines()
    assert f'# inputs that are LoRA adapters merged in memory: ["{digest}"]' in script
    assert not any("--adapters" in line for line in script)
    convert_checkpoint("adapter", "tuned.safetensors", base="base.safetensors")
    assert main(["verify", "out.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["matches"]
    assert entry.inputs[1].digest in found["inputs"]


def test_an_adapter_among_several_fine_tuned_inputs(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    make_adapter(tmp_path, "CLIPModel")
    monkeypatch.chdir(tmp_path)
    words = ["merge", "base.safetensors", "adapter", "expected.safetensors", "--alpha", "1"]
    assert main([*words, "-o", "out.safetensors"]) == 0
    found, expected = load_file("out.safetensors"), load_file("expected.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


def test_an_adapter_of_another_base_and_a_folder_output_are_refused(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    make_adapter(tmp_path, "CLIPModel")
    monkeypatch.chdir(tmp_path)
    save_file({"a.weight": torch.zeros(2, 2)}, "other.safetensors")
    assert main(["merge", "other.safetensors", "adapter"]) == 1
    assert "the adapter does not fit other.safetensors" in capsys.readouterr().err
    assert main(["merge", "base.safetensors", "adapter", "-o", "out/"]) == 2
    assert "is an adapter, whose folder has no config" in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_result_is_a_checkpoint_if_the_base_is_one(tmp_path: Path) -> None:
    make_adapter(tmp_path, "CLIPVisionModelWithProjection")
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    with_head(base)
    classes = tuple(ClassEntry(name, name) for name in "abc")
    arrays = {name: tensor.numpy() for name, tensor in load_file(base).items()}
    write_checkpoint(base, arrays, Card("zeroshot", classes=classes), force=True)
    convert_checkpoint(tmp_path / "adapter", out, base=base)
    card = read_card(out)
    assert (card.role, card.classes) == ("finetuned", classes)
    assert card.history[-1].command == "convert"
    assert [item.role for item in card.history[-1].inputs] == ["zeroshot", "adapter"]
    assert card.history[-1].inputs[0].digest == read_card(base).digest
    report = merge_checkpoints(base, out, [(parse_alphas(["0.5"])[0], tmp_path / "m.safetensors")])
    assert report.warnings == ()
    data = bytearray(base.read_bytes())
    data[-1] ^= 1
    base.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match its card"):
        convert_checkpoint(tmp_path / "adapter", out, base=base, force=True)

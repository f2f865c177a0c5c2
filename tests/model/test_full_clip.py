"""A CLIP model is loaded with its own weights, activation and preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.model.conftest import FAMILIES, random_clip
from wiseft_cli.errors import ModelError
from wiseft_cli.model import full_clip
from wiseft_cli.model.full_clip import (
    ModelWarning,
    build_untrained_clip,
    load_full_clip,
    note_line,
)
from wiseft_cli.model.model_source import ModelSource, find_model
from wiseft_cli.model.weights_file import OPENAI_KEYS


def test_folder_gives_the_model_that_open_clip_loads(vit_folder: Path) -> None:
    full = load_full_clip(find_model(f"local-dir:{vit_folder}", pretrained=None))
    expected = open_clip.create_model(f"local-dir:{vit_folder}").eval()
    assert full.model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(full.model.state_dict()[name], tensor)
    assert full.preprocess == expected.visual.preprocess_cfg
    assert (full.name, full.source) == ("tiny-vit", full.weights_digest)
    assert not full.model.training


def test_name_source_and_config_contain_no_path(vit_folder: Path) -> None:
    full = load_full_clip(find_model(f"local-dir:{vit_folder}", pretrained=None))
    assert str(vit_folder.parent) not in json.dumps([full.name, full.source, full.config])


def test_weights_of_a_file_are_loaded_without_drawing_random_ones(
    vit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[bool] = []

    def build(config: dict[str, object]) -> nn.Module:
        before = torch.get_rng_state()
        nn.Linear(64, 64)
        draws.append(not torch.equal(torch.get_rng_state(), before))
        return build_untrained_clip(config)

    monkeypatch.setattr(full_clip, "build_untrained_clip", build)
    load_full_clip(find_model(f"local-dir:{vit_folder}", pretrained=None))
    load_full_clip(find_model(f"local-dir:{vit_folder}", pretrained=None, random_weights=True))
    assert draws == [False, True]


def local_source(path: Path, name: str, tensors: dict[str, torch.Tensor]) -> ModelSource:
    torch.save(tensors, path)
    return ModelSource(name, "ViT-B-32", FAMILIES["vit"], {}, weights=path)


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_clip, "load_tokenizer", lambda _source, truncate: None)


@pytest.mark.usefixtures("no_tokenizer")
def test_file_of_openai_selects_quick_gelu_and_notes_it(tmp_path: Path) -> None:
    marked = {
        **random_clip("vit").state_dict(),
        **{name: torch.tensor(1) for name in OPENAI_KEYS},
    }
    full = load_full_clip(local_source(tmp_path / "w.pt", "ViT-B-32", marked))
    assert full.config["quick_gelu"] is True
    assert full.notes == ("w.pt is a file of OpenAI's, so the model is built with QuickGELU",)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    quick = build_untrained_clip(FAMILIES["vit-quickgelu"]).eval()
    quick.load_state_dict(random_clip("vit").state_dict())
    with torch.no_grad():
        assert torch.equal(full.model.encode_image(images), quick.encode_image(images))


@pytest.mark.usefixtures("no_tokenizer")
def test_unknown_activation_is_a_warning_that_names_both_choices(tmp_path: Path) -> None:
    weights = dict(random_clip("vit").state_dict())
    full = load_full_clip(local_source(tmp_path / "w.pt", "ViT-B-32", weights))
    assert full.config["quick_gelu"] is False
    assert full.notes == (
        "w.pt does not state its activation; GELU is assumed. If it was trained with QuickGELU, "
        "as OpenAI's models were, use --model ViT-B-32-quickgelu",
    )
    assert isinstance(full.notes[0], ModelWarning)
    assert note_line(full.notes[0]).startswith("warning: w.pt does not state")
    other = load_full_clip(local_source(tmp_path / "w.pt", "no-twin", weights))
    assert other.notes == ()


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.usefixtures("no_tokenizer")
def test_requested_activation_of_unknown_weights_is_not_warned_of(
    quick_gelu: bool, tmp_path: Path
) -> None:
    weights = dict(random_clip("vit").state_dict())
    source = local_source(tmp_path / "w.pt", "ViT-B-32", weights)
    full = load_full_clip(source, quick_gelu=quick_gelu)
    assert full.config["quick_gelu"] is quick_gelu
    assert full.notes == ()


@pytest.mark.parametrize(
    ("family", "stored_name", "model_name", "stored", "shape"),
    [
        ("vit", "visual.positional_embedding", None, (17, 64), (5, 64)),
        ("vit", "module.visual.positional_embedding", None, (17, 64), (5, 64)),
        ("vit", "positional_embedding", None, (16, 32), (20, 32)),
        ("custom-text-eos", "text.positional_embedding", None, (77, 32), (20, 32)),
        ("custom", "positional_embedding", "text.positional_embedding", (77, 32), (20, 32)),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.usefixtures("no_tokenizer")
def test_interpolated_position_embedding_is_warned_of_in_every_spelling(
    family: str,
    stored_name: str,
    model_name: str | None,
    stored: tuple[int, int],
    shape: tuple[int, int],
    suffix: str,
    tmp_path: Path,
) -> None:
    config = FAMILIES.get(family) or {**FAMILIES["vit"], "custom_text": True}
    source = "vit" if family == "custom" else family
    weights = {name: t.clone() for name, t in random_clip(source).state_dict().items()}
    if stored_name.startswith("module."):
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    weights[stored_name] = torch.randn(*stored)
    path = tmp_path / f"w{suffix}"
    torch.save(weights, path) if suffix == ".pt" else save_file(weights, path)
    full = load_full_clip(ModelSource("no-twin", "ViT-B-32", config, {}, weights=path))
    name = model_name or stored_name.removeprefix("module.")
    (warning,) = full.notes
    assert isinstance(warning, ModelWarning)
    assert warning.startswith(f"{name} of {path.name} is interpolated from {stored} to {shape}: ")


def test_random_weights_are_reproducible_and_preserve_the_global_generator() -> None:
    source = find_model("RN50", pretrained=None, random_weights=True)
    config = {**FAMILIES["vit"], "text_cfg": {**FAMILIES["vit"]["text_cfg"], "vocab_size": 49408}}
    small = ModelSource("tiny", source.identifier, config, source.preprocess)
    state = torch.get_rng_state()
    first, second = load_full_clip(small), load_full_clip(small)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor)
    assert (first.source, first.weights_digest) == (None, None)


def test_invalid_config_is_rejected_with_open_clips_reason() -> None:
    with pytest.raises(ModelError, match=r"^open_clip cannot build this model config: .*colour"):
        build_untrained_clip({**FAMILIES["vit"], "colour": "blue"})

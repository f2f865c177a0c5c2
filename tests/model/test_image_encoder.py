"""An image encoder built from its config equals open_clip's, bit for bit."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from tests.model.conftest import FAMILIES, VIT, random_clip
from wiseft_cli.errors import ModelError
from wiseft_cli.model import image_encoder
from wiseft_cli.model.image_encoder import (
    SkipInitialization,
    assign_weights,
    build_image_encoder,
    image_encoder_config,
    parameters_on_meta,
)


def square_images(visual: Any, *, count: int = 2) -> torch.Tensor:
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_is_bit_equal_to_the_tower_of_the_full_model(family: str) -> None:
    full = random_clip(family)
    encoder = assign_weights(build_image_encoder(FAMILIES[family]), dict(full.visual.state_dict()))
    images = square_images(full.visual)
    with torch.no_grad():
        expected = full.visual(images)
        found = encoder(images)
    if isinstance(expected, tuple):
        expected = expected[0]  # CoCa's tower also returns its tokens
    assert torch.equal(found, expected)
    assert found.shape == (2, FAMILIES[family]["embed_dim"])


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_has_meta_parameters_and_real_buffers(family: str) -> None:
    encoder = build_image_encoder(FAMILIES[family])
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert not any(buffer.is_meta for buffer in encoder.buffers())
    assert not encoder.training


def test_every_image_encoder_of_open_clip_can_be_built_on_the_meta_device() -> None:
    for name in open_clip.list_models():
        encoder = build_image_encoder(open_clip.get_model_config(name))
        assert all(parameter.is_meta for parameter in encoder.parameters()), name
        assert not any(buffer.is_meta for buffer in encoder.buffers()), name


class ReadsItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.largest = float(self.weight.max())


class CopiesItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.register_buffer("start", self.weight.detach() * 2, persistent=False)


@pytest.mark.parametrize("tower", [ReadsItsWeight, CopiesItsWeight])
def test_tower_that_needs_its_values_is_built_normally(
    tower: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_encoder, "_build_vision_tower", lambda *_arguments: tower())
    before = torch.get_rng_state()
    built = build_image_encoder(FAMILIES["vit"])
    assert not any(parameter.is_meta for parameter in built.parameters())
    assert not any(buffer.is_meta for buffer in built.buffers())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["vit", "convnext", "vitamin"])
def test_building_preserves_the_global_generator(family: str) -> None:
    before = torch.get_rng_state()
    build_image_encoder(FAMILIES[family])
    assert torch.equal(torch.get_rng_state(), before)


def test_assigned_weights_are_not_copied_and_can_be_trained() -> None:
    state_dict = dict(random_clip("vit").visual.state_dict())
    encoder = assign_weights(build_image_encoder(FAMILIES["vit"]), state_dict)
    for name, parameter in encoder.named_parameters():
        assert parameter.data_ptr() == state_dict[name].data_ptr()
        assert parameter.requires_grad


def test_config_keeps_only_the_fields_of_the_image_encoder() -> None:
    assert image_encoder_config(FAMILIES["coca"]) == {
        "embed_dim": 24,
        "quick_gelu": False,
        "vision_cfg": {
            **VIT,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": False,
        },
    }


def test_timms_pretrained_weights_are_turned_off() -> None:
    config = {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_model_pretrained": True},
    }
    assert image_encoder_config(config)["vision_cfg"]["timm_model_pretrained"] is False


def test_quick_gelu_changes_the_encoder() -> None:
    tower = random_clip("vit").visual
    other = build_image_encoder(FAMILIES["vit-quickgelu"])
    assign_weights(other, dict(tower.state_dict()))
    images = square_images(tower)
    with torch.no_grad():
        assert not torch.allclose(tower(images), other(images), atol=1e-3)


@pytest.mark.parametrize("field", ["embed_dim", "vision_cfg"])
def test_config_without_a_required_field_is_rejected(field: str) -> None:
    config = {name: value for name, value in FAMILIES["vit"].items() if name != field}
    with pytest.raises(ModelError) as caught:
        build_image_encoder(config)
    assert caught.value.message == f"the model config has no {field}"


def test_invalid_config_is_rejected_with_the_reason() -> None:
    config = {"embed_dim": 24, "vision_cfg": {**VIT, "colour": "blue"}}
    with pytest.raises(
        ModelError, match=r"image encoder cannot be built from its config: .*colour"
    ):
        build_image_encoder(config)


def build_layers() -> nn.Module:
    layers = nn.Sequential(
        nn.Linear(4, 4), nn.Conv2d(3, 4, 2), nn.Embedding(5, 4), nn.MultiheadAttention(4, 2)
    )
    layers.register_buffer("counts", torch.empty(3).fill_(7))
    return layers


def test_skipped_initialization_draws_no_numbers_and_sets_buffers() -> None:
    before = torch.get_rng_state()
    with SkipInitialization():
        layers = build_layers()
    assert torch.equal(torch.get_rng_state(), before)
    assert layers.counts.tolist() == [7, 7, 7]
    assert not any(parameter.is_meta for parameter in layers.parameters())


def test_skipped_initialization_terminates_on_uninitialized_values() -> None:
    """Newer torch redraws values that are out of bounds until none is left."""
    weight = nn.Parameter(torch.tensor([float("nan"), float("inf"), 1e30, 0.0]))
    with SkipInitialization():
        nn.init.trunc_normal_(weight)
        nn.init.trunc_normal_(weight, mean=5.0, std=1.0, a=-1.0, b=3.0)


def test_parameters_on_meta_draws_no_numbers_and_sets_buffers() -> None:
    before = torch.get_rng_state()
    with parameters_on_meta():
        layers = build_layers()
    assert torch.equal(torch.get_rng_state(), before)
    assert layers.counts.tolist() == [7, 7, 7]
    assert all(parameter.is_meta for parameter in layers.parameters())


@pytest.mark.parametrize("context", [SkipInitialization, parameters_on_meta])
def test_layers_are_initialized_again_after_the_context(context: type) -> None:
    with context():
        build_layers()
    layers = nn.Linear(4, 4)
    assert not layers.weight.is_meta
    with torch.no_grad():
        assert layers.weight.fill_(3).eq(3).all()

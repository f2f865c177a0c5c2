"""An encoder rebuilt from its config is open_clip's own, bit for bit."""

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
    assign_weights,
    build_image_encoder,
    image_encoder_config,
)


def square_images(visual: Any, *, count: int = 2) -> torch.Tensor:
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_rebuilt_encoder_is_bit_equal_to_the_tower_of_the_full_model(family: str) -> None:
    full = random_clip(family)
    encoder = assign_weights(build_image_encoder(FAMILIES[family]), dict(full.visual.state_dict()))
    images = square_images(full.visual)
    with torch.no_grad():
        expected = full.visual(images)
        found = encoder(images)
    if isinstance(expected, tuple):
        expected = expected[0]  # CoCa's tower returns its tokens too
    assert torch.equal(found, expected)
    assert found.shape == (2, FAMILIES[family]["embed_dim"])


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_wait_on_the_meta_device_and_buffers_do_not(family: str) -> None:
    encoder = build_image_encoder(FAMILIES[family])
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert not any(buffer.is_meta for buffer in encoder.buffers())
    assert not encoder.training


def test_every_image_encoder_of_open_clip_can_be_built_without_values() -> None:
    for name in open_clip.list_models():
        encoder = build_image_encoder(open_clip.get_model_config(name))
        assert all(parameter.is_meta for parameter in encoder.parameters()), name
        assert not any(buffer.is_meta for buffer in encoder.buffers()), name


class LooksAtItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.largest = float(self.weight.max())


class CopiesItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.register_buffer("start", self.weight.detach() * 2, persistent=False)


@pytest.mark.parametrize("tower", [LooksAtItsWeight, CopiesItsWeight])
def test_tower_that_needs_its_values_is_built_with_them(
    tower: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_encoder, "_build_vision_tower", lambda *_arguments: tower())
    before = torch.get_rng_state()
    built = build_image_encoder(FAMILIES["vit"])
    assert not any(parameter.is_meta for parameter in built.parameters())
    assert not any(buffer.is_meta for buffer in built.buffers())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["vit", "convnext", "vitamin"])
def test_building_leaves_the_global_generator_as_it_was(family: str) -> None:
    before = torch.get_rng_state()
    build_image_encoder(FAMILIES[family])
    assert torch.equal(torch.get_rng_state(), before)


def test_assigned_weights_are_not_copied_and_can_be_trained() -> None:
    state_dict = dict(random_clip("vit").visual.state_dict())
    encoder = assign_weights(build_image_encoder(FAMILIES["vit"]), state_dict)
    for name, parameter in encoder.named_parameters():
        assert parameter.data_ptr() == state_dict[name].data_ptr()
        assert parameter.requires_grad


def test_config_keeps_what_decides_the_image_encoder_and_nothing_else() -> None:
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


def test_timm_never_fetches_weights_of_its_own() -> None:
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
def test_config_without_a_field_is_refused(field: str) -> None:
    config = {name: value for name, value in FAMILIES["vit"].items() if name != field}
    with pytest.raises(ModelError) as caught:
        build_image_encoder(config)
    assert caught.value.message == (
        f"the model config has no {field}, so no image encoder can be built"
    )


def test_config_that_no_tower_takes_is_refused() -> None:
    config = {"embed_dim": 24, "vision_cfg": {**VIT, "colour": "blue"}}
    with pytest.raises(
        ModelError, match=r"image encoder cannot be built from its config: .*colour"
    ):
        build_image_encoder(config)

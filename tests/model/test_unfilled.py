"""Building without filling draws nothing, leaves buffers alone, and is over when it is over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from wiseft_cli.model import full_clip
from wiseft_cli.model.full_clip import build_untrained_clip, load_full_clip
from wiseft_cli.model.model_source import find_model
from wiseft_cli.model.unfilled import FillingLeftOut, parameters_on_meta


def build_layers() -> nn.Module:
    layers = nn.Sequential(
        nn.Linear(4, 4), nn.Conv2d(3, 4, 2), nn.Embedding(5, 4), nn.MultiheadAttention(4, 2)
    )
    layers.register_buffer("counts", torch.empty(3).fill_(7))
    return layers


def test_nothing_is_drawn_and_buffers_are_filled() -> None:
    before = torch.get_rng_state()
    with FillingLeftOut():
        layers = build_layers()
    assert torch.equal(torch.get_rng_state(), before)
    assert layers.counts.tolist() == [7, 7, 7]
    assert not any(parameter.is_meta for parameter in layers.parameters())


def test_draws_that_look_at_what_they_filled_come_to_an_end() -> None:
    """Newer torch rejects values by looking at them; here it meets whatever lay in memory."""
    weight = nn.Parameter(torch.tensor([float("nan"), float("inf"), 1e30, 0.0]))
    with FillingLeftOut():
        nn.init.trunc_normal_(weight)
        nn.init.trunc_normal_(weight, mean=5.0, std=1.0, a=-1.0, b=3.0)


def test_parameters_are_on_meta_and_buffers_are_not() -> None:
    before = torch.get_rng_state()
    with parameters_on_meta():
        layers = build_layers()
    assert torch.equal(torch.get_rng_state(), before)
    assert layers.counts.tolist() == [7, 7, 7]
    assert all(parameter.is_meta for parameter in layers.parameters())


@pytest.mark.parametrize("left_out", [FillingLeftOut, parameters_on_meta])
def test_layers_built_after_it_are_filled_again(left_out: type) -> None:
    with left_out():
        build_layers()
    layers = nn.Linear(4, 4)
    assert not layers.weight.is_meta
    with torch.no_grad():
        assert layers.weight.fill_(3).eq(3).all()


def test_weights_of_a_file_are_loaded_without_drawing_others_first(
    vit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[bool] = []

    def build(config: dict[str, object]) -> nn.Module:
        before = torch.get_rng_state()
        model = nn.Linear(64, 64)
        drawn.append(not torch.equal(torch.get_rng_state(), before))
        del model
        return build_untrained_clip(config)

    monkeypatch.setattr(full_clip, "build_untrained_clip", build)
    load_full_clip(find_model(f"local-dir:{vit_folder}", pretrained=None))
    load_full_clip(find_model(f"local-dir:{vit_folder}", pretrained=None, random_weights=True))
    assert drawn == [False, True]

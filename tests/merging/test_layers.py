"""Blocks by the names of tensors, for the naming schemes of image encoders, and patterns."""

from __future__ import annotations

from fractions import Fraction

import pytest

from wiseft_cli.errors import UsageError
from wiseft_cli.merging.layers import (
    find_block,
    group_label,
    match_layer_alphas,
    parse_layer_alpha,
    relative_depths,
)

NAMES = {
    "visual.transformer.resblocks.11.mlp.c_fc.weight": "visual.transformer.resblocks.11",
    "visual.trunk.blocks.3.attn.qkv.weight": "visual.trunk.blocks.3",
    "visual.trunk.stages.2.blocks.8.gamma": "visual.trunk.stages.2.blocks.8",
    "visual.trunk.layers.1.blocks.0.norm1.weight": "visual.trunk.layers.1.blocks.0",
    "visual.trunk.stages.1.downsample.0.weight": "visual.trunk.stages.1",
    "visual.layer3.5.conv1.weight": "visual.layer3.5",
    "visual.trunk.patch_embed.backbone.stages.1.blocks.0.conv1.weight": (
        "visual.trunk.patch_embed.backbone.stages.1.blocks.0"
    ),
    "vision_model.encoder.layers.7.self_attn.k_proj.weight": "vision_model.encoder.layers.7",
    "transformer.resblocks.0.ln_1.bias": "transformer.resblocks.0",
    "text.transformer.encoder.layer.4.output.dense.bias": "text.transformer.encoder.layer.4",
}


@pytest.mark.parametrize(("name", "label"), NAMES.items())
def test_the_block_of_a_tensor_is_found_by_its_name(name: str, label: str) -> None:
    block = find_block(name)
    assert block is not None
    assert group_label(name) == block.label == label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("visual.proj", "visual.proj"),
        ("visual.ln_post.weight", "visual.ln_post"),
        ("classification_head.bias", "classification_head"),
        ("visual.conv1.weight", "visual.conv1"),
        ("layers.weight", "layers"),
    ],
)
def test_tensors_outside_the_blocks_have_none(name: str, label: str) -> None:
    assert find_block(name) is None
    assert group_label(name) == label


def test_depth_counts_the_blocks_of_each_tower() -> None:
    depths = relative_depths(
        [
            "visual.conv1.weight",
            *(f"visual.layer{stage}.{block}.w" for stage in (1, 2) for block in (0, 1)),
            "visual.layer2.0.downsample.w",
            "visual.attnpool.positional_embedding",
            "transformer.resblocks.0.w",
            "transformer.resblocks.1.w",
        ],
        by_place=True,
    )
    assert [str(depth) for depth in depths.values()] == [
        *("0", "0", "1/3", "2/3", "1", "2/3", "1"),
        *("0", "1"),
    ]


def test_a_stage_outside_its_blocks_is_as_deep_as_its_first_block() -> None:
    names = [
        "visual.trunk.stages.0.blocks.0.w",
        "visual.trunk.stages.1.downsample.1.w",
        "visual.trunk.stages.1.blocks.0.w",
        "visual.trunk.stages.1.blocks.1.w",
    ]
    depths = relative_depths(names, by_place=False)
    assert list(depths.values()) == [0, Fraction(1, 2), Fraction(1, 2), 1]


def test_blocks_after_a_convolutional_trunk_are_deeper() -> None:
    names = [
        "visual.trunk.blocks.0.w",
        "visual.trunk.patch_embed.backbone.stages.5.blocks.0.w",
        "visual.trunk.patch_embed.backbone.stem.conv1.weight",
    ]
    assert list(relative_depths(names, by_place=True).values()) == [1, 0, 0]


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("a.{0-2}.*", ["a.0.w", "a.2.w"]),
        ("a.{2,10}.w", ["a.2.w", "a.10.w"]),
        ("*.w", ["a.0.w", "a.2.w", "a.10.w"]),
        ("a.?.w", ["a.0.w", "a.2.w"]),
        ("b[0].(w)+", ["b[0].(w)+"]),
    ],
)
def test_patterns_match_whole_names(pattern: str, matching: list[str]) -> None:
    names = ["a.0.w", "a.2.w", "a.10.w", "a.10.weight", "b[0].(w)+"]
    found = match_layer_alphas([parse_layer_alpha(f"{pattern}=0.5")], names)
    assert list(found) == matching


@pytest.mark.parametrize("text", ["", "=0.5", "a", "a=", "a=x", "a=0,1", "{a=1", "a{5-1}=1", "a=2"])
def test_malformed_layer_alphas_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_layer_alpha(text)

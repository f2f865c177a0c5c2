"""Small variants of timm's image towers, registered in timm.

timm's entry points accept the sizes of a tower as arguments, but open_clip does not pass any. So an
entry point is registered that calls the real one with small sizes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import timm
from timm.models import register_model
from timm.models.vitamin import VitCfg, VitConvCfg

PREFIX = "wiseft_small_"
_VIT = {"depth": 2, "num_heads": 2}
_VITAMIN = VitCfg(
    embed_dim=(8, 16, 32),
    depths=(1, 1, 1),
    stem_width=8,
    conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
    head_type="1d",
)
_NUMBERS: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"convnext_.*", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    (
        r"swin_.*",
        {"window_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "img_size": 32},
    ),
    (r"fastvit_.*", {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)}),
    (r"vitamin_.*", {**_VIT, "embed_dim": 32, "embed_cfg": _VITAMIN, "img_size": 32}),
    # Its convolutional stem is as wide as the tower; no argument changes that.
    (r"vit_base_mci_.*", {"depth": 1, "num_heads": 2, "mlp_ratio": 0.25, "img_size": 32}),
    (r".*patch14.*", {**_VIT, "img_size": 28}),
    (r".*patch16.*", {**_VIT, "img_size": 32}),
)


@cache
def small_tower(name: str, embed_dim: int) -> tuple[str, int]:
    """Register a small variant of a timm tower; return its name and its image size.

    Args:
        name: timm's name of the real tower.
        embed_dim: Width of towers without a projection.
    """
    numbers = next(numbers for pattern, numbers in _NUMBERS if re.fullmatch(pattern, name))
    if numbers.get("depth") == 2 and "embed_dim" not in numbers:
        numbers = {**numbers, "embed_dim": embed_dim if "siglip" in name else 32}
    small = f"{PREFIX}{name}_{embed_dim}"

    def build(pretrained: bool = False, **options: Any) -> Any:
        return timm.create_model(name, pretrained=False, **{**numbers, **options})

    build.__name__ = small
    register_model(build)
    return small, int(numbers.get("img_size", 64))

"""All model families of open_clip, with a small variant of each.

A variant keeps all fields that determine how a tower works (masks, pooling, projections, biases,
activations) and has fewer layers, smaller widths, images and vocabularies. timm's image towers
keep their architecture (`small_towers.py`), tokenizers of the hub their special tokens
(`small_tokenizers.py`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip

from tests.families.small_towers import small_tower
from tests.model.conftest import VOCAB_SIZE

EMBED_DIM = 24
CONTEXT_LENGTH = 40
WIDTH = 32


@dataclass(frozen=True)
class Family:
    """A row of docs/models.md.

    Attributes:
        title: Name of the family in that row.
        like: The open_clip model whose config the small variant is made from.
        names: Pattern of the open_clip names in this family.
        tokenizer: `clip`, or a kind of `small_tokenizers.py`.
        hub_tower: Text tower of `small_tokenizers.py` that replaces the one on the hub.
        embed_dim: Feature dimension of the small variant.
        error: Error of `zeroshot-head` for a family that is not supported.
    """

    title: str
    like: str
    names: str
    tokenizer: str = "clip"
    hub_tower: str | None = None
    embed_dim: int = EMBED_DIM
    error: str | None = None


PLAIN_VIT = (
    r"ViT-(S|M|B|L|H|g|e|bigG)-(14|16|32)"
    r"(-(plus|alt|plus-240|plus-256|256|280|320|336|378))?"
)
FAMILIES = (
    Family("CLIP, ViT", "ViT-B-32", PLAIN_VIT),
    Family("CLIP, ViT with QuickGELU", "ViT-B-32-quickgelu", rf"{PLAIN_VIT}-quickgelu"),
    Family("CLIP, ModifiedResNet", "RN50", r"RN(50|101|50x4|50x16|50x64)(-quickgelu)?"),
    Family(
        "MetaCLIP 2, H and bigG", "ViT-H-14-worldwide", r"ViT-(H|bigG)-.*-worldwide.*", "roberta"
    ),
    Family("MetaCLIP 2, L", "ViT-L-14-worldwide", r"ViT-L-.*-worldwide.*", "mt5"),
    Family("CLIPA", "ViT-L-14-CLIPA", r"ViT-.*-CLIPA.*", tokenizer="bert"),
    Family("ConvNeXt", "convnext_base", r"convnext_(?!large_d).*"),
    Family("ConvNeXt, deeper projection", "convnext_large_d", r"convnext_large_d.*"),
    Family("timm: Swin", "swin_base_patch4_window7_224", r"swin_.*"),
    Family("timm: ViT with average pooling", "vit_medium_patch16_gap_256", r"vit_medium_.*"),
    Family(
        "timm: ViT with relative positions", "vit_relpos_medium_patch16_cls_224", r"vit_relpos_.*"
    ),
    Family("EVA01", "EVA01-g-14", r"EVA01-.*"),
    Family("EVA02", "EVA02-B-16", r"EVA02-(B|L)-.*"),
    Family("EVA02, enormous", "EVA02-E-14", r"EVA02-E-.*"),
    Family("ViTamin", "ViTamin-S", r"ViTamin-.*"),
    Family("MobileCLIP and MobileCLIP 2, B", "MobileCLIP-B", r"MobileCLIP2?-B"),
    Family("MobileCLIP and MobileCLIP 2, S0 to S4", "MobileCLIP-S1", r"MobileCLIP2?-S\d"),
    Family("MobileCLIP 2, L-14", "MobileCLIP2-L-14", r"MobileCLIP2-L-14"),
    Family("PE-Core", "PE-Core-B-16", r"PE-Core-.*"),
    Family("CoCa", "coca_ViT-B-32", r"coca_ViT-.*"),
    Family(
        "CoCa, base",
        "coca_base",
        r"coca_base",
        error="the tokenizer of coca_base has 49408 tokens, but its text tower has 64000",
    ),
    Family(
        "CoCa, RoBERTa text tower",
        "coca_roberta-ViT-B-32",
        r"coca_roberta-.*",
        tokenizer="roberta",
        hub_tower="roberta",
    ),
    Family(
        "SigLIP",
        "ViT-B-16-SigLIP",
        r"ViT-(B|L|SO400M)-\d+-SigLIP(-\d+)?|ViT-B-16-SigLIP-i18n-256",
        tokenizer="siglip",
        embed_dim=WIDTH,
    ),
    Family(
        "SigLIP without a text projection",
        "ViT-SO400M-16-SigLIP-i18n-256",
        r"ViT-SO400M-16-SigLIP-i18n-256",
        tokenizer="siglip",
        embed_dim=WIDTH,
    ),
    Family(
        "SigLIP 2",
        "ViT-B-16-SigLIP2",
        r"ViT-(B|L|SO400M)-\d+-SigLIP2(-\d+)?",
        tokenizer="gemma",
        embed_dim=WIDTH,
    ),
    Family(
        "SigLIP 2, giant",
        "ViT-gopt-16-SigLIP2-256",
        r"ViT-gopt-.*",
        tokenizer="gemma",
        embed_dim=WIDTH + 16,
    ),
    Family(
        "RoBERTa text tower",
        "roberta-ViT-B-32",
        r"roberta-.*",
        tokenizer="roberta",
        hub_tower="roberta",
    ),
    Family(
        "XLM-RoBERTa text tower",
        "xlm-roberta-base-ViT-B-32",
        r"xlm-roberta-.*",
        tokenizer="xlm-roberta",
        hub_tower="xlm-roberta",
    ),
    Family("mT5 text tower", "mt5-base-ViT-B-32", r"mt5-.*", tokenizer="mt5", hub_tower="mt5"),
    Family("NLLB-CLIP", "nllb-clip-base", r"nllb-clip-(base|large)", "nllb", hub_tower="m2m_100"),
    Family(
        "NLLB-CLIP, SigLIP image tower",
        "nllb-clip-base-siglip",
        r"nllb-clip-.*-siglip",
        tokenizer="nllb",
        hub_tower="m2m_100",
        embed_dim=WIDTH,
    ),
)


def family_of(name: str) -> Family:
    """Return the family of an open_clip name; there is exactly one."""
    (family,) = (family for family in FAMILIES if re.fullmatch(family.names, name))
    return family


def small_config(family: Family) -> dict[str, Any]:
    """Return the config of `family.like` with small sizes."""
    config = copy.deepcopy(open_clip.get_model_config(family.like))
    assert config is not None, family.like
    config["embed_dim"] = family.embed_dim
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_name"], vision["image_size"] = small_tower(
            vision["timm_model_name"], family.embed_dim
        )
    else:
        vision |= _small_vision(vision)
    if "hf_model_name" in text:
        text["hf_model_name"] = f"tiny/{family.hub_tower}"
    else:
        text |= {"width": WIDTH, "heads": 2, "layers": 2, "vocab_size": VOCAB_SIZE}
    if "context_length" in text:
        text["context_length"] = CONTEXT_LENGTH
    if "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = f"tiny/{family.tokenizer}"
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {
            "width": WIDTH,
            "heads": 2,
            "layers": 1,
            "context_length": CONTEXT_LENGTH,
        }
    return config


def _small_vision(vision: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(vision["layers"], list):  # ModifiedResNet
        return {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}
    small = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    return small | ({"attn_pooler_heads": 2} if "attn_pooler_heads" in vision else {})

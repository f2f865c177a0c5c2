"""Tensor names of CLIP and SigLIP in open_clip, transformers and timm, as tables.

A row of a table pairs tensors that hold the same values: renamed, with another shape,
transposed, or several on one side that are one on the other (query, key and value). The tables
do not read files; `view.py` applies them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wiseft_cli.checkpoint.format import TensorInfo

Library = Literal["open_clip", "transformers", "timm"]
LIBRARIES: tuple[Library, ...] = ("open_clip", "transformers", "timm")

Form = Literal["same", "transposed", "axis", "two_axes", "drop_axis", "scalar", "patches"]
"""How the other library's shape differs from open_clip's.

`axis` and `two_axes`: 1 or 2 leading axes of extent 1 more; `drop_axis`: 1 less; `scalar`: (1,)
instead of (); `patches`: (D, P * P * C) instead of (D, C, P, P).
"""


@dataclass(frozen=True)
class Row:
    """Tensors of open_clip and of another library that hold the same values.

    Attributes:
        open_clip: Names in open_clip; `{n}` is the number of a block.
        other: Names in the other library.
        part: The tower that the tensors belong to: vision, text or joint.
        form: How the shapes differ.
        shares: Relative number of rows of each tensor, on the side that has several.
        is_optional: Whether a tower without these tensors is complete.
    """

    open_clip: tuple[str, ...]
    other: tuple[str, ...]
    part: str
    form: Form = "same"
    shares: tuple[int, ...] = (1,)
    is_optional: bool = False


@dataclass(frozen=True)
class Naming:
    """The library and the family that names belong to: clip, siglip or siglip2."""

    library: Library
    family: str

    def __str__(self) -> str:
        names = {"clip": "CLIP", "siglip": "SigLIP", "siglip2": "SigLIP 2 (NaFlex)"}
        return f"{self.library} names of {names[self.family]}"


NOT_WEIGHTS = re.compile(
    r"(?:^|\.)(?:position_ids|attn_mask)$|^(?:input_resolution|context_length|vocab_size)$"
)
"""Buffers and numbers that older versions of the libraries stored beside the weights."""

_VISION, _TEXT, _JOINT = "vision", "text", "joint"


def _pairs(part: str, open_clip: str, other: str, table: str) -> Iterator[Row]:
    """Yield rows for each line `OPEN_CLIP OTHER[+OTHER...] [FORM]`; `*` is weight and bias."""
    for line in table.split("\n"):
        if not line.strip():
            continue
        mine, theirs, *form = line.split()
        for suffix in ("weight", "bias") if "*" in line else ("",):
            names = [
                tuple(prefix + name.replace("*", suffix) for name in names.split("+"))
                for prefix, names in ((open_clip, mine), (other, theirs))
            ]
            row = Row(names[0], names[1], part)
            shares = (1, 2) if len(row.open_clip) > 1 else (1,) * len(row.other)
            yield replace(row, shares=shares, form=form[0] if form else "same")  # type: ignore[arg-type]


_HF_BLOCK = """
ln_1.*           layer_norm1.*
attn.in_proj_*   self_attn.q_proj.*+self_attn.k_proj.*+self_attn.v_proj.*
attn.out_proj.*  self_attn.out_proj.*
ln_2.*           layer_norm2.*
mlp.c_fc.*       mlp.fc1.*
mlp.c_proj.*     mlp.fc2.*
"""
_TIMM_BLOCK = """
ln_1.*           norm1.*
attn.in_proj_*   attn.qkv.*
attn.out_proj.*  attn.proj.*
ln_2.*           norm2.*
mlp.c_fc.*       mlp.fc1.*
mlp.c_proj.*     mlp.fc2.*
"""
_TRUNK_BLOCK = """
norm1.*      layer_norm1.*
attn.qkv.*   self_attn.q_proj.*+self_attn.k_proj.*+self_attn.v_proj.*
attn.proj.*  self_attn.out_proj.*
norm2.*      layer_norm2.*
mlp.fc1.*    mlp.fc1.*
mlp.fc2.*    mlp.fc2.*
"""
_TRUNK_REST = """
pos_embed            embeddings.position_embedding.weight  drop_axis
norm.*               post_layernorm.*
attn_pool.latent     head.probe
attn_pool.q.*+attn_pool.kv.*  head.attention.in_proj_*
attn_pool.proj.*     head.attention.out_proj.*
attn_pool.norm.*     head.layernorm.*
attn_pool.mlp.fc1.*  head.mlp.fc1.*
attn_pool.mlp.fc2.*  head.mlp.fc2.*
patch_embed.proj.bias    embeddings.patch_embedding.bias
patch_embed.proj.weight  embeddings.patch_embedding.weight
"""
_HF_TEXT = """
token_embedding.weight  embeddings.token_embedding.weight
positional_embedding    embeddings.position_embedding.weight
ln_final.*              final_layer_norm.*
"""

_CLIP_TRANSFORMERS = (
    *_pairs(
        _VISION,
        "visual.",
        "vision_model.",
        """
        class_embedding       embeddings.class_embedding
        positional_embedding  embeddings.position_embedding.weight
        conv1.weight          embeddings.patch_embedding.weight
        ln_pre.*              pre_layrnorm.*
        ln_post.*             post_layernorm.*
        """,
    ),
    *_pairs(
        _VISION, "visual.transformer.resblocks.{n}.", "vision_model.encoder.layers.{n}.", _HF_BLOCK
    ),
    Row(("visual.proj",), ("visual_projection.weight",), _VISION, "transposed", is_optional=True),
    *_pairs(_TEXT, "", "text_model.", _HF_TEXT),
    *_pairs(_TEXT, "transformer.resblocks.{n}.", "text_model.encoder.layers.{n}.", _HF_BLOCK),
    Row(("text_projection",), ("text_projection.weight",), _TEXT, "transposed"),
    Row(("logit_scale",), ("logit_scale",), _JOINT),
)
_CLIP_TIMM = (
    *_pairs(
        _VISION,
        "visual.",
        "",
        """
        class_embedding       cls_token                two_axes
        positional_embedding  pos_embed                axis
        conv1.weight          patch_embed.proj.weight
        ln_pre.*              norm_pre.*
        ln_post.*             norm.*
        """,
    ),
    *_pairs(_VISION, "visual.transformer.resblocks.{n}.", "blocks.{n}.", _TIMM_BLOCK),
    Row(("visual.proj",), ("head.weight",), _VISION, "transposed", is_optional=True),
)
_SIGLIP_TRANSFORMERS = (
    *_pairs(_VISION, "visual.trunk.", "vision_model.", _TRUNK_REST),
    *_pairs(_VISION, "visual.trunk.blocks.{n}.", "vision_model.encoder.layers.{n}.", _TRUNK_BLOCK),
    *_pairs(_TEXT, "text.", "text_model.", _HF_TEXT),
    *_pairs(_TEXT, "text.transformer.resblocks.{n}.", "text_model.encoder.layers.{n}.", _HF_BLOCK),
    *_pairs(_TEXT, "text.", "text_model.", "text_projection.* head.*"),
    Row(("logit_scale",), ("logit_scale",), _JOINT, "scalar"),
    Row(("logit_bias",), ("logit_bias",), _JOINT, "scalar"),
)
_SIGLIP_TIMM = tuple(
    Row(row.open_clip[i : i + 1], (name.removeprefix("visual.trunk."),), _VISION)
    for row in _SIGLIP_TRANSFORMERS
    if row.part == _VISION
    for i, name in enumerate(row.open_clip)
)

TABLES: Mapping[Naming, tuple[Row, ...]] = {
    Naming("transformers", "clip"): _CLIP_TRANSFORMERS,
    Naming("transformers", "siglip"): _SIGLIP_TRANSFORMERS,
    Naming("transformers", "siglip2"): tuple(
        replace(row, form="patches")
        if row.open_clip[0].endswith("patch_embed.proj.weight")
        else row
        for row in _SIGLIP_TRANSFORMERS
    ),
    Naming("timm", "clip"): _CLIP_TIMM,
    Naming("timm", "siglip"): _SIGLIP_TIMM,
}
"""The rows of each naming other than open_clip's."""


def find_naming(tensors: Mapping[str, TensorInfo]) -> Naming | None:
    """Return the naming of a file's tensors by a few characteristic names, or None.

    Wrappers and prefixes must have been removed; transformers' `vision_model.` may be missing.
    """
    for prefix in ("vision_model.", ""):
        patches = tensors.get(f"{prefix}embeddings.patch_embedding.weight")
        if patches is not None:
            if f"{prefix}pre_layrnorm.weight" in tensors:
                return Naming("transformers", "clip")
            return Naming("transformers", "siglip2" if len(patches.shape) == 2 else "siglip")
    if "visual.conv1.weight" in tensors and "visual.class_embedding" in tensors:
        return Naming("open_clip", "clip")
    if "visual.trunk.attn_pool.latent" in tensors:
        return Naming("open_clip", "siglip")
    if "patch_embed.proj.weight" in tensors and "blocks.0.attn.qkv.weight" in tensors:
        if "attn_pool.latent" in tensors:
            return Naming("timm", "siglip")
        if "norm_pre.weight" in tensors and "cls_token" in tensors:
            return Naming("timm", "clip")
    return None


def expand_rows(rows: Iterable[Row], names: Iterable[str], *, from_open_clip: bool) -> list[Row]:
    """Return the rows with the numbers of the blocks that a file has in the place of `{n}`.

    All blocks up to the highest number are included, so that a missing one is found.
    """
    given = list(names)
    expanded = []
    counts: dict[str, int] = {}
    for row in rows:
        template = (row.open_clip if from_open_clip else row.other)[0]
        if "{n}" not in template:
            expanded.append(row)
            continue
        prefix = template.partition("{n}")[0]
        if prefix not in counts:
            counts[prefix] = _count_blocks(prefix, given)
        expanded += [_numbered(row, n) for n in range(counts[prefix])]
    return expanded


def _count_blocks(prefix: str, names: Sequence[str]) -> int:
    numbers = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    return max((int(match[1]) + 1 for name in names if (match := numbers.match(name))), default=0)


def _numbered(row: Row, n: int) -> Row:
    mine, theirs = (
        tuple(name.replace("{n}", str(n)) for name in side) for side in (row.open_clip, row.other)
    )
    return replace(row, open_clip=mine, other=theirs)

"""Encode prompts, padded no further than the longest of their batch where that is exact.

A causal text tower that takes its feature at the end-of-text token never looks behind that
token, so the padding there can be left out. open_clip's own `encode_text` insists on the full
context; here the same steps run on fewer positions. Every other tower gets its full padding:
CoCa appends a class token behind the padding, SigLIP and CLIPA pool the last position without
a causal mask, MobileCLIP-S1 and -S2 are not causal, hub towers have masks of their own.
It does not tokenize and does not average.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional

Precision: TypeAlias = Literal["fp32", "bf16"]
"""What a tower computes in; its weights stay float32."""


class TextEncoder:
    """The text side of an open_clip model.

    Args:
        model: An open_clip model in evaluation mode, on the device to compute on.
        precision: `bf16` computes under torch's autocast.

    Attributes:
        trims: Whether padding behind the end of the text can be left out: the tower is
            causal, pools at the end-of-text token, and appends no class token.
    """

    def __init__(self, model: nn.Module, *, precision: Precision = "fp32") -> None:
        self._model: Any = model
        self._precision = precision
        self._tower = _own_tower(model)
        self.trims = self._tower is not None and _ignores_padding(self._tower)

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        parameter: nn.Parameter = next(self._model.parameters())
        return parameter.device

    def lengths(self, tokens: Tensor) -> Tensor:
        """Return how many positions of each prompt its feature depends on.

        Args:
            tokens: Shape (B, T), padded to the context length.
        Returns:
            Shape (B,), int64: all of them, or where `trims`, those up to the pooled one.
        """
        if not self.trims:
            return torch.full((len(tokens),), tokens.shape[1])
        if _pool_type(self._tower) == "eos":
            return (tokens == _eos_id(self._tower)).int().argmax(dim=-1) + 1
        return tokens.argmax(dim=-1) + 1

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return L2-normalised text features (B, D), float32.

        Args:
            tokens: Shape (B, T); T is the context length, or where `trims`, any length that no
                prompt of the batch exceeds.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            if self.trims:
                features = _encode_causal(self._tower, tokens)
            else:
                features = self._model.encode_text(tokens)
        return functional.normalize(features.float(), dim=-1)


def _encode_causal(tower: Any, tokens: Tensor) -> Tensor:
    """The forward pass of open_clip's causal text towers on T positions.

    Source: open_clip src/open_clip/model.py, `CLIP.encode_text`.
    """
    dtype = tower.transformer.get_cast_dtype()
    length = tokens.shape[1]
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = text_global_pool(x, tokens, _pool_type(tower), eos_token_id=_eos_id(tower))
    # The layer norm works on each position alone, so it may follow the pooling.
    pooled: Tensor = tower.ln_final(x)
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        pooled = projection(pooled)
    elif projection is not None:
        pooled = pooled @ projection
    return pooled


def _own_tower(model: Any) -> Any:
    """open_clip's own text tower, which `CLIP` holds in parts; None for towers of others."""
    tower = getattr(model, "text", None)
    if tower is None:
        return model if hasattr(model, "token_embedding") else None
    return tower if isinstance(tower, TextTransformer) else None


def _ignores_padding(tower: Any) -> bool:
    return (
        getattr(tower, "cls_emb", None) is None
        and _pool_type(tower) in ("argmax", "eos")
        and _is_causal(tower.attn_mask)
    )


def _pool_type(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", None) or tower.pool_type)


def _eos_id(tower: Any) -> int:
    eos_id = getattr(tower, "text_eos_id", None)
    return int(tower.eos_id if eos_id is None else eos_id)


def _is_causal(mask: Tensor | None) -> bool:
    if mask is None:
        return False
    ahead = torch.ones(mask.shape, dtype=torch.bool, device=mask.device).triu(1)
    return bool((mask[ahead] == float("-inf")).all() and (mask[~ahead] == 0).all())

"""Encode prompts, without padding where padding does not change the features.

This module decides whether prompts are padded. A causal text tower that takes its feature at the
end-of-text token never attends to the padding behind that token, so the padding can be omitted.
open_clip's `encode_text` requires the full context length; here the same operations run on fewer
positions. All other towers get full padding: CoCa appends a class token behind the padding,
SigLIP and CLIPA pool the last position without a causal mask, MobileCLIP-S1 and -S2 are not
causal, and Hugging Face towers have their own masks.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional

from wiseft_cli.compute.precision import autocast


class TextEncoder:
    """The text side of an open_clip model.

    Args:
        model: An open_clip model in evaluation mode, on the device to compute on.
        precision: Precision of the computation, `fp32` or `bf16`; weights stay float32.

    Attributes:
        ignores_padding: Whether padding can be omitted: the tower is causal, pools at the
            end-of-text token, and appends no class token.
    """

    def __init__(self, model: nn.Module, *, precision: str = "fp32") -> None:
        self._model: Any = model
        self._precision = precision
        self._tower = _open_clip_tower(model)
        self.ignores_padding = self._tower is not None and _ignores_padding(self._tower)

    @property
    def device(self) -> torch.device:
        """The device that tokens must be on."""
        parameter: nn.Parameter = next(self._model.parameters())
        return parameter.device

    def to(self, device: torch.device) -> None:
        """Move the model to a device."""
        self._model.to(device)

    def lengths(self, tokens: Tensor) -> Tensor:
        """Return the number of positions that the feature of each prompt depends on.

        Args:
            tokens: Shape (B, T), padded to the context length.
        Returns:
            Shape (B,), int64: the position of the end-of-text token plus one if
            `ignores_padding`, otherwise T.
        """
        if not self.ignores_padding:
            return torch.full((len(tokens),), tokens.shape[1])
        if _pool_type(self._tower) == "eos":
            return (tokens == _eos_id(self._tower)).int().argmax(dim=-1) + 1
        return tokens.argmax(dim=-1) + 1

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return L2-normalized text features (B, D), float32.

        Args:
            tokens: Shape (B, T). T is the context length or, if `ignores_padding`, at least the
                length of the longest prompt.
        """
        with autocast(self._precision, self.device):
            if self.ignores_padding:
                features = _encode_causal(self._tower, tokens)
            else:
                features = self._model.encode_text(tokens)
        return functional.normalize(features.float(), dim=-1)


def _encode_causal(tower: Any, tokens: Tensor) -> Tensor:
    """Run the forward pass of open_clip's causal text towers on T positions.

    Source: open_clip src/open_clip/model.py, `CLIP.encode_text`.
    """
    dtype = tower.transformer.get_cast_dtype()
    length = tokens.shape[1]
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = text_global_pool(x, tokens, _pool_type(tower), eos_token_id=_eos_id(tower))
    # The layer norm treats each position separately, so it may follow the pooling.
    pooled: Tensor = tower.ln_final(x)
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        pooled = projection(pooled)
    elif projection is not None:
        pooled = pooled @ projection
    return pooled


def _open_clip_tower(model: Any) -> Any:
    """Return open_clip's own text tower, or None if the model has another one."""
    tower = getattr(model, "text", None)
    if tower is None:  # `open_clip.CLIP` holds the parts of its text tower itself
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
    future = torch.ones(mask.shape, dtype=torch.bool, device=mask.device).triu(1)
    return bool((mask[future] == float("-inf")).all() and (mask[~future] == 0).all())

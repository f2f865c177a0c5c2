"""Whole CLIP models, image and text tower together, through open_clip's public interface.

The config belongs to the weights: QuickGELU is what the weights were trained with, and the
config that comes out is the one that was built.
It does not look for weights (`model_source.py`) and does not build classifiers, which need the
image tower alone.
"""

from __future__ import annotations

import copy
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import default_bpe
from torch import nn

from wiseft_cli.errors import ModelError
from wiseft_cli.model.image_encoder import image_encoder_config
from wiseft_cli.model.model_source import ModelSource
from wiseft_cli.model.quiet import quiet_libraries
from wiseft_cli.model.tokenizer import PromptTokenizer, load_tokenizer
from wiseft_cli.model.transforms import check_preprocessing
from wiseft_cli.model.unfilled import FillingLeftOut
from wiseft_cli.model.weights_file import WeightsFile, examine_weights, load_weights

RANDOM_WEIGHTS_SEED = 0


class Doubt(str):
    """A note of something that the person should decide: said as a warning."""

    __slots__ = ()


@dataclass(frozen=True)
class FullClip:
    """A CLIP model with its tokenizer, and what a card must say of it.

    Attributes:
        model: open_clip's model, in evaluation mode, float32.
        tokenizer: The tokenizer the model was trained with.
        name: Model name for the card.
        source: Tag, `hf-hub:...`, `sha256:...` of a local weights file, or None (random).
        config: open_clip's model config as built.
        preprocess: open_clip's preprocessing fields, the size included.
        weights_digest: `sha256:...` of the weights file, or None (random).
        notes: What the person should know.
    """

    model: nn.Module
    tokenizer: PromptTokenizer
    name: str
    source: str | None
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    weights_digest: str | None
    notes: tuple[str, ...] = ()

    @property
    def encoder_config(self) -> dict[str, Any]:
        """The model config as a card holds it: what decides the image encoder, and its size."""
        config = image_encoder_config(self.config)
        config["vision_cfg"]["image_size"] = self.preprocess["size"]
        return config

    @property
    def description(self) -> str:
        """Name, weights, activation and image size, for people."""
        activation = "QuickGELU" if self.config["quick_gelu"] else "GELU"
        size = self.preprocess["size"]
        pixels = f"{size}" if isinstance(size, int) else "x".join(map(str, size))
        source = self.source or "random"
        weights = f"{source[:19]}..." if source.startswith("sha256:") else source
        return f"{self.name}, weights {weights}, {activation}, {pixels} px"


def load_full_clip(
    source: ModelSource,
    *,
    device: torch.device | str = "cpu",
    quick_gelu: bool | None = None,
) -> FullClip:
    """Build a model and load its weights; without a weights file, draw them from a fixed seed.

    Args:
        source: What `find_model` returned.
        device: Where the model is moved.
        quick_gelu: The activation, where it is not to be what the weights say.
    Raises:
        ModelError: The config cannot be built, or the weights do not fit it.
        MissingDependencyError: The tokenizer needs a package that is not installed.
    """
    weights = None if source.weights is None else examine_weights(source.weights)
    config, notes = _settle_quick_gelu(source, weights)
    if quick_gelu is not None:
        notes = _override_notes(config["quick_gelu"], quick_gelu, notes)
        config["quick_gelu"] = quick_gelu
    tokenizer = load_tokenizer(source)
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_WEIGHTS_SEED)
            model = build_untrained_clip(config)
    else:
        with torch.random.fork_rng(devices=[]), FillingLeftOut():
            model = build_untrained_clip(config)
        notes += _resize_notes(model, weights)
        load_weights(model, weights)
    tower: Any = model.visual
    preprocess = {**source.preprocess, "size": tower.image_size}
    check_preprocessing(preprocess)  # here, where it comes from, not when images are read
    return FullClip(
        model=model.eval().to(device),
        tokenizer=tokenizer,
        name=source.name,
        source=source.published or (None if weights is None else weights.digest),
        config=config,
        preprocess=preprocess,
        weights_digest=None if weights is None else weights.digest,
        notes=source.notes + notes,
    )


def build_untrained_clip(model_config: Mapping[str, Any]) -> nn.Module:
    """Build a CLIP with random weights from an open_clip model config.

    Args:
        model_config: `embed_dim`, `vision_cfg`, `text_cfg` and the rest of open_clip's JSON
            files; weights that timm or transformers would load by themselves are left out.
    Returns:
        A model in training mode; its weights follow torch's global random state.
    Raises:
        ModelError: open_clip cannot build this config.
    """
    config = copy.deepcopy(dict(model_config))
    custom_text = config.pop("custom_text", False)
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    if config["text_cfg"].get("hf_model_name"):
        config["text_cfg"]["hf_model_pretrained"] = False
        custom_text = True
    kind: type[nn.Module] = open_clip.CLIP
    if custom_text:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with quiet_libraries():
        try:
            return kind(**config)
        except Exception as error:  # a config is free-form, and so is what strikes its builder
            raise ModelError(f"open_clip cannot build this model config: {error}") from None


def build_simple_tokenizer(bpe_path: Path, context_length: int) -> open_clip.SimpleTokenizer:
    """Build CLIP's byte-pair tokenizer over the merges of a file.

    Args:
        bpe_path: Gzipped merges, a header line first.
        context_length: Tokens a text is padded or cut to.
    """
    return open_clip.SimpleTokenizer(bpe_path=str(bpe_path), context_length=context_length)


def read_clip_merges(count: int) -> str:
    """The header and the first `count` byte-pair merges of CLIP's own vocabulary."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    return "\n".join(lines[: count + 1])


def _settle_quick_gelu(
    source: ModelSource, weights: WeightsFile | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config with `quick_gelu` as the weights were trained, and what to say of it."""
    config = copy.deepcopy(dict(source.config))
    config["quick_gelu"] = bool(config.get("quick_gelu", False))
    if weights is None or source.published is not None or config["quick_gelu"]:
        return config, ()
    if weights.has_openai_marks:
        config["quick_gelu"] = True
        return config, (
            f"{weights.path.name} carries OpenAI's marks, so the model is built with QuickGELU",
        )
    twin = f"{source.name}-quickgelu"
    if twin in open_clip.list_models():
        doubt = Doubt(
            f"{weights.path.name} does not say its activation; GELU is assumed. If it was "
            f"trained with QuickGELU, as OpenAI's models were, give --model {twin}"
        )
        return config, (doubt,)
    return config, ()


def _override_notes(found: bool, asked: bool, notes: tuple[str, ...]) -> tuple[str, ...]:
    """What to say where the person chose: nothing, unless against what the weights say."""
    if found == asked:
        return ()
    names = {True: "QuickGELU", False: "GELU"}
    return (*notes, f"{names[asked]} is used as asked for, though the model says {names[found]}")


def _resize_notes(model: nn.Module, weights: WeightsFile) -> tuple[str, ...]:
    """Say where open_clip will interpolate position embeddings to the model's size."""
    notes = []
    for name, tensor in model.state_dict().items():
        stored = weights.shapes.get(name)
        if name.endswith("positional_embedding") and stored not in (None, tuple(tensor.shape)):
            notes.append(
                f"{name} of {weights.path.name} is interpolated from {stored} to "
                f"{tuple(tensor.shape)}"
            )
    return tuple(notes)

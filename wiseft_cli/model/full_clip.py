"""Load whole CLIP models, image and text tower together.

The activation belongs to the weights: a model is built with the one that its weights were trained
with, GELU or QuickGELU, and its config states what was built. A checkpoint's image encoder can
replace the model's own: after fine-tuning or merging it still shares the feature space of the
text tower. `model_source.py` finds the weights; `classifier.py` needs the image tower alone.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from wiseft_cli.checkpoint.card import Card, ModelSpec
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.reader import open_checkpoint, require_whole_checkpoint
from wiseft_cli.errors import ModelError
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.image_encoder import (
    SkipInitialization,
    apply_activation,
    image_encoder_config,
)
from wiseft_cli.model.model_source import FOLDER_PREFIX, HUB_PREFIX, ModelSource
from wiseft_cli.model.quiet import quiet_libraries
from wiseft_cli.model.tokenizer import PromptTokenizer, load_tokenizer
from wiseft_cli.model.transforms import check_preprocessing
from wiseft_cli.model.weights_file import (
    SUFFIXES,
    WeightsFile,
    inspect_weights,
    load_tower,
    load_weights,
)

RANDOM_WEIGHTS_SEED = 0
_ABSENT = "absent"


class ModelWarning(str):
    """A note that requires a decision by the user; printed as a warning."""

    __slots__ = ()


@dataclass(frozen=True)
class FullClip:
    """A CLIP model with its tokenizer and the facts that a card states.

    Attributes:
        model: open_clip's model, float32 and in evaluation mode.
        tokenizer: The tokenizer that the model was trained with.
        name: Name of the model for the card.
        source: Tag or `hf-hub:` name of the weights, `sha256:...` of a local file, or None
            (random).
        config: open_clip's model config as built.
        preprocess: open_clip's preprocessing fields, including the size.
        weights_digest: `sha256:...` of the weights file, or None (random).
        notes: Remarks for the user.
        encoder_card: Card of the checkpoint whose image encoder replaced the model's own.
        encoder_digest: Digest of that checkpoint; `sha256:...` of a file without a card.
    """

    model: nn.Module
    tokenizer: PromptTokenizer
    name: str
    source: str | None
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    weights_digest: str | None
    notes: tuple[str, ...] = ()
    encoder_card: Card | None = None
    encoder_digest: str | None = None

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities: exp of the stored value, in float32."""
        model: Any = self.model
        return float(model.logit_scale.detach().float().exp().reshape(()))

    @property
    def logit_bias(self) -> float:
        """The bias of the logits (SigLIP), or 0."""
        bias = getattr(self.model, "logit_bias", None)
        return 0.0 if bias is None else float(bias.detach().reshape(()))

    @property
    def encoder_config(self) -> dict[str, Any]:
        """The config of the image encoder for the card, with the image size as built."""
        config = image_encoder_config(self.config)
        config["vision_cfg"]["image_size"] = self.preprocess["size"]
        return config

    @property
    def description(self) -> str:
        """Name, weights, activation and image size in one line."""
        activation = "QuickGELU" if self.config["quick_gelu"] else "GELU"
        size = self.preprocess["size"]
        pixels = f"{size}" if isinstance(size, int) else "x".join(map(str, size))
        source = self.source or "random"
        weights = f"{source[:19]}..." if source.startswith("sha256:") else source
        return f"{self.name}, weights {weights}, {activation}, {pixels} px"


def note_line(note: str) -> str:
    """Return a note as a line for the user."""
    return f"{'warning' if isinstance(note, ModelWarning) else 'note'}: {note}"


def load_full_clip(
    source: ModelSource,
    *,
    device: torch.device | str = "cpu",
    quick_gelu: bool | None = None,
    truncate: bool = False,
    image_encoder: Path | None = None,
) -> FullClip:
    """Build a CLIP model and load its weights; random weights come from a fixed seed.

    Args:
        source: The result of `find_model`.
        device: Device of the model.
        quick_gelu: Overrides the activation of the weights.
        truncate: Whether the tokenizer cuts prompts that exceed the model's context.
        image_encoder: A checkpoint whose image encoder replaces the model's own, or a file of
            image encoder weights without a card.
    Raises:
        ModelError: The config cannot be built, the weights do not match it, or `image_encoder`
            was made from another model.
        CheckpointError: `image_encoder` has a card, but is not a classifier.
        MissingDependencyError: The tokenizer needs a package that is not installed.
    """
    # Loaded first, because a wrong checkpoint is found faster than a model is built.
    has_card = image_encoder is not None and _has_card(image_encoder)
    replacement = load_classifier(image_encoder) if image_encoder and has_card else None
    weights = None if source.weights is None else inspect_weights(source.weights)
    config, notes = _resolve_activation(source, weights, quick_gelu)
    tokenizer = load_tokenizer(source, truncate=truncate)
    model, resize_notes = _build_model(config, weights)
    preprocess = {**source.preprocess, "size": model.visual.image_size}
    check_preprocessing(preprocess)  # report wrong values before any image is read
    digest = None if weights is None else weights.digest
    full = FullClip(
        model=model.eval().to(device),
        tokenizer=tokenizer,
        name=source.name,
        source=source.published or digest,
        config=config,
        preprocess=preprocess,
        weights_digest=digest,
        notes=source.notes + notes + resize_notes,
    )
    if image_encoder is None:
        return full
    if replacement is None:
        tower = load_tower(model.visual, image_encoder)
        note = (
            f"{image_encoder} has no wiseft card; activation and preprocessing are those of "
            f"{full.name}"
        )
        return replace(full, notes=(*full.notes, note), encoder_digest=tower.digest)
    classifier, card = replacement
    notes = _replace_image_encoder(full, image_encoder, classifier.visual, card)
    return replace(
        full, notes=full.notes + notes, encoder_card=card, encoder_digest=str(card.digest)
    )


def _has_card(path: Path) -> bool:
    if path.suffix in SUFFIXES and path.suffix != ".safetensors":
        return False
    with open_checkpoint(path, allow_shards=True) as reader:
        require_whole_checkpoint(reader)
        return reader.card is not None


def build_untrained_clip(model_config: Mapping[str, Any]) -> nn.Module:
    """Build a CLIP model with random weights from an open_clip model config.

    Args:
        model_config: Content of an open_clip config file: `embed_dim`, `vision_cfg`, `text_cfg`
            and so on. Pretrained weights of timm or transformers are not loaded.
    Returns:
        A model in training mode; torch's global generator determines its weights.
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
            model = kind(**config)
        except Exception as error:  # a config is free-form, and open_clip checks little of it
            raise ModelError(f"open_clip cannot build this model config: {error}") from None
    apply_activation(model.get_submodule("visual"), config["vision_cfg"])
    return model


def _build_model(
    config: Mapping[str, Any], weights: WeightsFile | None
) -> tuple[Any, tuple[str, ...]]:
    """Return the model, and warnings about interpolated position embeddings."""
    with torch.random.fork_rng(devices=[]):
        if weights is None:
            torch.manual_seed(RANDOM_WEIGHTS_SEED)
            return build_untrained_clip(config), ()
        with SkipInitialization():
            model = build_untrained_clip(config)
    notes = []
    for name, tensor in model.state_dict().items():
        stored = weights.shape_of(name)
        if name.endswith("positional_embedding") and stored not in (None, tuple(tensor.shape)):
            notes.append(
                ModelWarning(
                    f"{name} of {weights.path.name} is interpolated from {stored} to "
                    f"{tuple(tensor.shape)}: the weights were trained with another image size or "
                    "context length than the model is built with"
                )
            )
    load_weights(model, weights)
    return model, tuple(notes)


def _replace_image_encoder(
    full: FullClip, path: Path, image_encoder: nn.Module, card: Card
) -> tuple[str, ...]:
    """Load the weights of another image encoder into a model.

    The configs of both encoders must be equal.

    Returns:
        Notes: signs that the encoder was not trained together with this text tower.
    """
    assert card.model is not None  # load_classifier rejects such a card
    expected = _flatten(card.model.config)
    # Converted to JSON and back as the card was, so that tuples become lists.
    found = _flatten(json.loads(canonical_json(full.encoder_config)))
    faults = [
        f"{field}: {expected.get(field, _ABSENT)}, and {found.get(field, _ABSENT)} in the model"
        for field in sorted(expected.keys() | found.keys())
        if expected.get(field, _ABSENT) != found.get(field, _ABSENT)
    ]
    if faults:
        raise ModelError(
            f"{path}: its image encoder differs from that of {full.name}",
            faults=faults,
            hint=f"use the model it was made from: {_way_to(card.model)}",
        )
    model: Any = full.model
    model.visual.load_state_dict(image_encoder.state_dict(), strict=True)
    notes = []
    if card.model.source != full.source:
        notes.append(
            f"the image encoder of {path} was made from {card.model.source or 'random weights'}, "
            f"the text tower from {full.source or 'random weights'}; they may not share a feature "
            "space"
        )
    scale = card.logit_scale
    if scale is not None and not math.isclose(full.logit_scale, scale, rel_tol=1e-5):
        notes.append(
            f"the logit scale of {full.name} is {full.logit_scale:.6g}, that of {path} {scale:.6g}"
        )
    return tuple(notes)


def _way_to(spec: ModelSpec) -> str:
    """Return the options that name the model of a card."""
    source = spec.source
    if source is not None and source.startswith(HUB_PREFIX):
        return f"--model {source}"
    if spec.name not in open_clip.list_models():
        weights = "random weights" if source is None else f"the weights {source}"
        return f"--model {FOLDER_PREFIX}FOLDER, for the folder named {spec.name} with {weights}"
    if source is None:
        return f"--model {spec.name} --random-weights"
    if source.startswith("sha256:"):
        return f"--model {spec.name} --pretrained FILE, for the file {source}"
    return f"--model {spec.name} --pretrained {source}"


def _resolve_activation(
    source: ModelSource, weights: WeightsFile | None, quick_gelu: bool | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the config with the activation to build, and notes about the choice."""
    config = copy.deepcopy(dict(source.config))
    found, notes = _find_activation(source, weights)
    config["quick_gelu"] = found
    if quick_gelu is None:
        return config, notes
    config["quick_gelu"] = quick_gelu
    is_assumed = any(isinstance(note, ModelWarning) for note in notes)
    if quick_gelu == found or is_assumed:
        return config, ()
    names = {True: "QuickGELU", False: "GELU"}
    return config, (
        *notes,
        f"{names[quick_gelu]} is used as requested, although the model states {names[found]}",
    )


def _find_activation(
    source: ModelSource, weights: WeightsFile | None
) -> tuple[bool, tuple[str, ...]]:
    """Return whether the weights were trained with QuickGELU, and notes about it."""
    if source.config.get("quick_gelu"):
        return True, ()
    if weights is None or source.published is not None or source.tokenizer_folder is not None:
        return False, ()
    if weights.is_from_openai:
        return True, (
            f"{weights.path.name} is a file of OpenAI's, so the model is built with QuickGELU",
        )
    twin = f"{source.name}-quickgelu"
    if twin not in open_clip.list_models():
        return False, ()
    warning = ModelWarning(
        f"{weights.path.name} does not state its activation; GELU is assumed. If it was trained "
        f"with QuickGELU, as OpenAI's models were, use --model {twin}"
    )
    return False, (warning,)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat

"""Put the image encoder of a checkpoint into the CLIP model it came from.

A fine-tuned or merged encoder still shares a feature space with the text tower it was trained
beside, so that it can get a head for other classes, or become a whole CLIP model again.
It does not build heads and does not write files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from wiseft_cli.checkpoint.card import Card, ModelSpec
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.errors import ModelError, list_some
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.full_clip import FullClip
from wiseft_cli.model.zeroshot_head import logit_scale_of

_ABSENT = "absent"


@dataclass(frozen=True)
class EncoderCheckpoint:
    """The image encoder of a checkpoint, with the card it came with.

    Attributes:
        visual: In evaluation mode, float32, on the CPU.
        spec: The card's model.
    """

    path: Path
    visual: nn.Module
    card: Card
    spec: ModelSpec


def load_encoder(path: Path) -> EncoderCheckpoint:
    """Load the image encoder of a checkpoint of any role.

    Raises:
        CheckpointError, ModelError: As `load_classifier`.
    """
    classifier, card = load_classifier(path)
    assert card.model is not None  # load_classifier refuses such a card
    return EncoderCheckpoint(path, classifier.visual, card, card.model)


def put_encoder(full: FullClip, encoder: EncoderCheckpoint) -> tuple[str, ...]:
    """Give a CLIP model the weights of a checkpoint's image encoder, in place.

    Returns:
        What the person should know: signs that the text tower is not the one the encoder was
        trained beside.
    Raises:
        ModelError: The encoder is of another model; every field that differs is named.
    """
    _check_config(full, encoder)
    model: Any = full.model
    model.visual.load_state_dict(encoder.visual.state_dict(), strict=True)
    return _doubts(full, encoder)


def _check_config(full: FullClip, encoder: EncoderCheckpoint) -> None:
    expected = _flatten(encoder.spec.config)
    # Through JSON, as the card went: tuples become lists.
    found = _flatten(json.loads(canonical_json(full.encoder_config)))
    differences = [
        f"{field}: {expected.get(field, _ABSENT)}, and {found.get(field, _ABSENT)} in the model"
        for field in sorted(expected.keys() | found.keys())
        if expected.get(field, _ABSENT) != found.get(field, _ABSENT)
    ]
    if differences:
        lines = "".join(f"\n  {line}" for line in list_some(differences))
        raise ModelError(
            f"{encoder.path}: its image encoder is not that of {full.name}{lines}",
            hint=f"give the model it was made from: --model {encoder.spec.name}"
            + _as_pretrained(encoder.spec.source),
        )


def _as_pretrained(source: str | None) -> str:
    """How the source of a card is given on the command line, as far as that can be known."""
    if source is None or source.startswith("hf-hub:"):
        return ""
    return f", weights {source}"


def _doubts(full: FullClip, encoder: EncoderCheckpoint) -> tuple[str, ...]:
    doubts = []
    if encoder.spec.source != full.source:
        doubts.append(
            f"the image encoder of {encoder.path} was made from {_named(encoder.spec.source)}, "
            f"the text tower is from {_named(full.source)}; they may not share a feature space"
        )
    scale: Any = full.model.logit_scale
    found = logit_scale_of(scale)
    expected = encoder.card.logit_scale
    if expected is not None and not math.isclose(found, expected, rel_tol=1e-5):
        doubts.append(
            f"the logit scale of {full.name} is {found:.6g}, that of {encoder.path} {expected:.6g}"
        )
    return tuple(doubts)


def _named(source: str | None) -> str:
    return "random weights" if source is None else source


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat

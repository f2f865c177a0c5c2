"""What each forward pass of a run is computed on: augmented images, or a frozen encoder's features.

It decodes nothing itself (`images.py`) and computes no feature itself (`features.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from PIL import Image

from wiseft_cli.data.loading import ImageDataset
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.model.transforms import eval_transform, train_transform
from wiseft_cli.training.batches import MicroBatches
from wiseft_cli.training.ddp import Logits, wrap_ddp
from wiseft_cli.training.feature_cache import FeatureCache, features_key
from wiseft_cli.training.features import Features, compute_features, feature_batches
from wiseft_cli.training.images import load_batches
from wiseft_cli.training.listener import Listener
from wiseft_cli.training.optimization import Batches
from wiseft_cli.training.placement import Placement
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.unreadable import UnreadableImages


@dataclass(frozen=True)
class Inputs:
    """What the steps of a run are computed from.

    Attributes:
        logits_of: The part of the model that is run in each step.
        batches: What it is run on.
        unreadable: The images that could not be read so far.
    """

    logits_of: Logits
    batches: Batches
    unreadable: UnreadableImages


def open_inputs(
    classifier: ImageClassifier,
    plan: FinetunePlan,
    place: Placement,
    *,
    first_step: int,
    listener: Listener,
) -> Inputs:
    """Return what the steps of a run are computed from, in one process of it.

    Args:
        classifier: On the device, in the modes of training.
        plan: What is trained, on what.
        place: Where the model computes, and beside which other processes.
        first_step: The step to begin with.
        listener: Told of features that were computed, and of unreadable images.
    """
    recipe, device, processes = plan.recipe, place.device, place.processes
    preprocess = plan.card.preprocess or {}
    unreadable = UnreadableImages(plan.max_bad, listener.on_warning, processes)
    draws = MicroBatches(
        recipe, first_step=first_step, rank=processes.rank, world_size=processes.world_size
    )
    if recipe.freeze == "encoder":
        features = _find_or_compute_features(classifier, plan, place, unreadable, listener)
        head = classifier.classification_head
        logits_of = wrap_ddp(processes, head, head, features.values[:1])
        targets = torch.tensor(plan.train.targets, device=device)
        return Inputs(logits_of, feature_batches(features, targets, draws), unreadable)
    augment = cast(Literal["crop", "none"], recipe.augment)
    images = ImageDataset(
        plan.train.images, plan.train.targets, train_transform(preprocess, augment=augment)
    )
    black = black_image(preprocess)
    logits_of = wrap_ddp(
        processes,
        classifier,
        partial(classifier, precision=recipe.precision),
        black.to(device),
    )
    batches = load_batches(
        images,
        draws,
        seed=recipe.seed,
        workers=place.workers,
        device=device,
        unreadable=unreadable,
        stand_in=black if processes.world_size > 1 else None,
    )
    return Inputs(logits_of, batches, unreadable)


def black_image(preprocess: Mapping[str, Any]) -> torch.Tensor:
    """Return an input of the model (1, 3, H, W), for passes whose result does not count."""
    return eval_transform(preprocess)(Image.new("RGB", (8, 8))).unsqueeze(0)


def _find_or_compute_features(
    classifier: ImageClassifier,
    plan: FinetunePlan,
    place: Placement,
    unreadable: UnreadableImages,
    listener: Listener,
) -> Features:
    """Return the features of the training images, from disk where they are there.

    The first process looks and tells the others what it found.
    """
    processes, n_images = place.processes, len(plan.train.images.records)
    cache = FeatureCache(
        place.feature_cache if processes.is_first else None,
        on_note=listener.on_note,
        on_warning=listener.on_warning,
    )
    key = features_key(classifier, plan, place.device) if place.feature_cache else ""
    found = cache.load(key, n_images)
    shape = processes.broadcast(None if found is None else list(found.shape))
    if shape is not None:
        values = torch.zeros(shape) if found is None else found
        values = values.to(place.device)
        processes.broadcast_tensors([values])
        listener.on_encoded(n_images)
        is_readable = torch.ones(n_images, dtype=torch.bool, device=place.device)
        return Features(values, is_readable)
    features = compute_features(
        partial(classifier.encode_image, precision=plan.recipe.precision),
        plan.train.images,
        plan.card.preprocess or {},
        batch_size=plan.recipe.micro_batch_size,
        workers=place.workers,
        device=place.device,
        processes=processes,
        unreadable=unreadable,
        on_progress=listener.on_encoded,
    )
    if features.is_readable.all():  # an unreadable image is to be named in each run
        cache.store(key, features.values)
    return features

"""What each forward pass of a run is computed on: augmented images, or a frozen encoder's features.

It decodes nothing itself (`images.py`) and computes no feature itself (`features.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from PIL import Image

from wiseft_cli.data.dataset import ImageDataset
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.model.transforms import eval_transform, train_transform
from wiseft_cli.training.batches import MicroBatches
from wiseft_cli.training.distributed import Logits
from wiseft_cli.training.features import compute_features, feature_batches
from wiseft_cli.training.images import load_batches
from wiseft_cli.training.listener import Listener
from wiseft_cli.training.optimization import Batches
from wiseft_cli.training.placement import Placement
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.precision import encode_in, logits_in
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
    unreadable = UnreadableImages(plan.max_bad, listener.on_warning)
    draws = MicroBatches(
        recipe, first_step=first_step, rank=processes.rank, world_size=processes.world_size
    )
    if recipe.freeze == "encoder":
        features = compute_features(
            encode_in(recipe.precision, classifier, device),
            plan.train.images,
            preprocess,
            batch_size=recipe.micro_batch_size,
            workers=place.workers,
            device=device,
            unreadable=unreadable,
            on_progress=listener.on_encoded,
        )
        head = classifier.classification_head
        logits_of = processes.replicate(head, head, features.values[:1])
        targets = torch.tensor(plan.train.targets, device=device)
        return Inputs(logits_of, feature_batches(features, targets, draws), unreadable)
    augment = cast(Literal["crop", "none"], recipe.augment)
    images = ImageDataset(
        plan.train.images, plan.train.targets, train_transform(preprocess, augment=augment)
    )
    black = eval_transform(preprocess)(Image.new("RGB", (8, 8))).unsqueeze(0)
    logits_of = processes.replicate(
        classifier, logits_in(recipe.precision, classifier, device), black.to(device)
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

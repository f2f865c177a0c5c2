"""What each forward pass of a run is computed on: augmented images, or a frozen encoder's features.

It decodes nothing itself (`images.py`) and computes no feature itself (`features.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch

from wiseft_cli.data.dataset import ImageDataset
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.model.transforms import train_transform
from wiseft_cli.training.batches import MicroBatches
from wiseft_cli.training.features import compute_features, feature_batches
from wiseft_cli.training.images import load_batches
from wiseft_cli.training.listener import Listener
from wiseft_cli.training.optimization import Batches
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.precision import encode_in, logits_in


def open_inputs(
    classifier: ImageClassifier,
    plan: FinetunePlan,
    *,
    first_step: int,
    device: torch.device,
    workers: int,
    listener: Listener,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Batches]:
    """Return the part of the model that is run in each step, and what it is run on.

    Args:
        classifier: On the device, in the modes of training.
        plan: What is trained, on what.
        first_step: The step to begin with.
        device: Where the model computes.
        workers: Processes that decode images.
        listener: Told of features that were computed.
    """
    recipe = plan.recipe
    augment = cast(Literal["crop", "none"], recipe.augment)
    transform = train_transform(plan.card.preprocess or {}, augment=augment)
    images = ImageDataset(plan.train.images, plan.train.targets, transform)
    draws = MicroBatches(recipe, first_step=first_step)
    if recipe.freeze != "encoder":
        return logits_in(recipe.precision, classifier, device), load_batches(
            images, draws, seed=recipe.seed, workers=workers, device=device
        )
    features = compute_features(
        encode_in(recipe.precision, classifier, device),
        images,
        batch_size=recipe.micro_batch_size,
        workers=workers,
        device=device,
        on_progress=listener.on_encoded,
    )
    targets = torch.tensor(plan.train.targets, device=device)
    return classifier.classification_head, feature_batches(features, targets, draws)

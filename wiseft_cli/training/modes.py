"""Freeze parts of a classifier, and put each part into training or evaluation mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from wiseft_cli.errors import RecipeError
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.training.batches import span_of
from wiseft_cli.training.recipe import ResolvedRecipe


def freeze_parameters(classifier: ImageClassifier, freeze: str) -> list[torch.nn.Parameter]:
    """Freeze a part of a classifier and return the trainable parameters.

    Args:
        classifier: Its frozen parameters need no gradient afterwards.
        freeze: `none`, `encoder` or `head`.
    """
    if freeze == "encoder":
        classifier.visual.requires_grad_(False)
    if freeze == "head":
        classifier.classification_head.requires_grad_(False)
    return [parameter for parameter in classifier.parameters() if parameter.requires_grad]


def set_training_modes(classifier: ImageClassifier, *, freeze: str, batch_norm: str) -> None:
    """Put a classifier into training mode, except its frozen parts.

    A frozen encoder stays in evaluation mode as a whole. If `batch_norm` is `frozen`, each
    BatchNorm layer uses and keeps its running statistics; its affine weights still train.
    """
    classifier.train()
    if freeze == "encoder":
        classifier.visual.eval()
    if batch_norm == "frozen":
        for module in _batch_norms(classifier):
            module.eval()


def _batch_norms(classifier: ImageClassifier) -> list[torch.nn.Module]:
    # The private base class is all that BatchNorm1d to 3d, SyncBatchNorm and timm's fused
    # variants have in common.
    return [module for module in classifier.modules() if isinstance(module, _BatchNorm)]


def with_single_images(
    forward: Callable[[torch.Tensor], torch.Tensor],
    classifier: ImageClassifier,
    on_warning: Callable[[str], None],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a forward pass in which BatchNorm keeps its statistics for a single image.

    BatchNorm cannot compute statistics of one image. A pass has a single input only if other
    images of it could not be read, or if it is the placeholder of a process without images.

    Args:
        forward: From inputs (B, ...) to logits (B, C), computed with the classifier.
        classifier: Its BatchNorm layers are in training mode.
        on_warning: Called with a sentence the first time.
    """
    layers = _batch_norms(classifier)
    warned: list[bool] = []
    if not layers:
        return forward

    def run(inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) != 1:
            return forward(inputs)
        if not warned:
            warned.append(True)
            on_warning(
                "a forward pass has a single readable image: BatchNorm uses its running statistics"
                " for it"
            )
        for layer in layers:
            layer.eval()
        try:
            return forward(inputs)
        finally:
            for layer in layers:
                layer.train()

    return run


def reject_single_image_batch_norm(
    classifier: ImageClassifier, recipe: ResolvedRecipe, *, world_size: int = 1
) -> None:
    """Reject a run in which a BatchNorm layer would see a single image, or none.

    Args:
        classifier: The model.
        recipe: The sizes of the batches.
        world_size: Number of processes; each takes the statistics of its own images.
    Raises:
        RecipeError: A forward pass has a single image, or a process has no image in a step.
    """
    if recipe.batch_norm == "frozen" or not _batch_norms(classifier):
        return
    # All steps of an epoch have the same size except the last; a run may end before that one.
    ends = {0, min(recipe.steps, recipe.steps_per_epoch) - 1}
    shares = [
        span_of(step, recipe).share(rank, world_size) for step in ends for rank in range(world_size)
    ]
    if all(stop - start > 1 for share in shares for start, stop in share.micro_batches):
        return
    of_process = f" in one of {world_size} processes" if world_size > 1 else ""
    raise RecipeError(
        f"a batch of each epoch has a single image{of_process}, and BatchNorm cannot compute"
        f" statistics of one ({recipe.n_images} images, batch size {recipe.batch_size})",
        hint="use another --batch-size, or --batch-norm frozen",
    )


def enable_grad_checkpointing(classifier: ImageClassifier) -> None:
    """Recompute the image encoder's activations in the backward pass instead of storing them.

    Raises:
        RecipeError: The encoder does not support it; some encoders accept the call and do nothing.
    """
    classifier.visual.set_grad_checkpointing(True)  # type: ignore[operator]
    if not any(getattr(part, "grad_checkpointing", False) for part in classifier.modules()):
        raise RecipeError(
            "grad_checkpointing: the image encoder"
            f" ({type(classifier.visual).__name__}) does not support it",
            hint="train without it; --micro-batch-size saves memory with every model",
        )

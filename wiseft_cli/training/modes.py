"""Freeze parts of a classifier, and put each part into training or evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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


def enable_drop_path(classifier: ImageClassifier, rate: float) -> None:
    """Leave out residual branches of the image encoder at random, per image, in training.

    The probability grows linearly over the blocks, from 0 to `rate` (stochastic depth: Huang et
    al. 2016, arXiv 1603.09382; timm's `drop_path`). Random numbers come from torch's generator of
    the device.

    Raises:
        RecipeError: The encoder has no residual blocks that it can act on.
    """
    # lazy: timm takes a second
    from timm.layers.drop import DropPath

    blocks = [module for module in classifier.visual.modules() if _branches_of(module)]
    is_batch_first = all(getattr(at, "batch_first", True) for at in classifier.visual.modules())
    if not blocks or not is_batch_first:
        raise RecipeError(
            "drop_path: the image encoder"
            f" ({type(classifier.visual).__name__}) has no residual blocks that it can act on",
            hint="train without it",
        )
    for at, block in enumerate(blocks):
        drop = DropPath(rate * at / max(len(blocks) - 1, 1))
        for name in _branches_of(block):
            if name.startswith("ls_"):  # open_clip: the end of a branch, which may have weights
                getattr(block, name).register_forward_hook(partial(_drop, drop))
            else:  # timm
                setattr(block, name, drop)


def _branches_of(module: torch.nn.Module) -> list[str]:
    """Return the attributes that end, or drop, the residual branches of a block."""
    names = ("ls_1", "ls_2", "drop_path1", "drop_path2", "drop_path")
    return [name for name in names if isinstance(getattr(module, name, None), torch.nn.Module)]


def _drop(
    drop: torch.nn.Module, module: torch.nn.Module, _inputs: object, branch: torch.Tensor
) -> torch.Tensor:
    dropped: torch.Tensor = drop.train(module.training)(branch)
    return dropped


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

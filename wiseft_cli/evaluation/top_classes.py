"""The most probable classes of images without labels, batch by batch.

The images go through the transform of an evaluation and the logits are an evaluation's. It counts
nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import torch

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.compute.memory import report_out_of_memory
from wiseft_cli.data.loading import PathBatch, load_paths
from wiseft_cli.errors import ModelError
from wiseft_cli.evaluation.weight_sets import NamedCheckpoint
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform
from wiseft_cli.reporting.prediction_text import Prediction, RankedClass


@dataclass(frozen=True)
class PredictSettings:
    """How images are predicted; batch size, precision and device touch the last digits alone.

    Attributes:
        top: Classes an image.
        batch_size: Images of one forward pass.
        workers: Processes that decode; 0 decodes in this one.
        read_ahead: See `load_paths`.
        device: Where the classifier runs.
        precision: What the image encoder computes in: fp32, bf16 or fp16.
    """

    top: int
    batch_size: int
    workers: int
    read_ahead: bool
    device: torch.device
    precision: str = "fp32"


def predict_images(
    checkpoint: NamedCheckpoint, paths: Iterable[str], settings: PredictSettings
) -> Generator[list[Prediction], None, None]:
    """Yield the predictions of each batch, in the order of the paths.

    Memory does not grow with the number of paths.

    Args:
        checkpoint: A classifier of any role.
        paths: Read as they are needed.
    Raises:
        CheckpointError: The file is not the classifier its card describes.
        DatasetError: A worker process died. An unreadable image is a prediction with an error.
        ModelError: The logits of an image are not finite, or the memory does not suffice.
    """
    classifier, card = load_classifier(checkpoint.path, device=settings.device)
    batches = load_paths(
        paths,
        eval_transform(checkpoint.preprocess),
        batch_size=settings.batch_size,
        workers=settings.workers,
        read_ahead=settings.read_ahead,
    )
    n_images = settings.batch_size
    for batch in batches:
        logits = torch.empty(0, len(card.classes))
        if len(batch.images):
            with (
                report_out_of_memory(
                    f"batches of {n_images} images on {settings.device}",
                    hint=f"use a smaller --batch-size than {n_images}, or fewer --workers",
                ),
                torch.inference_mode(),
            ):
                images = batch.images.to(settings.device)
                logits = classifier(images, precision=settings.precision).float().cpu()
        yield _predictions(batch, logits, card.classes, settings.top)


def _predictions(
    batch: PathBatch, logits: torch.Tensor, classes: Sequence[ClassEntry], top: int
) -> list[Prediction]:
    readable = [path for at, path in enumerate(batch.paths) if at not in batch.unreadable]
    _check_finite(readable, logits)
    ranked = iter(top_classes(logits, classes, top))
    return [
        Prediction(path, (), batch.unreadable[at])
        if at in batch.unreadable
        else Prediction(path, next(ranked))
        for at, path in enumerate(batch.paths)
    ]


def top_classes(
    logits: torch.Tensor, classes: Sequence[ClassEntry], top: int
) -> list[tuple[RankedClass, ...]]:
    """Return the classes of highest softmax for each row, equal ones in the head's order.

    Args:
        logits: Shape (B, C).
        classes: Those of the head's rows, C of them.
        top: How many; all where there are fewer.
    """
    # In float64, so that the probabilities of a row sum to one beyond the digits that are shown.
    shares, order = logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    return [
        tuple(
            RankedClass(classes[index].id, classes[index].name, share)
            for index, share in zip(indices[:top], row[:top], strict=True)
        )
        for indices, row in zip(order.tolist(), shares.tolist(), strict=True)
    ]


def _check_finite(paths: Sequence[str], logits: torch.Tensor) -> None:
    is_finite = torch.isfinite(logits).all(dim=1).tolist()
    if not all(is_finite):
        raise ModelError(
            f"the classifier's logits of {paths[is_finite.index(False)]} are not finite",
            hint="its weights are damaged, or overflow at this precision:"
            " `wiseft inspect --verify` looks for numbers that are not finite",
        )

"""Predict the most probable classes of images without labels.

Images go through the same decoding and the same transform as in an evaluation.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wiseft_cli.checkpoint.card import APPLY_ORIENTATION, EXIF_ORIENTATION, Card, ClassEntry
from wiseft_cli.checkpoint.shards import FILE_SUFFIX, INDEX_SUFFIX
from wiseft_cli.compute.precision import require_precision
from wiseft_cli.compute.workers import default_workers
from wiseft_cli.data.image_paths import STANDARD_INPUT, PathStream, image_paths
from wiseft_cli.errors import ModelError, UsageError
from wiseft_cli.evaluation.weight_sets import read_checkpoints
from wiseft_cli.reporting.prediction_text import Prediction, RankedClass

if TYPE_CHECKING:
    import torch

    from wiseft_cli.data.loading import PathBatch
    from wiseft_cli.model.classifier import ImageClassifier


def predict(
    checkpoint: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    precision: str = "fp32",
    batch_size: int = 64,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    stdin: PathStream | None = None,
) -> Generator[Prediction, None, None]:
    """Yield the prediction of each image, in order, as soon as its batch is done.

    Memory does not grow with the number of images. Batch size, precision and device change the
    last digits of a probability only.

    Args:
        checkpoint: A classifier of any role.
        images: Image files; folders, for all images below them; manifests (.csv, .tsv, .jsonl),
            for the paths in them; `-` for the paths in `stdin`.
        top: Number of classes per image.
        precision: Precision of the image encoder: `fp32`, `bf16` or `fp16`.
        batch_size: Images per forward pass.
        workers: Processes that decode; 0 decodes in this process. By default one per usable CPU,
            up to 8.
        threads: CPU threads of torch in this process; by default torch's choice.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        stdin: Stream of paths; it is read no further than the current batch.
    Yields:
        One prediction per image; that of an unreadable image has an `error`.
    Raises:
        UsageError: No image is given, or an option is wrong.
        CheckpointError: The file is not the classifier that its card describes.
        DatasetError: A folder or a manifest holds no image, or a worker process died.
        ModelError: The device cannot be used, the logits of an image are not finite, or memory
            is not enough.
    """
    require_precision(precision)
    words = [images] if isinstance(images, str | Path) else images
    names = [str(word) for word in words]
    _check_order(str(checkpoint), names)
    (found,) = read_checkpoints(
        [Path(checkpoint)],
        folder_hint="the checkpoint comes before the images: `wiseft predict CHECKPOINT {}`",
    )
    paths = image_paths(names, stdin or PathStream(lambda _: b""))
    # lazy: torch takes seconds, and the mistakes above need none
    import torch

    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.data.loading import load_paths
    from wiseft_cli.model.classifier import load_classifier
    from wiseft_cli.model.transforms import eval_transform

    if threads is not None:
        torch.set_num_threads(threads)
    classifier, card = load_classifier(found.path, device=resolve_device(device))
    batches = load_paths(
        paths,
        eval_transform(found.preprocess),
        batch_size=batch_size,
        workers=default_workers() if workers is None else workers,
        read_ahead=STANDARD_INPUT not in names,
    )
    return _predict_batches(classifier, batches, card, top, precision, batch_size)


def _check_order(checkpoint: str, images: Sequence[str]) -> None:
    """Reject a checkpoint among the images, often because the arguments are swapped."""
    suffixes = (FILE_SUFFIX, INDEX_SUFFIX)
    misplaced = [name for name in images if name.endswith(suffixes)]
    if misplaced:
        checkpoints = [name for name in (checkpoint, *images) if name.endswith(suffixes)]
        others = [name for name in (checkpoint, *images) if name not in checkpoints]
        correct = ["wiseft", "predict", checkpoints[0], *(others or ["IMAGES"])[:3]]
        raise UsageError(
            f"{misplaced[0]} is a checkpoint, and is given among the images",
            hint=f"name one checkpoint, before the images: {shlex.join(correct)}",
        )


def _predict_batches(
    classifier: ImageClassifier,
    batches: Iterable[PathBatch],
    card: Card,
    top: int,
    precision: str,
    batch_size: int,
) -> Generator[Prediction, None, None]:
    import torch  # lazy: as above

    from wiseft_cli.compute.memory import report_out_of_memory

    classes = card.classes
    ignores = (card.preprocess or {}).get(EXIF_ORIENTATION) != APPLY_ORIENTATION
    device = classifier.classification_head.weight.device
    for batch in batches:
        logits = torch.empty(0, len(classes))
        if len(batch.images):
            with (
                report_out_of_memory(
                    f"batches of {batch_size} images on {device}",
                    hint=f"use a smaller --batch-size than {batch_size}, or fewer --workers",
                ),
                torch.inference_mode(),
            ):
                logits = classifier(batch.images.to(device), precision=precision).float().cpu()
        readable = [path for at, path in enumerate(batch.paths) if at not in batch.unreadable]
        _check_finite(readable, logits)
        ranked = iter(top_classes(logits, classes, top))
        for at, path in enumerate(batch.paths):
            error = batch.unreadable.get(at)
            if error is not None:
                yield Prediction(path, (), error)
            else:
                yield Prediction(path, next(ranked), is_rotated=at in batch.rotated and ignores)


def top_classes(
    logits: torch.Tensor, classes: Sequence[ClassEntry], top: int
) -> list[tuple[RankedClass, ...]]:
    """Return the most probable classes per row, equal ones in the head's order.

    Args:
        logits: Shape (B, C).
        classes: The C classes of the head.
        top: Number of classes per row, at most all.
    """
    counts = Counter(entry.name for entry in classes)
    # In float64, so that the probabilities of a row sum to one beyond the digits that are shown.
    shares, order = logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    return [
        tuple(
            RankedClass(
                classes[index].id, classes[index].name, share, counts[classes[index].name] > 1
            )
            for index, share in zip(indices[:top], row[:top], strict=True)
        )
        for indices, row in zip(order.tolist(), shares.tolist(), strict=True)
    ]


def _check_finite(paths: Sequence[str], logits: torch.Tensor) -> None:
    is_finite = logits.isfinite().all(dim=1).tolist()
    if not all(is_finite):
        raise ModelError(
            f"the classifier's logits of {paths[is_finite.index(False)]} are not finite",
            hint="its weights are damaged, or overflow at this precision; look for numbers that"
            " are not finite with `wiseft inspect --verify`",
        )

"""Compute the diagonal Fisher information of a classifier on an image set.

For each parameter, F = mean over images of (d log p(y | image) / d parameter) ** 2. The label y is
drawn from the model's own prediction (true Fisher) or is the label of the image (empirical
Fisher). Each image has a forward and a backward pass of its own, so that the values do not depend
on a batch size; BatchNorm is in evaluation mode. The squares are added in float64.

Source: Matena and Raffel 2022, arXiv:2111.09832, section 3 and appendix A.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from wiseft_cli import __version__
from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.checkpoint.card import describe_ignored_orientation
from wiseft_cli.compute.devices import cpu_threads, resolve_device
from wiseft_cli.compute.disk import require_space
from wiseft_cli.compute.memory import report_out_of_memory
from wiseft_cli.compute.precision import deterministic_algorithms
from wiseft_cli.compute.workers import default_workers
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.label_join import join_image_set
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.data.subsets import sample_images
from wiseft_cli.errors import DatasetError, ModelError, RecipeError, counted
from wiseft_cli.evaluation.classifiers import tensor_digests
from wiseft_cli.evaluation.scoring import load_images
from wiseft_cli.evaluation.weight_sets import NamedCheckpoint, read_checkpoints
from wiseft_cli.merging.fisher_file import DATA_LABELS, MODEL_LABELS, FisherInfo, write_fisher
from wiseft_cli.model.classifier import ImageClassifier, load_classifier

DEFAULT_SAMPLES = 256
"""Images that the Fisher information is computed from, as many as in the paper's experiments."""

_DECODED_IMAGES = 16
"""Images that a worker decodes at once; the values do not depend on it."""

_BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class FisherFile:
    """A Fisher file that was written.

    Attributes:
        path: The file.
        info: What it was computed from.
        warnings: Doubts about the image set.
    """

    path: Path
    info: FisherInfo
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class FisherPlan:
    """A checked request for Fisher information.

    Attributes:
        checkpoint: The checkpoint.
        output: The file to write.
        sample: The images to use.
        targets: Class index of each label of the sample; empty if labels are drawn.
        fingerprint: Fingerprint of the whole image set.
        seed: Seed of the sample and of drawn labels.
        max_unreadable: Maximum number of unreadable images in the sample.
        force: Whether an existing output may be replaced.
        notes: Remarks about the image set.
    """

    checkpoint: NamedCheckpoint
    output: Path
    sample: ImageSet
    targets: Mapping[str, int]
    fingerprint: str
    seed: int
    max_unreadable: int
    force: bool
    notes: tuple[str, ...]

    @property
    def labels(self) -> str:
        """Where labels come from, one of `fisher_file.LABELS`."""
        return DATA_LABELS if self.targets else MODEL_LABELS


def plan_fisher(
    checkpoint: Path,
    data: str,
    output: Path,
    *,
    n_samples: int | None = DEFAULT_SAMPLES,
    labels: str = MODEL_LABELS,
    seed: int = 0,
    max_unreadable: int = 0,
    force: bool = False,
) -> FisherPlan:
    """Check everything that needs no weights.

    Args:
        checkpoint: A classifier of any role.
        data: The image set, `[NAME=]SPEC`.
        output: The file to write.
        n_samples: Number of images, chosen by the seed; None for all.
        labels: `model` to draw labels from the model's prediction, `data` for the given ones.
        seed: Seed of the sample and of drawn labels.
        max_unreadable: Maximum number of unreadable images in the sample.
        force: Whether an existing output may be replaced.
    Raises:
        CheckpointError: The file is not a checkpoint that can be run.
        DatasetError: The set cannot be listed, or its labels do not fit the head.
        OutputError: The output exists, is the input, or cannot be written.
        UsageError: The spec is malformed, or names several sets.
    """
    (named,) = read_checkpoints([checkpoint])
    check_output(output, force=force, inputs=[named.path])
    image_set = open_image_set(data)
    sample = image_set if n_samples is None else sample_images(image_set, n_samples, seed)
    notes = [*image_set.notes, *image_set.warnings]
    if n_samples is not None and n_samples > len(image_set.records):
        n_images = counted(len(image_set.records), "image")
        notes.append(
            f"image set {image_set.name!r} has {n_images}, fewer than the {n_samples:,} asked for;"
            " all of them are used"
        )
    return FisherPlan(
        checkpoint=named,
        output=output,
        sample=sample,
        targets=_class_of_label(image_set, named) if labels == DATA_LABELS else {},
        fingerprint=data_fingerprint(image_set),
        seed=seed,
        max_unreadable=max_unreadable,
        force=force,
        notes=tuple(notes),
    )


def _class_of_label(image_set: ImageSet, checkpoint: NamedCheckpoint) -> Mapping[str, int]:
    join = join_image_set(image_set, checkpoint.card.classes)
    unclear = [repr(label) for label in image_set.labels if label not in join.index]
    if unclear:
        raise DatasetError(
            f"image set {image_set.name!r}: {counted(len(unclear), 'label')} without exactly one"
            " class of the head, as --labels data requires",
            faults=unclear,
            hint="use --labels model, which needs no labels",
        )
    return join.index


def compute_fisher(
    plan: FisherPlan,
    *,
    device: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    on_progress: Callable[[int], None] = lambda n: None,
) -> FisherFile:
    """Compute and write the Fisher information of a plan.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        workers: Processes that decode images; 0 decodes in this process. By default one per
            usable CPU, up to 8.
        threads: CPU threads of torch in this process; by default torch's choice.
        on_progress: Called with a number of images that are done.
    Raises:
        CheckpointError: The tensors do not match the card.
        DatasetError: More images are unreadable than allowed, or all of them are.
        ModelError: A gradient is not finite, or memory is not enough.
        OutputError: The file cannot be written.
    """
    on = resolve_device(device)
    path = plan.checkpoint.path
    tensor_digests(path, threads=threads or torch.get_num_threads())  # raises if it is damaged
    out_of_memory = report_out_of_memory(
        f"the weights, gradients and their squares on {on}, 16 bytes per parameter",
        hint="use --device cpu, or a machine with more memory",
    )
    with cpu_threads(threads), out_of_memory:
        classifier, _ = load_classifier(path, device=on)
        squares = _SquaredGradients(classifier)
        size_bytes = _BYTES_PER_VALUE * squares.n_parameters
        require_space([(plan.output, size_bytes)])
        try:
            with deterministic_algorithms(True, on):
                n_rotated, unreadable = _add_images(plan, squares, on, workers, on_progress)
        except RecipeError as error:
            raise ModelError(error.message, hint="use --device cpu") from None
        values = squares.mean()
    info = FisherInfo(
        checkpoint=plan.checkpoint.digest,
        data_fingerprint=plan.fingerprint,
        n_images=squares.n_images,
        n_unreadable=len(unreadable),
        labels=plan.labels,
        seed=plan.seed,
        version=__version__,
    )
    written = write_fisher(plan.output, values, info, force=plan.force, inputs=[path])
    rotated = [describe_ignored_orientation(n_rotated, squares.n_images)] if n_rotated else []
    return FisherFile(plan.output, written, (*unreadable, *rotated))


def _add_images(
    plan: FisherPlan,
    squares: _SquaredGradients,
    device: torch.device,
    workers: int | None,
    on_progress: Callable[[int], None],
) -> tuple[int, list[str]]:
    """Add the images of the sample; return how many are rotated, and why some are unreadable."""
    sample, preprocess = plan.sample, plan.checkpoint.preprocess
    labels = sample.labels
    is_counted = sample.misses_orientation(preprocess)
    unreadable: list[str] = []
    n_rotated = 0
    for batch in load_images(
        sample,
        preprocess,
        batch_size=_DECODED_IMAGES,
        workers=default_workers() if workers is None else workers,
        device=device,
    ):
        unreadable += batch.unreadable.values()
        n_rotated += len(batch.rotated) if is_counted else 0
        _check_unreadable(plan, unreadable)
        targets = zip(batch.targets.tolist(), batch.indices.tolist(), strict=True)
        for image, (label, index) in zip(batch.images, targets, strict=True):
            target = plan.targets.get(labels[label]) if plan.targets else None
            name = sample.records[index].path
            squares.add(image[None], target, uniform_number(plan.seed, name), sample.name_of(index))
        on_progress(len(batch.targets) + len(batch.unreadable))
    return n_rotated, unreadable


def _check_unreadable(plan: FisherPlan, unreadable: Sequence[str]) -> None:
    n_images, most = len(plan.sample.records), plan.max_unreadable
    if len(unreadable) > most:
        raise DatasetError(
            f"image set {plan.sample.name!r}: {counted(len(unreadable), 'image')} of the"
            f" {n_images:,} cannot be read, at most {most} allowed",
            faults=unreadable,
            hint="replace or remove the files, or allow some with --max-bad N",
        )
    if len(unreadable) == n_images:
        raise DatasetError(
            f"image set {plan.sample.name!r}: none of its {n_images} images is readable"
        )


def uniform_number(seed: int, path: str) -> float:
    """Return a number in [0, 1) that depends on the seed and the image's path only."""
    data = f"fisher label/{seed}/{path}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64


class _SquaredGradients:
    """The sum of squared gradients of a classifier's parameters, one image after another."""

    def __init__(self, classifier: ImageClassifier) -> None:
        self._classifier = classifier.eval()
        # Tied parameters appear under each of their names, as in a checkpoint.
        named = dict(classifier.named_parameters(remove_duplicate=False))
        self._parameters = [at.requires_grad_() for at in dict.fromkeys(named.values())]
        position = {id(at): index for index, at in enumerate(self._parameters)}
        self._position_of = {name: position[id(at)] for name, at in named.items()}
        # MPS has no float64.
        self._sums = [
            torch.zeros_like(
                at, dtype=torch.float64, device="cpu" if at.device.type == "mps" else at.device
            )
            for at in self._parameters
        ]
        self.n_images = 0

    @property
    def n_parameters(self) -> int:
        return sum(self._parameters[at].numel() for at in self._position_of.values())

    def add(self, image: torch.Tensor, target: int | None, uniform: float, name: str) -> None:
        """Add the squares of one image (1, 3, H, W).

        Args:
            target: Class index, or None to draw one from the model's prediction.
            uniform: Number in [0, 1) that determines the drawn class.
            name: Name of the image for messages.
        """
        logits = self._classifier(image)
        if not bool(logits.isfinite().all()):
            raise ModelError(
                f"the classifier's logits of {name} are not finite",
                hint="look for numbers that are not finite with `wiseft inspect --verify`",
            )
        label = _draw(logits.detach()[0], uniform) if target is None else target
        loss = functional.cross_entropy(logits, torch.tensor([label], device=logits.device))
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for total, gradient in zip(self._sums, gradients, strict=True):
            if gradient is not None:
                wide = gradient.to(total.device).double()
                total.addcmul_(wide, wide)
        self.n_images += 1

    def mean(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the mean of the squares by parameter name."""
        means = [(total / self.n_images).float().cpu().numpy() for total in self._sums]
        values = {name: means[at] for name, at in self._position_of.items()}
        wrong = [name for name, at in values.items() if not np.isfinite(at).all()]
        if wrong:
            raise ModelError(
                f"squared gradients are not finite: {wrong[0]} and {len(wrong)} in all"
            )
        return values


def _draw(logits: torch.Tensor, uniform: float) -> int:
    """Return the class at a point of the cumulative distribution of the prediction."""
    cumulative = logits.cpu().double().softmax(dim=0).cumsum(dim=0)
    at = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return min(at, len(logits) - 1)

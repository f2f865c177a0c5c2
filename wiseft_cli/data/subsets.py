"""Seeded subsets of an image set: a validation split, a few images per class, a sample.

The choice depends on the seed and the path of each image only: not on the order of the records,
and not on the other images. A larger number of images per class keeps those of a smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.errors import DatasetError, UsageError, list_some


@dataclass(frozen=True)
class ValidationSplit:
    """An image set in two parts.

    Attributes:
        train: The larger part; its notes name the classes without a validation image.
        val: The smaller part, named after the set with `-val`.
        record: Description of the split for the checkpoint's history.
    """

    train: ImageSet
    val: ImageSet
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Subset:
    """Some images of a set.

    Attributes:
        images: The images, with the name of the set.
        record: Description of the subset for the checkpoint's history.
    """

    images: ImageSet
    record: Mapping[str, Any]


def stratified_split(image_set: ImageSet, fraction: float, seed: int) -> ValidationSplit:
    """Set aside a fraction of each class's images for validation.

    The fraction holds for the whole set to the nearest image, and for each class to within one
    image; images lost to rounding come from the classes with the largest remainders. Every class
    keeps at least one image for training, so a class with a single image has none for validation.

    Args:
        fraction: Share of the validation images, above 0 and below 1.
        seed: Determines which images are taken.
    Raises:
        UsageError: The fraction is out of range.
        DatasetError: No image would be left for validation.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"--val-fraction is {fraction}, expected a number above 0 and below 1")
    ranked = _ranked_by_label(image_set, purpose="split", seed=seed)
    takes = _shares({label: len(indices) for label, indices in ranked.items()}, fraction)
    if not any(takes.values()):
        raise DatasetError(
            f"image set {image_set.name!r}: a fraction of {fraction} of {len(image_set.records)}"
            f" images in {len(ranked)} classes leaves none for validation",
            hint="use a larger fraction, or a separate validation set",
        )
    held_out = {at for label, indices in ranked.items() for at in indices[: takes[label]]}
    kept = [at for at in range(len(image_set.records)) if at not in held_out]
    train, val = _subset(image_set, kept), _subset(image_set, sorted(held_out))
    without = [repr(label) for label in ranked if not takes[label]]
    if without:
        note = (
            f"image set {image_set.name!r}: {len(without)} of {len(ranked)} classes have too few"
            f" images for a validation image: {', '.join(list_some(without))}"
        )
        train = replace(train, notes=(*train.notes, note))
    record = {
        "val_fraction": fraction,
        "seed": seed,
        "n_train": len(train.records),
        "n_val": len(val.records),
        "val_fingerprint": data_fingerprint(val),
    }
    return ValidationSplit(train, replace(val, name=f"{image_set.name}-val", notes=()), record)


def few_shot(image_set: ImageSet, k: int, seed: int) -> Subset:
    """Take K images of each class.

    Args:
        k: Images per class, at least 1.
        seed: Determines which images are taken.
    Raises:
        UsageError: K is below 1.
        DatasetError: Classes have fewer than K images; all of them are listed.
    """
    if k < 1:
        raise UsageError(f"the number of images per class is {k}; expected at least 1")
    ranked = _ranked_by_label(image_set, purpose="few-shot", seed=seed)
    short = [f"{label!r}: {len(indices)}" for label, indices in ranked.items() if len(indices) < k]
    if short:
        raise DatasetError(
            f"image set {image_set.name!r}: {len(short)} of {len(ranked)} classes have fewer than"
            f" {k} images",
            faults=short,
            hint="take fewer images per class, or leave these classes out of the set",
        )
    images = _subset(image_set, sorted(at for indices in ranked.values() for at in indices[:k]))
    record = {"shots": k, "seed": seed, "n_images": len(images.records)}
    return Subset(images, {**record, "fingerprint": data_fingerprint(images)})


def sample_images(image_set: ImageSet, n_images: int, seed: int) -> ImageSet:
    """Take a random sample of a set, whatever the labels; all images if there are fewer.

    Args:
        n_images: Number of images, at least 1.
        seed: Determines which images are taken.
    """
    rank = _random_rank(image_set, purpose="sample", seed=seed)
    ranked = sorted(range(len(image_set.records)), key=rank)
    return _subset(image_set, sorted(ranked[:n_images]))


def _random_rank(image_set: ImageSet, *, purpose: str, seed: int) -> Callable[[int], bytes]:
    """Return a sort key for the positions of images, by the seed and the path of each."""
    prefix = f"{purpose}/{seed}/".encode()

    def rank(index: int) -> bytes:
        path = image_set.records.path(index).encode("utf-8", "surrogateescape")
        return hashlib.sha256(prefix + path).digest()

    return rank


def _ranked_by_label(image_set: ImageSet, *, purpose: str, seed: int) -> dict[str, list[int]]:
    """Return the positions of each label's images in random order; labels sorted."""
    rank = _random_rank(image_set, purpose=purpose, seed=seed)
    by_label: dict[str, list[int]] = {label: [] for label in image_set.labels}
    records = image_set.records
    for index, label in enumerate(records.label_indices):
        by_label[records.labels[label]].append(index)
    return {label: sorted(indices, key=rank) for label, indices in by_label.items()}


def _shares(counts: Mapping[str, int], fraction: float) -> dict[str, int]:
    """Apportion a fraction of all by largest remainders, leaving at least one of each count."""
    quotas = {label: count * fraction for label, count in counts.items()}
    takes = {label: int(quota) for label, quota in quotas.items()}
    missing = round(sum(counts.values()) * fraction) - sum(takes.values())
    by_remainder = sorted(counts, key=lambda label: (takes[label] - quotas[label], label))
    open_to_more = [label for label in by_remainder if takes[label] + 1 < counts[label]]
    for label in open_to_more[: max(missing, 0)]:
        takes[label] += 1
    return takes


def _subset(image_set: ImageSet, indices: Sequence[int]) -> ImageSet:
    return replace(image_set, records=image_set.records.take(indices), neighbourhoods={})

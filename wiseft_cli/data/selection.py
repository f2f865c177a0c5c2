"""Seeded parts of an image set, class by class: a validation split, or a few images a class.

Which images are taken depends on the seed and on each image's path alone: not on the order of
the listing, and not on the other images. A larger K keeps what a smaller one took.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wiseft_cli.data.fingerprint import data_fingerprint
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import DatasetError, UsageError, list_some


@dataclass(frozen=True)
class Split:
    """An image set in two parts.

    Attributes:
        train: The larger part; its notes tell of classes without a validation image.
        val: The other, named after the set with `-val`.
        record: What names the split in a history.
    """

    train: ImageSet
    val: ImageSet
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """Some images of a set.

    Attributes:
        images: They, under the set's name.
        record: What names the selection in a history.
    """

    images: ImageSet
    record: Mapping[str, Any]


def stratified_split(image_set: ImageSet, fraction: float, seed: int) -> Split:
    """Set aside a fraction of each class's images for validation.

    The fraction is kept over the whole set to the nearest image, and in each class to within
    one; what rounding leaves goes to the classes that it cut most. No class gives its last
    image: one with a single image has none to validate.

    Args:
        fraction: Share of the images that validate, above 0 and below 1.
        seed: Another seed takes other images.
    Raises:
        UsageError: The fraction is out of range.
        DatasetError: No image would be left to validate with.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the validation fraction is {fraction}; expected above 0 and below 1")
    ranked = _ranked_by_label(image_set, purpose="split", seed=seed)
    takes = _shares({label: len(indices) for label, indices in ranked.items()}, fraction)
    if not any(takes.values()):
        raise DatasetError(
            f"image set {image_set.name!r}: a fraction of {fraction} of {len(image_set.records)}"
            f" images in {len(ranked)} classes leaves none to validate with",
            hint="use a larger fraction, or a validation set of its own",
        )
    held_out = {at for label, indices in ranked.items() for at in indices[: takes[label]]}
    kept = [at for at in range(len(image_set.records)) if at not in held_out]
    train, val = _part(image_set, kept), _part(image_set, sorted(held_out))
    without = [repr(label) for label in ranked if not takes[label]]
    if without:
        note = (
            f"image set {image_set.name!r}: {len(without)} of {len(ranked)} classes have too few"
            f" images for one to validate with: {', '.join(list_some(without))}"
        )
        train = replace(train, notes=(*train.notes, note))
    record = {
        "val_fraction": fraction,
        "seed": seed,
        "n_train": len(train.records),
        "n_val": len(val.records),
        "val_fingerprint": data_fingerprint(val),
    }
    return Split(train, replace(val, name=f"{image_set.name}-val", notes=()), record)


def few_shot(image_set: ImageSet, k: int, seed: int) -> Selection:
    """Take K images of each class.

    Args:
        k: Images a class, at least 1.
        seed: Another seed takes other images.
    Raises:
        UsageError: K is below 1.
        DatasetError: A class has fewer than K images; all such classes are listed.
    """
    if k < 1:
        raise UsageError(f"{k} images a class were asked for; expected at least 1")
    ranked = _ranked_by_label(image_set, purpose="few-shot", seed=seed)
    short = [
        f"  {label!r}: {len(indices)}" for label, indices in ranked.items() if len(indices) < k
    ]
    if short:
        raise DatasetError(
            "\n".join(
                [
                    f"image set {image_set.name!r}: {len(short)} of {len(ranked)} classes have"
                    f" fewer than {k} images:",
                    *list_some(short),
                ]
            ),
            hint="take fewer a class, or leave these classes out of the set",
        )
    images = _part(image_set, sorted(at for indices in ranked.values() for at in indices[:k]))
    record = {"shots": k, "seed": seed, "n_images": len(images.records)}
    return Selection(images, {**record, "fingerprint": data_fingerprint(images)})


def _ranked_by_label(image_set: ImageSet, *, purpose: str, seed: int) -> dict[str, list[int]]:
    """Return each label's positions in an order drawn by the seed; labels sorted."""
    prefix = f"{purpose}/{seed}/".encode()

    def rank(index: int) -> bytes:
        path = image_set.records[index].path.encode("utf-8", "surrogateescape")
        return hashlib.sha256(prefix + path).digest()

    by_label: dict[str, list[int]] = {label: [] for label in image_set.labels}
    for index, record in enumerate(image_set.records):
        by_label[record.label].append(index)
    return {label: sorted(indices, key=rank) for label, indices in by_label.items()}


def _shares(counts: Mapping[str, int], fraction: float) -> dict[str, int]:
    """Apportion `fraction` of all by largest remainders, leaving at least one of each count."""
    quotas = {label: count * fraction for label, count in counts.items()}
    takes = {label: int(quota) for label, quota in quotas.items()}
    missing = round(sum(counts.values()) * fraction) - sum(takes.values())
    by_remainder = sorted(counts, key=lambda label: (takes[label] - quotas[label], label))
    open_to_more = [label for label in by_remainder if takes[label] + 1 < counts[label]]
    for label in open_to_more[: max(missing, 0)]:
        takes[label] += 1
    return takes


def _part(image_set: ImageSet, indices: Sequence[int]) -> ImageSet:
    records = tuple(image_set.records[index] for index in indices)
    return replace(image_set, records=records, neighbourhoods={})

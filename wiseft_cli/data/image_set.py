"""Labelled image sets: how labels join a head's classes, and the data fingerprint.

`image_folder.py`, `manifest.py`, `shards.py` and the modules of `layouts/` list image sets. No
image is decoded here; `images.py` does that.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wiseft_cli.checkpoint.card import APPLY_ORIENTATION, EXIF_ORIENTATION
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.data.label_map import LabelMap
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class JoinOptions:
    """How the labels of a set join the classes of a head.

    Attributes:
        labels_are_indices: Labels are positions among the head's classes.
        all_classes: Score over every class of the head, not only the classes of the set.
        label_map: The classes that each label stands for.
        primary: Metric that reports show first.
        competing: All labels of a published set. They are scored even if the copy on disk has no
            image of them. Empty: only labels that occur are scored.
    """

    labels_are_indices: bool = False
    all_classes: bool = False
    label_map: LabelMap | None = None
    primary: str | None = None
    competing: tuple[str, ...] = ()


class ImageReader(Protocol):
    """Reads images that are neither files nor byte ranges of a shard."""

    def read(self, record: ImageRecord) -> Image.Image:
        """Return the image of a record.

        Raises:
            DatasetError: The image cannot be read.
        """


@dataclass(frozen=True)
class ImageSet:
    """A named list of labelled images below one folder.

    Attributes:
        name: Name of the set in reports.
        root: Folder that `ImageRecord.path` is relative to.
        records: The images, sorted by path (code point order).
        notes: Remarks about the listing, one sentence each.
        warnings: Probable mistakes, one sentence each.
        join_options: How labels join the classes of a head.
        reader: Reads the images; None if they are files or members of shards.
        crop_border: Pixels to cut from each side of an image before the transform.
        exif_orientation: `apply` or `ignore`, whatever a checkpoint states; None to follow it.
        neighbourhoods: For video frames, the path of each anchor frame and the paths of the
            frames around it, for the metrics pm0 and pm10.
    """

    name: str
    root: Path
    records: ImageRecords
    notes: tuple[str, ...] = ()
    join_options: JoinOptions = field(default_factory=JoinOptions)
    warnings: tuple[str, ...] = ()
    reader: ImageReader | None = None
    crop_border: int = 0
    exif_orientation: str | None = None
    neighbourhoods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Distinct labels of the images, sorted."""
        return tuple(sorted(self.records.labels))

    @property
    def accepted_labels(self) -> tuple[str, ...]:
        """Distinct labels, each `any_of` label replaced by the labels that it accepts, sorted."""
        label_map = self.join_options.label_map
        any_of = {} if label_map is None else label_map.any_of
        return tuple(sorted({name for at in self.labels for name in any_of.get(at, (at,))}))

    @property
    def groups(self) -> tuple[str, ...]:
        """Distinct groups of the images, sorted; empty for a set without groups."""
        return tuple(sorted(self.records.groups))

    def preprocess(self, of_checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's preprocessing as it applies to the images of this set."""
        if self.exif_orientation is None:
            return dict(of_checkpoint)
        return {**of_checkpoint, EXIF_ORIENTATION: self.exif_orientation}

    def misses_orientation(self, of_checkpoint: Mapping[str, Any]) -> bool:
        """Return whether EXIF orientations are ignored without an explicit choice for this set."""
        applies = of_checkpoint.get(EXIF_ORIENTATION) == APPLY_ORIENTATION
        return self.exif_orientation is None and not applies

    def name_of(self, index: int) -> str:
        """Return the name of an image in messages: its path, including its shard if it has one."""
        return str(self.root / self.records.path(index))

    def source(self, index: int) -> Path | io.BytesIO | Image.Image:
        """Return the input of `load_image`: a file, the bytes of a shard member, or an image.

        Raises:
            DatasetError: The shard or array cannot be read.
        """
        record = self.records[index]
        if self.reader is not None:
            return self.reader.read(record)
        if record.container is None or record.offset is None:
            return self.root / record.path
        try:
            with open(self.root / record.container, "rb") as shard:
                shard.seek(record.offset)
                data = shard.read(record.size_bytes)
        except OSError as error:
            raise DatasetError(
                f"cannot read image {self.name_of(index)}: {error.strerror}"
            ) from None
        if len(data) < record.size_bytes:
            raise DatasetError(
                f"cannot read image {self.name_of(index)}: the shard ends inside the image; it has"
                " changed since it was listed"
            )
        return io.BytesIO(data)


def data_fingerprint(image_set: ImageSet) -> str:
    """Return the SHA-256 fingerprint of a set's paths, sizes, labels and groups.

    The hash covers one line per image, sorted by path: the canonical JSON list
    `[path, size in bytes, label]`, with the group as a fourth item if there is one, and a newline.
    Lines for a cropped border and for neighbourhoods of video frames come first. Name, root,
    pixels and modification times are not covered, so that a copy of a folder has the same
    fingerprint.

    Returns:
        `sha256:` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for line in _fingerprint_lines(image_set):
        digest.update(canonical_json(line).encode("ascii") + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _fingerprint_lines(image_set: ImageSet) -> Iterator[list[Any]]:
    if image_set.crop_border:
        yield ["crop_border", image_set.crop_border]
    for anchor, neighbours in sorted(image_set.neighbourhoods.items()):
        yield ["neighbourhood", anchor, sorted(neighbours)]
    for record in image_set.records.sorted_by_path():
        group = [] if record.group is None else [record.group]
        yield [record.path, record.size_bytes, record.label, *group]

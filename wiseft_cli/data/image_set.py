"""A labelled image set: which images there are, what they are labelled, and where their bytes lie.

It lists nothing itself: `image_folder.py` does so for folders, `manifest.py` for tables and
`shards.py` for tar files. It does not decode.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wiseft_cli.data.label_map import LabelMap
from wiseft_cli.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image.

    Attributes:
        path: Its path below the root with `/` between parts; within a shard, the shard's path
            and the member's name.
        label: What the set calls its class.
        size_bytes: Size of the encoded image.
        group: The group that `worst_group` accuracy counts it in, where the set has groups.
        container: Path of the shard below the root; None for a file of its own.
        offset: Where in the shard its bytes begin; its row where the set has a reader.
    """

    path: str
    label: str
    size_bytes: int
    group: str | None = None
    container: str | None = None
    offset: int | None = None


@dataclass(frozen=True)
class JoinOptions:
    """How the labels of a set find the classes of a head, where the set itself says so.

    Attributes:
        labels_are_indices: Labels are positions among the head's classes.
        all_classes: Score over every class of the head, also those the set has no image of.
        label_map: What the labels stand for.
        primary: The metric that reports show first.
        competing: The labels of a published set, which compete whether a copy has images of
            them or not; empty where only those that occur do.
    """

    labels_are_indices: bool = False
    all_classes: bool = False
    label_map: LabelMap | None = None
    primary: str | None = None
    competing: tuple[str, ...] = ()


class ImageReader(Protocol):
    """Gives the images of a set that are no files of their own, and no stretches of one."""

    def read(self, record: ImageRecord) -> Image.Image:
        """Return the picture of a record.

        Raises:
            DatasetError: It cannot be read.
        """


@dataclass(frozen=True)
class ImageSet:
    """A named list of labelled images below one folder.

    Attributes:
        name: The name that reports use.
        root: The folder that `ImageRecord.path` starts from.
        records: The images, sorted by path (code point order).
        notes: What a person should know about the listing, one sentence each.
        warnings: What is seldom meant, one sentence each.
        join_options: How its labels find classes, where it says so.
        reader: What gives its images, where they are not bytes of files.
        crop_border: Pixels cut from each side of an image before anything else.
        neighbourhoods: Of a set of video frames, the path of each anchor frame and those of the
            frames around it, for the metrics pm0 and pm10.
    """

    name: str
    root: Path
    records: tuple[ImageRecord, ...]
    notes: tuple[str, ...] = ()
    join_options: JoinOptions = field(default_factory=JoinOptions)
    warnings: tuple[str, ...] = ()
    reader: ImageReader | None = None
    crop_border: int = 0
    neighbourhoods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that occur, sorted, each once."""
        return tuple(sorted({record.label for record in self.records}))

    @property
    def answers(self) -> tuple[str, ...]:
        """The labels with those of several answers taken apart, sorted, each once."""
        label_map = self.join_options.label_map
        any_of = {} if label_map is None else label_map.any_of
        return tuple(sorted({name for at in self.labels for name in any_of.get(at, (at,))}))

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that occur, sorted, each once; empty for a set without groups."""
        return tuple(sorted({record.group for record in self.records if record.group is not None}))

    def name_of(self, index: int) -> str:
        """Return what messages call an image: its path, through the shard where it lies in one."""
        return str(self.root / self.records[index].path)

    def source(self, index: int) -> Path | io.BytesIO | Image.Image:
        """Return what `load_image` takes: the image's file, its bytes out of a shard, or a picture.

        Raises:
            DatasetError: The image cannot be read, or its shard ends before the image does.
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
                f"cannot read image {self.name_of(index)}: the shard ends within it; it has"
                " changed since it was listed"
            )
        return io.BytesIO(data)


def images_per_label(image_set: ImageSet) -> Mapping[str, int]:
    """Return the number of images of each label, labels sorted."""
    counts = dict.fromkeys(image_set.labels, 0)
    for record in image_set.records:
        counts[record.label] += 1
    return counts

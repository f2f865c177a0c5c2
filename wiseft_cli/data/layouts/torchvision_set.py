"""Published sets that torchvision reads, in their card's labels.

Where torchvision gives paths the images are files, decoded as all others; where it holds pictures
it is their reader. How it is called stands in `from_torchvision/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.files import file_sizes, is_regular_file
from wiseft_cli.data.from_torchvision.reader import read_torchvision
from wiseft_cli.data.from_torchvision.sets import find_torchvision_set
from wiseft_cli.data.image_set import ImageRecord, ImageSet, JoinOptions
from wiseft_cli.data.layouts.places import find_folder, require_files
from wiseft_cli.errors import DatasetError, list_some
from wiseft_cli.prompts.documents import read_text

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class DatasetReader:
    """Gives the pictures that a dataset of torchvision's holds; `offset` is their row.

    Attributes:
        dataset: It.
        reopen: Makes it anew where this reader is sent; None where it can be sent itself.
    """

    dataset: Any
    reopen: Callable[[], Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the dataset, or how to make it."""
        if self.reopen is None:
            return DatasetReader, (self.dataset,)
        return _reopened, (self.reopen,)

    def read(self, record: ImageRecord) -> Image.Image:
        """Return the picture of a record.

        Raises:
            DatasetError: torchvision cannot read it.
        """
        try:
            image: Image.Image = self.dataset[record.offset][0]
        except Exception as error:  # whatever torchvision raises, the picture cannot be had
            raise DatasetError(f"cannot read image {record.path}: {error}") from None
        return image


def _reopened(reopen: Callable[[], Any]) -> DatasetReader:
    return DatasetReader(reopen(), reopen)


def list_torchvision_set(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List a set that torchvision reads, labelled as the card labels it.

    Raises:
        DatasetError: Nothing there, files that torchvision refuses, or classes that are none of
            the card's.
        MissingDependencyError: torchvision is not installed.
    """
    class_name = part.options.get("class", "")
    facts = find_torchvision_set(class_name)
    reading = facts.splits.get(part.split)
    if reading is None:
        raise DatasetError(
            f"the card {card.name!r} has a split {part.split!r}, torchvision's {class_name} has"
            f" {', '.join(filter(None, facts.splits)) or 'none'}"
        )
    folder = find_folder(card, part, root, name=name)
    require_files(card, part, folder, reading.needs, name=name)
    copy = read_torchvision(class_name, facts, reading, folder, source=card.source)
    labels = _labels(card, copy.classes, copy.names, folder, name=name)
    reader = DatasetReader(copy.dataset, copy.reopen) if copy.paths is None else None
    if copy.paths is None:
        records = _pictures(copy.dataset, labels, split=part.split, container=reading.needs[0])
    else:
        label_of = dict(zip(copy.paths, labels, strict=True))
        if reading.listing is not None:
            whole = [split for split, of in facts.splits.items() if of.listing is None]
            label_of = _listed(label_of, card, folder, reading.listing, whole=whole, name=name)
        records = _files(folder, label_of, name=name)
    if not records:
        raise DatasetError(f"image set {name!r}: torchvision finds no image in {folder}")
    records.sort(key=lambda record: record.path)
    # Where the card has no classes, those that torchvision names compete.
    own = JoinOptions(competing=tuple(copy.names or ()))
    return ImageSet(name, folder, tuple(records), join_options=own, reader=reader)


def _labels(
    card: DatasetCard,
    classes: Sequence[str],
    names: Sequence[str] | None,
    folder: Path,
    *,
    name: str,
) -> list[str]:
    """Return the card's label of each image, by its class's text and never by its number.

    Numbers serve where this torchvision has no texts and the set's own numbers are the card's
    order (Flowers-102 before it had any), and where the card has no classes.
    """
    if not card.labels:
        return list(classes)
    if names is None:
        of_class = {str(number): label for number, label in enumerate(card.labels)}
    else:
        of_class = {label: label for label in card.labels}
    unknown = sorted(set(classes) - set(of_class))
    if unknown:
        lines = "".join(f"\n  {text}" for text in list_some(unknown))
        raise DatasetError(
            f"image set {name!r}: {folder} has {len(unknown)} classes that are none of"
            f" {card.title}; expected such as {card.labels[0]!r}:{lines}",
            hint=f"is it laid out as {card.source} has it?",
        )
    return [of_class[text] for text in classes]


def _listed(
    label_of: Mapping[str, str],
    card: DatasetCard,
    folder: Path,
    listing: str,
    *,
    whole: Sequence[str],
    name: str,
) -> dict[str, str]:
    """Return the images that a listing names: beside the set's folder, in it, or `Partitions/`.

    Args:
        whole: The set's splits that need none, for the message.
    """
    places = [at / below for at in (folder, folder.parent) for below in ("", "Partitions")]
    file = next((place / listing for place in places if is_regular_file(place / listing)), None)
    if file is None:
        raise DatasetError(
            f"image set {name!r}: {listing}, which names the images of this split, is not in"
            f" {folder}, nor beside it, nor in Partitions/",
            hint=f"its archive of partitions is at {card.source}; a split that does without is"
            f" {', '.join(whole) or 'none'}",
        )
    named = [line.strip().removeprefix("/") for line in read_text(file, DatasetError).splitlines()]
    unknown = [f"  {path}" for path in named if path and path not in label_of]
    if unknown:
        lines = "\n".join(list_some(unknown))
        raise DatasetError(
            f"image set {name!r}: {len(unknown):,} of {len(named):,} images that {file} names are"
            f" not in {folder}:\n{lines}"
        )
    return {path: label_of[path] for path in named if path}


def _files(folder: Path, label_of: Mapping[str, str], *, name: str) -> list[ImageRecord]:
    sizes, missing = file_sizes(folder, label_of)
    if missing:
        lines = "\n".join(list_some([f"  {path}: {why}" for path, why in missing.items()]))
        raise DatasetError(
            f"image set {name!r}: {len(missing):,} of {len(label_of):,} images that its lists name"
            f" are not in {folder}:\n{lines}",
            hint="unpack the images beside the lists",
        )
    return [ImageRecord(path, label, sizes[path]) for path, label in label_of.items()]


def _pictures(
    dataset: Any, labels: Sequence[str], *, split: str, container: str
) -> list[ImageRecord]:
    """Return a record a row; all pictures of such a set have the size of the first."""
    if not labels:
        return []
    size_bytes = len(dataset[0][0].tobytes())
    width = len(str(len(labels) - 1))
    return [
        ImageRecord(
            f"{split or 'all'}/{row:0{width}}", label, size_bytes, container=container, offset=row
        )
        for row, label in enumerate(labels)
    ]

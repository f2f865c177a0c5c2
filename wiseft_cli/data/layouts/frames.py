"""Makes an image set of video frames: anchors, the frames around each, and what is right for each.

Reading a publisher's files is `vid_robust.py`'s and `ytbb_robust.py`'s.
Source: Shankar et al. 2021, Do Image Classifiers Generalize Across Time?, arXiv 1906.02168.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard
from wiseft_cli.data.files import file_sizes
from wiseft_cli.data.image_set import ImageRecord, ImageSet, JoinOptions
from wiseft_cli.errors import DatasetError, list_some

ANY_OF = " or "
"""Stands between the classes that are right for a frame, in its label."""


@dataclass(frozen=True)
class Frames:
    """What a publisher's files say.

    Attributes:
        neighbourhoods: Anchor to the frames around it, by paths below the set's folder.
        right: Every frame to the classes that are right for it, at least one.
    """

    neighbourhoods: Mapping[str, tuple[str, ...]]
    right: Mapping[str, Sequence[str]]


def frame_set(card: DatasetCard, base: Path, frames: Frames, *, name: str) -> ImageSet:
    """Return the set of the frames, each labelled with the classes that are right for it.

    Args:
        base: Where the paths of the frames start.
    Raises:
        DatasetError: There is no anchor, or a frame is not on disk; all of them are listed.
    """
    if card.label_map is None:
        raise DatasetError(f"the layout {card.layout} needs a label map, {card.name} names none")
    if not frames.neighbourhoods:
        raise DatasetError(f"image set {name!r}: the files of {base} name no anchor frame")
    order = {class_id: at for at, class_id in enumerate(card.class_ids)}
    classes = {
        path: tuple(sorted(set(right), key=order.__getitem__))
        for path, right in frames.right.items()
    }
    sizes = _sizes(base, classes, name)
    records = tuple(
        ImageRecord(path, ANY_OF.join(classes[path]), sizes[path]) for path in sorted(classes)
    )
    any_of = {ANY_OF.join(right): right for right in classes.values() if len(right) > 1}
    return ImageSet(
        name,
        base,
        records,
        join_options=JoinOptions(label_map=replace(card.label_map, any_of=any_of)),
        neighbourhoods=frames.neighbourhoods,
    )


def _sizes(base: Path, paths: Iterable[str], name: str) -> dict[str, int]:
    sizes, missing = file_sizes(base, sorted(paths))
    if missing:
        n_frames = len(missing) + len(sizes)
        title = (
            f"image set {name!r}: {len(missing)} of {n_frames} frames that its files name are not"
            f" in {base}:"
        )
        lines = [f"  {path!r}: {reason}" for path, reason in missing.items()]
        raise DatasetError(
            "\n".join([title, *list_some(lines)]),
            hint="unpack imagenet_vid_ytbb_robust.tar.gz whole, and name the folder it is in",
        )
    return sizes


def is_plain_path(path: str) -> bool:
    """Return whether a path stays below the folder that it starts from."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\0" not in path

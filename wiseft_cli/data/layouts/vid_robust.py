"""ImageNet-Vid-Robust: frames of videos, each with a set of right classes of its own.

    val/ILSVRC2015_val_00000000/000442.JPEG   a frame
    metadata/pmsets.json                      {anchor: [the up to 20 frames around it]}
    metadata/labels.json                      {frame: [positions of its classes]}

Source: imagenet_vid_ytbb_robust.tar.gz of its authors; arXiv 1906.02168.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.faults import refuse
from wiseft_cli.data.layouts.frames import Frames, frame_set, is_plain_path
from wiseft_cli.data.layouts.json_tables import positions_of, read_object, texts_of
from wiseft_cli.data.layouts.places import find_folder, require_files

_FILES = ("metadata/pmsets.json", "metadata/labels.json")


def list_vid_robust(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List the anchor frames and those around them.

    Raises:
        DatasetError: A file or frame is missing, or a file is not of the form above; the keys are
            named.
    """
    base = find_folder(card, part, root, name=name)
    require_files(card, part, base, _FILES, name=name)
    pmsets, labels = (base / file for file in _FILES)
    neighbourhoods = _read_neighbourhoods(pmsets)
    paths = {*neighbourhoods, *(path for around in neighbourhoods.values() for path in around)}
    right = _read_labels(labels, sorted(paths), card.class_ids)
    return frame_set(card, base, Frames(neighbourhoods, right), name=name)


def _read_neighbourhoods(path: Path) -> dict[str, tuple[str, ...]]:
    faults: list[str] = []
    neighbourhoods = {}
    for anchor, value in read_object(path).items():
        around = texts_of(value, where=repr(anchor), faults=faults)
        faults += [
            f"  {anchor!r}: {frame!r} is no path below the set's folder"
            for frame in (anchor, *around)
            if not is_plain_path(frame)
        ]
        if anchor in around:
            faults.append(f"  {anchor!r}: stands among the frames around it")
        neighbourhoods[anchor] = around
    refuse(path, faults)
    return neighbourhoods


def _read_labels(
    path: Path, frames: Sequence[str], class_ids: Sequence[str]
) -> Mapping[str, Sequence[str]]:
    labels = read_object(path)
    faults: list[str] = []
    right = {}
    for frame in frames:
        if frame not in labels:
            faults.append(f"  {frame!r}: is not there, and pmsets.json names it")
            continue
        right[frame] = positions_of(labels[frame], class_ids, where=repr(frame), faults=faults)
        if labels[frame] == []:
            faults.append(f"  {frame!r}: has no class")
    refuse(path, faults)
    return right

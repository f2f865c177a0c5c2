"""ImageNet-Vid-Robust and YTBB-Robust: anchor frames of videos and the frames around each.

ImageNet-Vid-Robust, from imagenet_vid_ytbb_robust.tar.gz:

    val/ILSVRC2015_val_00000000/000442.JPEG   a frame
    metadata/pmsets.json                      {anchor: [the up to 20 frames around it]}
    metadata/labels.json                      {frame: [positions of its classes]}

YTBB-Robust, whose frames are in the same archive:

    ytbb_videos/KxDh7a8_AmU_44666/frame-1117.jpg   a frame: video, anchor's milliseconds, number
    anchor_labels.json                             people's marks and classes for each anchor
    pmk_labels.json                                people's marks for pairs "anchor,frame"
    ytbb_robustness_test_anchors_full.csv          one class of each anchor: ytid,time_ms,label

Sources: Shankar et al. 2021, Do Image Classifiers Generalize Across Time?, arXiv 1906.02168; for
the use of YTBB-Robust's marks, the code in wise-ft and imagenet-testbed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from wiseft_cli.data.files import file_sizes, is_regular_file
from wiseft_cli.data.image_set import ImageSet, JoinOptions
from wiseft_cli.data.layouts.local_copy import LocalCopy
from wiseft_cli.data.layouts.tables import items_at, read_columns, read_object, reject_faults
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.errors import DatasetError

YTBB_FILES = ("anchor_labels.json", "pmk_labels.json", "ytbb_robustness_test_anchors_full.csv")
_YTBB_FOLDERS = ("", "metadata", "ytbb-robust_metadata", "../ytbb-robust_metadata")
_YTBB_NONE = "none"
"""YouTube-BoundingBoxes' 24th class, which is never an answer."""
_MAX_DISTANCE = 10
"""Frames this far before or after an anchor count."""
_UNLIKE_MARKS = frozenset(
    {"dissimilar", "problematic", "incorrect", "dont know", "deformation", "background-change"}
    | {"occlusion-increased", "blur-increase", "bad-anchor"}
)
_YTBB_KEY = re.compile(r"(?:.*/)?(?P<video>[^/,]+_\d+)/frame-(?P<number>\d{1,9})\.jpg", re.ASCII)


def list_vid_robust(copy: LocalCopy) -> ImageSet:
    """List the frames of ImageNet-Vid-Robust, each with its own classes.

    Raises:
        DatasetError: A file or frame is missing, or a file is not in its published form.
    """
    folder = copy.find_folder()
    files = ("metadata/pmsets.json", "metadata/labels.json")
    copy.require_files(folder, files)
    pmsets, labels = (folder / file for file in files)
    neighbourhoods = _read_neighbourhoods(pmsets)
    frames = {*neighbourhoods, *(path for around in neighbourhoods.values() for path in around)}
    classes = _read_frame_classes(labels, sorted(frames), copy.card.class_ids)
    return _frame_set(copy, folder, neighbourhoods, classes)


def _read_neighbourhoods(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the frames around each anchor."""
    pmsets = read_object(path)
    faults = [
        f"{anchor!r}: {around!r:.80} is not a list of paths below the set's folder"
        for anchor, around in pmsets.items()
        if not isinstance(around, list) or not all(map(_is_path_below, (anchor, *around)))
    ]
    reject_faults(path, faults)
    return {anchor: tuple(around) for anchor, around in pmsets.items()}


def _is_path_below(path: Any) -> bool:
    return isinstance(path, str) and not {"", ".", ".."} & {*path.split("/")} and "\0" not in path


def _read_frame_classes(
    path: Path, frames: Sequence[str], class_ids: Sequence[str]
) -> dict[str, list[str]]:
    labels = read_object(path)
    classes = {frame: items_at(labels.get(frame), class_ids) for frame in frames}
    faults = [
        f"{frame!r}: {labels.get(frame)!r:.80}, expected class positions from 0 to"
        f" {len(class_ids) - 1}"
        for frame in frames
        if not classes[frame]
    ]
    reject_faults(path, faults)
    return {frame: of_frame for frame, of_frame in classes.items() if of_frame}


def _frame_set(
    copy: LocalCopy,
    folder: Path,
    neighbourhoods: Mapping[str, tuple[str, ...]],
    classes: Mapping[str, Iterable[str]],
) -> ImageSet:
    """Return the set of the frames; the label of a frame with several classes names them all.

    Args:
        folder: Where the paths of the frames start.
        neighbourhoods: The frames around each anchor.
        classes: The classes that are right for each frame, at least one.
    Raises:
        DatasetError: There are no anchors, or frames are missing; all of them are listed.
    """
    if copy.card.label_map is None:
        raise copy.error(f"the layout {copy.card.layout} needs a label map, and the card has none")
    if not neighbourhoods:
        raise copy.error(f"the files in {folder} list no anchor frame")
    sizes, missing = file_sizes(folder, sorted(classes))
    if missing:
        raise copy.error(
            f"{len(missing)} of {len(classes)} frames are missing in {folder}",
            faults=[f"{path!r}: {reason}" for path, reason in missing.items()],
            hint="unpack all of imagenet_vid_ytbb_robust.tar.gz, and name the folder it is in",
        )
    order = {class_id: at for at, class_id in enumerate(copy.card.class_ids)}
    right = {path: tuple(sorted({*classes[path]}, key=order.__getitem__)) for path in sizes}
    labels = {path: " or ".join(right[path]) for path in sizes}
    any_of = {labels[path]: right[path] for path in sizes if len(right[path]) > 1}
    return ImageSet(
        copy.name,
        folder,
        ImageRecords(ImageRecord(path, labels[path], sizes[path]) for path in sizes),
        join_options=JoinOptions(label_map=replace(copy.card.label_map, any_of=any_of)),
        neighbourhoods=neighbourhoods,
    )


class _Frame(NamedTuple):
    """A frame of YTBB-Robust, in the folder of its anchor."""

    folder: str
    number: int

    @property
    def path(self) -> str:
        return f"ytbb_videos/{self.folder}/frame-{self.number}.jpg"


def list_ytbb_robust(copy: LocalCopy) -> ImageSet:
    """List the frames of YTBB-Robust that count by people's marks.

    An anchor counts if it is marked good, neither bad nor unsure, and no pair of it is marked
    bad-anchor. A frame around it counts if the pair is marked similar and nothing in
    `_UNLIKE_MARKS`. The classes of an anchor are right for all frames around it.

    Raises:
        DatasetError: A file or frame is missing, or a file is not in its published form.
    """
    folder = copy.find_folder()
    anchors_file, pairs_file, classes_file = _find_ytbb_files(copy, folder)
    marks = _read_anchor_marks(anchors_file)
    around, bad = _read_pairs(pairs_file)
    good = {
        anchor: of_anchor
        for anchor, of_anchor in marks.items()
        if "good" in of_anchor and not of_anchor & {"bad", "unsure"} and anchor not in bad
    }
    first = _read_first_classes(classes_file, (*copy.card.class_ids, _YTBB_NONE))
    right = {
        anchor: {*copy.card.class_ids} & {*of_anchor, first.get(anchor.folder, _YTBB_NONE)}
        for anchor, of_anchor in good.items()
    }
    faults = [
        f"{anchor.path!r}: has no {'class' if anchor.folder in first else 'row in the CSV file'}"
        for anchor in good
        if anchor.folder not in first or not right[anchor]
    ]
    reject_faults(anchors_file, faults)
    return _frame_set(copy, folder, *_with_frames_around(anchors_file, right, around))


def _with_frames_around(
    anchors_file: Path,
    right: Mapping[_Frame, AbstractSet[str]],
    around: Mapping[_Frame, AbstractSet[_Frame]],
) -> tuple[dict[str, tuple[str, ...]], dict[str, AbstractSet[str]]]:
    """Return the frames around each anchor, and the classes that are right for each frame.

    Raises:
        DatasetError: A frame is around two anchors of different classes.
    """
    faults = []
    neighbourhoods: dict[str, tuple[str, ...]] = {}
    classes: dict[str, AbstractSet[str]] = {}
    for anchor in sorted(right):
        paths = tuple(
            frame.path
            for frame in sorted(around.get(anchor, ()))
            if frame.folder == anchor.folder
            and 0 < abs(frame.number - anchor.number) <= _MAX_DISTANCE
        )
        neighbourhoods[anchor.path] = paths
        for path in (anchor.path, *paths):
            if classes.setdefault(path, right[anchor]) != right[anchor]:
                faults.append(f"{anchor.path!r}: {path!r} is around an anchor of other classes too")
    reject_faults(anchors_file, faults)
    return neighbourhoods, classes


def _find_ytbb_files(copy: LocalCopy, folder: Path) -> list[Path]:
    found = []
    for file in YTBB_FILES:
        places = [folder / below / file for below in _YTBB_FOLDERS]
        found += [next((place for place in places if is_regular_file(place)), None)]
    missing = [file for file, path in zip(YTBB_FILES, found, strict=True) if path is None]
    if missing:
        raise copy.error(
            f"{', '.join(missing)} not found in {folder}, its metadata or ytbb-robust_metadata, or"
            " ytbb-robust_metadata beside it",
            hint="they are not in the archive of the frames, but in src/datasets/"
            "ytbb-robust_metadata of https://github.com/mlfoundations/wise-ft",
        )
    return [path for path in found if path is not None]


def _read_marks(path: Path, needed: AbstractSet[str]) -> dict[str, frozenset[str]]:
    """Return the marks that people gave to each key; a later entry of a key replaces others.

    The form is {"annotations": [{"key": ..., "labels": [positions below]}], "labels": [marks]}.

    Args:
        needed: Marks that the list of marks must have.
    """
    root = read_object(path)
    names, entries = root.get("labels"), root.get("annotations")
    if (
        not isinstance(names, list)
        or not isinstance(entries, list)
        or not all(isinstance(name, str) for name in names)
    ):
        raise DatasetError(
            f"{path}: expected a list of texts under 'labels' and a list under 'annotations'"
        )
    lacking = sorted(needed - {*names})
    if lacking:
        raise DatasetError(f"{path}: 'labels' lacks {', '.join(map(repr, lacking))}")
    marks = {}
    faults = []
    for number, entry in enumerate(entries, start=1):
        key = entry.get("key") if isinstance(entry, dict) else None
        given = items_at(entry.get("labels"), names) if isinstance(key, str) else None
        if isinstance(key, str) and given is not None:
            marks[key] = frozenset(given)
        else:
            faults.append(
                f"'annotations', entry {number}: {entry!r:.80}, expected a key and positions from"
                f" 0 to {len(names) - 1}"
            )
    reject_faults(path, faults)
    return marks


def _frames_of(key: str) -> list[_Frame]:
    """Return the frames in a key, separated by commas; none if a part of it is not a frame."""
    matches = [_YTBB_KEY.fullmatch(part) for part in key.split(",")]
    frames = [_Frame(match["video"], int(match["number"])) for match in matches if match]
    return frames if len(frames) == len(matches) else []


def _read_anchor_marks(path: Path) -> dict[_Frame, frozenset[str]]:
    marks = _read_marks(path, {"good", "bad", "unsure"})
    frames = {key: _frames_of(key) for key in marks}
    faults = [
        f"{key!r}: expected VIDEO_MILLISECONDS/frame-NUMBER.jpg"
        for key, of_key in frames.items()
        if len(of_key) != 1
    ]
    reject_faults(path, faults)
    return {frames[key][0]: marks[key] for key in marks}


def _read_pairs(path: Path) -> tuple[dict[_Frame, set[_Frame]], set[_Frame]]:
    """Return the frames similar to each anchor, and the anchors marked bad in a pair."""
    faults = []
    around: dict[_Frame, set[_Frame]] = {}
    bad = set()
    for key, marks in _read_marks(path, {"similar", *_UNLIKE_MARKS}).items():
        frames = _frames_of(key)
        if len(frames) != 2:
            faults.append(f"{key!r}: expected two frames, VIDEO_MILLISECONDS/frame-NUMBER.jpg")
            continue
        anchor, frame = frames
        if "bad-anchor" in marks:
            bad.add(anchor)
        if "similar" in marks and not marks & _UNLIKE_MARKS:
            around.setdefault(anchor, set()).add(frame)
    reject_faults(path, faults)
    return around, bad


def _read_first_classes(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Return the class of each anchor's folder; a later row of a folder replaces others.

    Args:
        classes: By the numbers in the column label.
    """
    faults: list[str] = []
    found = {}
    by_number = {str(number): name for number, name in enumerate(classes)}
    for line, (video, time_ms, label) in read_columns(path, ("ytid", "time_ms", "label"), faults):
        if label in by_number:
            found[f"{video}_{time_ms}"] = by_number[label]
        else:
            faults.append(f"line {line}: label is {label!r:.20}, expected 0 to {len(classes) - 1}")
    reject_faults(path, faults, unit="row")
    return found

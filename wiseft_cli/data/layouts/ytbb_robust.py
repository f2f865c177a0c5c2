"""YTBB-Robust: frames of videos, where what is right for an anchor is right around it.

    ytbb_videos/KxDh7a8_AmU_44666/frame-1117.jpg   a frame: video, anchor's milliseconds, number
    anchor_labels.json                             people's marks and classes for each anchor
    pmk_labels.json                                people's marks for pairs "anchor,frame"
    ytbb_robustness_test_anchors_full.csv          one class of each anchor: ytid,time_ms,label

An anchor counts if it is marked good, neither bad nor unsure, and no pair of it is marked
bad-anchor. A frame up to ten before or after counts if its pair is marked similar and nothing
else that `_UNLIKE` has.
Source: the set's code and files in wise-ft and imagenet-testbed; arXiv 1906.02168.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.files import is_regular_file
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.faults import refuse
from wiseft_cli.data.layouts.frames import Frames, frame_set
from wiseft_cli.data.layouts.places import find_folder
from wiseft_cli.data.layouts.ytbb_files import read_first_classes, read_marks
from wiseft_cli.errors import DatasetError

FILES = ("anchor_labels.json", "pmk_labels.json", "ytbb_robustness_test_anchors_full.csv")
NONE = "none"
"""YouTube-BoundingBoxes' 24th class; it is never an answer."""
_FOLDER = "ytbb_videos"
_PLACES = ("", "metadata", "ytbb-robust_metadata", "../ytbb-robust_metadata")
_FARTHEST = 10
_UNLIKE = frozenset(
    {"dissimilar", "problematic", "incorrect", "dont know", "deformation", "background-change"}
    | {"occlusion-increased", "blur-increase", "bad-anchor"}
)
_KEY = re.compile(r"(?:.*/)?(?P<video>[^/,]+_\d+)/frame-(?P<number>\d{1,9})\.jpg", re.ASCII)


class Frame(NamedTuple):
    """A frame: the folder of its anchor, and its number in the video."""

    folder: str
    number: int

    @property
    def path(self) -> str:
        """Its path below the set's folder."""
        return f"{_FOLDER}/{self.folder}/frame-{self.number}.jpg"


def list_ytbb_robust(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List the anchor frames that people found good, and the frames like them around each.

    Raises:
        DatasetError: A file or frame is missing, or a file is not of the form above; the keys are
            named.
    """
    base = find_folder(card, part, root, name=name)
    anchors_file, pairs_file, classes_file = _find_files(base, name)
    marks = _read_anchors(anchors_file)
    around, bad = _read_pairs(pairs_file)
    good = {
        anchor: of_anchor
        for anchor, of_anchor in marks.items()
        if "good" in of_anchor and not of_anchor & {"bad", "unsure"} and anchor not in bad
    }
    first_classes = read_first_classes(classes_file, (*card.class_ids, NONE))
    refuse(
        classes_file,
        [
            f"  {anchor.folder!r}: has no row, and {anchors_file.name} has it"
            for anchor in good
            if anchor.folder not in first_classes
        ],
    )
    right = _right_classes(good, first_classes, card.class_ids)
    without = [anchor.path for anchor in right if not right[anchor]]
    refuse(anchors_file, [f"  {path!r}: has no class, here or in the CSV" for path in without])
    return frame_set(card, base, _frames(right, around, anchors_file), name=name)


def _frames(
    right: Mapping[Frame, Sequence[str]],
    around: Mapping[Frame, AbstractSet[Frame]],
    anchors_file: Path,
) -> Frames:
    """Return the neighbourhoods, with what is right for the anchor right in all of each.

    Raises:
        DatasetError: A frame is around two anchors that are not of the same classes.
    """
    faults = []
    neighbourhoods: dict[str, tuple[str, ...]] = {}
    right_by_path: dict[str, Sequence[str]] = {}
    for anchor in sorted(right):
        paths = tuple(
            frame.path
            for frame in sorted(around.get(anchor, ()))
            if frame.folder == anchor.folder and 0 < abs(frame.number - anchor.number) <= _FARTHEST
        )
        neighbourhoods[anchor.path] = paths
        for path in (anchor.path, *paths):
            if right_by_path.setdefault(path, right[anchor]) != right[anchor]:
                faults.append(
                    f"  {anchor.path!r}: {path!r} is around an anchor of other classes, too"
                )
    refuse(anchors_file, faults)
    return Frames(neighbourhoods, right_by_path)


def _find_files(base: Path, name: str) -> list[Path]:
    found = {
        file: next((at for place in _PLACES if is_regular_file(at := base / place / file)), None)
        for file in FILES
    }
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise DatasetError(
            f"image set {name!r}: {', '.join(missing)} not found in {base}, metadata or"
            " ytbb-robust_metadata there, or ytbb-robust_metadata beside it",
            hint="the archive of the frames does not have them; they are in src/datasets/"
            "ytbb-robust_metadata of https://github.com/mlfoundations/wise-ft",
        )
    return [path for path in found.values() if path is not None]


def _frame(key: str) -> Frame | None:
    match = _KEY.fullmatch(key)
    return Frame(match["video"], int(match["number"])) if match else None


def _read_anchors(path: Path) -> dict[Frame, frozenset[str]]:
    """Return the marks of each anchor; its key may be a longer path, of which the end counts."""
    faults: list[str] = []
    anchors = {}
    for key, marks in read_marks(path, {"good", "bad", "unsure"}).items():
        frame = _frame(key)
        if frame is None:
            faults.append(f"  {key!r}: expected VIDEO_MILLISECONDS/frame-NUMBER.jpg")
        else:
            anchors[frame] = marks
    refuse(path, faults)
    return anchors


def _read_pairs(path: Path) -> tuple[dict[Frame, set[Frame]], set[Frame]]:
    """Return the frames that are like each anchor, and the anchors found bad beside them."""
    faults: list[str] = []
    around: dict[Frame, set[Frame]] = {}
    bad = set()
    for key, marks in read_marks(path, {"similar", *_UNLIKE}).items():
        frames = [_frame(part) for part in key.split(",")]
        if len(frames) != 2 or frames[0] is None or frames[1] is None:
            faults.append(f"  {key!r}: expected two frames, VIDEO_MILLISECONDS/frame-NUMBER.jpg")
            continue
        if "bad-anchor" in marks:
            bad.add(frames[0])
        if "similar" in marks and not marks & _UNLIKE:
            around.setdefault(frames[0], set()).add(frames[1])
    refuse(path, faults)
    return around, bad


def _right_classes(
    good: Mapping[Frame, AbstractSet[str]],
    first_classes: Mapping[str, str],
    class_ids: Sequence[str],
) -> dict[Frame, list[str]]:
    """Return what is right for each anchor: the classes that people ticked, and its first one."""
    return {
        anchor: [at for at in class_ids if at in marks or at == first_classes[anchor.folder]]
        for anchor, marks in good.items()
    }

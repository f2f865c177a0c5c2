"""Write small copies of ImageNet-Vid-Robust and YTBB-Robust."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Draw = Callable[[Path, str], None]
"""Makes the picture of a frame that shows a class."""

VID_CLASSES = (
    *("n02691156", "n02419796", "n02131653", "n02834778", "n01503061", "n02924116", "n02958343"),
    *("n02402425", "n02084071", "n02121808", "n02503517", "n02118333", "n02510455", "n02342885"),
    *("n02374451", "n02129165", "n01674464", "n02484322", "n03790512", "n02324045", "n02509815"),
    *("n02411705", "n01726692", "n02355227", "n02129604", "n04468005", "n01662784", "n04530566"),
    *("n02062744", "n02391049"),
)
"""ImageNet-VID's ids in their order."""
YTBB_CLASSES = (
    *("person", "bird", "bicycle", "boat", "bus", "bear", "cow", "cat", "giraffe"),
    *("potted plant", "horse", "motorcycle", "knife", "airplane", "skateboard", "train", "truck"),
    *("zebra", "toilet", "dog", "elephant", "umbrella", "none", "car"),
)
"""YouTube-BoundingBoxes' classes in the order of ytbb_class_index.json."""
MARKS = (
    *("good", "unsure", "bad", "person", "bird", "bicycle", "boat", "bus", "bear", "cow", "cat"),
    *("giraffe", "potted plant", "horse", "motorcycle", "knife", "airplane", "skateboard"),
    *("train", "truck", "zebra", "toilet", "dog", "elephant", "umbrella", "none", "car"),
)
"""The list at the end of anchor_labels.json."""
PAIR_MARKS = (
    *("similar", "dissimilar", "problematic", "incorrect", "dont know", "deformation"),
    *("background-change", "occlusion-increased", "blur-increase", "bad-anchor", "correct"),
)


def vid_frame(video: int, number: int) -> str:
    return f"val/ILSVRC2015_val_{video:08d}/{number:06d}.JPEG"


def write_vid(
    base: Path,
    pmsets: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[int]],
    draw: Draw,
) -> Path:
    """Write the set's folder; each frame shows the class at its first position."""
    for frame, positions in labels.items():
        draw(base / frame, VID_CLASSES[positions[0]])
    for file, document in (("pmsets", pmsets), ("labels", labels)):
        (base / "metadata").mkdir(exist_ok=True)
        (base / f"metadata/{file}.json").write_text(json.dumps(document))
    return base


def ytbb_frame(video: str, number: int, *, ms: int = 44666) -> str:
    return f"{video}_{ms}/frame-{number}.jpg"


def write_ytbb(
    folder: Path,
    anchors: Mapping[str, Sequence[str]],
    pairs: Mapping[str, Sequence[str]],
    first: Mapping[str, str],
) -> Path:
    """Write the metadata files.

    Args:
        anchors: Key to the marks of an anchor.
        pairs: Key to the marks of a pair.
        first: Key of an anchor to its class in the CSV, where the last two classes are swapped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, names, entries in (
        ("anchor_labels.json", MARKS, anchors),
        ("pmk_labels.json", PAIR_MARKS, pairs),
    ):
        annotations = [
            {"key": key, "notes": "", "labels": [names.index(mark) for mark in marks]}
            for key, marks in entries.items()
        ]
        (folder / file).write_text(json.dumps({"annotations": annotations, "labels": names}))
    swapped = {"car": 22, "none": 23}
    rows = [
        f"{key.split('/')[0].replace('_44666', ',44666')},"
        f"{swapped.get(name, YTBB_CLASSES.index(name))}"
        for key, name in first.items()
    ]
    text = "\n".join(["ytid,time_ms,label", *rows, ""])
    (folder / "ytbb_robustness_test_anchors_full.csv").write_text(text)
    return folder

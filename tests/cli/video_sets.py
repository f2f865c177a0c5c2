"""Write small video sets, and compute pm0 and pm10 from their files in plain Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.data.video_copies import (
    VID_CLASSES,
    YTBB_CLASSES,
    vid_frame,
    write_vid,
    write_ytbb,
    ytbb_frame,
)
from tests.evaluation.patterns import draw
from wiseft_cli.data.dataset_card import read_dataset_card

VID_MAP = read_dataset_card("imagenet-vid-robust").label_map
YTBB_MAP = read_dataset_card("ytbb-robust").label_map
assert VID_MAP is not None
assert YTBB_MAP is not None
UNMAPPED = ("cow", "giraffe", "skateboard", "toilet")
TENCH = "n01440764"
"""A class of ImageNet that is mapped to no class of either set."""
Sets = Mapping[str, Sequence[str]]


def make_vid(base: Path) -> None:
    """Write twelve anchors with up to four frames around; some frames have two classes."""
    pmsets, labels = {}, {}
    for video in range(12):
        frames = [vid_frame(video, number) for number in range(8, 8 + video % 5 + 1)]
        anchor, *around = frames
        pmsets[anchor] = around
        for at, frame in enumerate(frames):
            labels[frame] = [(2 * video) % 30] if at % 3 else [(2 * video) % 30, 29 - video]
    write_vid(base, pmsets, labels, draw_vid)


def draw_vid(path: Path, class_id: str) -> None:
    draw(path, VID_MAP.classes[class_id][-1], noise=0.3)


def make_ytbb(base: Path) -> None:
    """Write ten anchors, one of a class that ImageNet does not have."""
    names = [*[name for name in YTBB_CLASSES if name not in ("none", *UNMAPPED)][:9], "cow"]
    anchors, pairs, first = {}, {}, {}
    for at, name in enumerate(names):
        video = f"video{at:06d}"
        anchor = ytbb_frame(video, 100)
        anchors[anchor] = ["good"] if at % 2 else ["good", "dog"]
        first[anchor] = name
        around = [ytbb_frame(video, 100 - 1 - number) for number in range(at % 4)]
        pairs |= {f"{anchor},{frame}": ["similar"] for frame in around}
        shown = YTBB_MAP.classes.get(name, (TENCH,))[0]
        for frame in (anchor, *around):
            draw(base / "ytbb_videos" / frame, shown, noise=0.3)
    write_ytbb(base / "metadata", anchors, pairs, first)


def vid_truth(base: Path) -> tuple[Sets, Sets]:
    """Return the frames around each anchor and the classes of each frame, from the files."""
    pmsets = json.loads((base / "metadata/pmsets.json").read_text())
    labels = json.loads((base / "metadata/labels.json").read_text())
    return pmsets, {at: [VID_CLASSES[number] for number in labels[at]] for at in labels}


def ytbb_truth(base: Path) -> tuple[Sets, Sets]:
    pmsets: dict[str, list[str]] = {}
    right = {}
    text = (base / "metadata/ytbb_robustness_test_anchors_full.csv").read_text()
    names = (*YTBB_CLASSES[:22], "car", "none")
    first = {
        "_".join(row.split(",")[:2]): names[int(row.split(",")[2])] for row in text.splitlines()[1:]
    }
    for entry in json.loads((base / "metadata/anchor_labels.json").read_text())["annotations"]:
        anchor = f"ytbb_videos/{entry['key']}"
        pmsets[anchor] = []
        right[anchor] = [first[entry["key"].split("/")[0]]] + ["dog"] * (len(entry["labels"]) - 1)
    for entry in json.loads((base / "metadata/pmk_labels.json").read_text())["annotations"]:
        anchor, frame = (f"ytbb_videos/{key}" for key in entry["key"].split(","))
        pmsets[anchor].append(frame)
        right[frame] = right[anchor]
    return pmsets, right


def plain_pm(pmsets: Sets, right: Sets, predicted: Mapping[str, str]) -> tuple[int, int, int]:
    """Return the numbers of anchors, of right ones, and of those right with all frames around.

    Unreadable frames are missing in `predicted`.
    """
    n_anchors = n_pm0 = n_pm10 = 0
    for anchor, around in pmsets.items():
        if anchor not in predicted:
            continue
        n_anchors += 1
        is_right = {at: predicted[at] in right[at] for at in (anchor, *around) if at in predicted}
        n_pm0 += is_right[anchor]
        n_pm10 += all(is_right.values())
    return n_anchors, n_pm0, n_pm10


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predicted_classes(lines: Sequence[Mapping[str, Any]], classes: Sets) -> dict[str, str]:
    """Return the class of the set that was predicted for each frame."""
    class_of = {at: name for name, of_name in classes.items() for at in of_name}
    return {line["path"]: class_of[line["id"]] for line in lines if "id" in line}

"""YTBB-Robust lists the frames that count by people's marks; invalid files are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_image_folder import put
from tests.data.video_copies import MARKS, PAIR_MARKS, YTBB_CLASSES, write_ytbb, ytbb_frame
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_join import join_image_set
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError

BIRD, CAR, COW, BAD, UNSURE, WORSE = (f"-_{letter * 9}" for letter in "bckxuw")
KEYS = {video: ytbb_frame(video, 100) for video in (BIRD, CAR, COW, BAD, UNSURE, WORSE)}
ANCHORS = {
    KEYS[BIRD]: ["good"],
    f"/home/ubuntu/anchors/{KEYS[CAR]}": ["good", "person", "none"],
    KEYS[COW]: ["good", "cow"],
    KEYS[BAD]: ["good", "bad"],
    KEYS[UNSURE]: ["unsure", "good"],
    KEYS[WORSE]: ["good", "dog"],
}
FIRST = {
    KEYS[BIRD]: "bird",
    KEYS[CAR]: "car",
    KEYS[COW]: "none",
    KEYS[BAD]: "dog",
    KEYS[UNSURE]: "dog",
    KEYS[WORSE]: "dog",
}
PAIRS = {
    f"{KEYS[BIRD]},{ytbb_frame(BIRD, 90)}": ["similar", "correct"],
    f"{KEYS[BIRD]},{ytbb_frame(BIRD, 110)}": ["similar"],
    f"{KEYS[BIRD]},{ytbb_frame(BIRD, 111)}": ["similar"],  # too far
    f"{KEYS[BIRD]},{ytbb_frame(BIRD, 100)}": ["similar"],  # itself
    f"{KEYS[BIRD]},{ytbb_frame(CAR, 101)}": ["similar"],  # in the folder of another anchor
    f"{KEYS[BIRD]},{ytbb_frame(BIRD, 101)}": ["correct"],  # not marked similar
    f"{KEYS[BIRD]},{ytbb_frame(BIRD, 102)}": ["similar", "blur-increase"],
    f"{KEYS[CAR]},{ytbb_frame(CAR, 99)}": ["similar"],
    f"{KEYS[WORSE]},{ytbb_frame(WORSE, 99)}": ["similar"],
    f"{KEYS[WORSE]},{ytbb_frame(WORSE, 98)}": ["bad-anchor"],
}
FRAMES = {
    f"ytbb_videos/{key}": label
    for key, label in (
        (KEYS[BIRD], "bird"),
        (ytbb_frame(BIRD, 90), "bird"),
        (ytbb_frame(BIRD, 110), "bird"),
        (KEYS[CAR], "person or car"),
        (ytbb_frame(CAR, 99), "person or car"),
        (KEYS[COW], "cow"),
    )
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = put(tmp_path / "imagenet_vid_ytbb_robust/ytbb-robust", *FRAMES)
    write_ytbb(base / "ytbb-robust_metadata", ANCHORS, PAIRS, FIRST)
    return base


def opened(root: Path) -> ImageSet:
    return open_image_set(f"ytbb-robust={root}")


def test_map_has_the_published_counts_and_leaves_out_none() -> None:
    card = read_dataset_card("ytbb-robust")
    assert card.label_map is not None
    mapped = card.label_map.classes
    assert card.label_map.unmapped == ("cow", "giraffe", "skateboard", "toilet")
    assert {*mapped, *card.label_map.unmapped, *card.label_map.leave_out} == set(YTBB_CLASSES)
    assert card.class_ids == tuple(name for name in YTBB_CLASSES if name != "none")
    ids = [class_id for of_class in mapped.values() for class_id in of_class]
    assert (len(mapped), len(ids), len(set(ids))) == (19, 231, 231)
    assert set(ids) < set(read_dataset_card("imagenet").class_ids)
    assert (card.split().n_anchors, card.split().primary) == (2030, "pm10")


@pytest.mark.parametrize(
    "place", ["ytbb-robust_metadata", "metadata", ".", "../ytbb-robust_metadata"]
)
def test_anchors_and_frames_are_selected_by_peoples_marks(base: Path, place: str) -> None:
    for file in list((base / "ytbb-robust_metadata").iterdir()):
        (base / place).mkdir(exist_ok=True)
        file.rename(base / place / file.name)
    images = opened(base.parent.parent)
    assert {record.path: record.label for record in images.records} == FRAMES
    assert {
        anchor.removeprefix("ytbb_videos/"): [path.rpartition("-")[2] for path in around]
        for anchor, around in images.neighbourhoods.items()
    } == {KEYS[BIRD]: ["90.jpg", "110.jpg"], KEYS[CAR]: ["99.jpg"], KEYS[COW]: []}
    assert images.accepted_labels == ("bird", "car", "cow", "person")


def test_classes_missing_in_the_head_never_win_and_their_frames_are_never_right(
    base: Path,
) -> None:
    images = opened(base)
    head = [ClassEntry(at, "x") for at in read_dataset_card("imagenet").class_ids]
    join = join_image_set(images, head)
    assert (len(join.columns), join.accepted["cow"]) == (19, ())
    assert len(join.accepted["person or car"]) == 2
    own = [ClassEntry(at, "x") for at in YTBB_CLASSES]  # with none, as in the reference code
    join = join_image_set(images, own)
    assert join.columns == tuple((at,) for at in range(24) if at != 22)
    assert [join.columns[at] for at in join.accepted["person or car"]] == [(0,), (23,)]
    assert [join.columns[at] for at in join.accepted["cow"]] == [(6,)]


def rejection(root: Path) -> tuple[str, str | None]:
    with pytest.raises(DatasetError) as caught:
        opened(root)
    return caught.value.message, caught.value.hint


def test_missing_files_are_reported_with_their_source(base: Path) -> None:
    (base / "ytbb-robust_metadata/pmk_labels.json").unlink()
    message, hint = rejection(base)
    assert message == (
        f"image set 'ytbb-robust': pmk_labels.json not found in {base}, its metadata or"
        " ytbb-robust_metadata, or ytbb-robust_metadata beside it"
    )
    assert "https://github.com/mlfoundations/wise-ft" in (hint or "")


def annotations(labels: list[Any], *entries: Any) -> dict[str, Any]:
    return {"annotations": list(entries), "labels": labels}


GOOD = {"key": KEYS[BIRD], "labels": [0]}
SIMILAR = {"key": f"{KEYS[BIRD]},{ytbb_frame(BIRD, 90)}", "labels": [0]}


@pytest.mark.parametrize(
    ("file", "document", "message"),
    [
        ("anchor", {}, "expected a list of texts under 'labels'"),
        ("anchor", annotations(["good", "bad"]), "'labels' lacks 'unsure'"),
        ("anchor", {"labels": MARKS, "annotations": {}}, "expected a list of texts under"),
        ("anchor", annotations([*MARKS], 3), "entry 1: 3, expected a key and positions"),
        ("anchor", annotations([*MARKS], {"key": 3}), "entry 1: {'key': 3}, expected a key"),
        (
            "anchor",
            annotations([*MARKS], {**GOOD, "labels": 0}),
            f"{KEYS[BIRD]!r}, 'labels': 0",
        ),
        (
            "anchor",
            annotations([*MARKS], {**GOOD, "labels": [27]}),
            "expected a key and positions from 0 to 26",
        ),
        (
            "anchor",
            annotations([*MARKS], {**GOOD, "key": "../../a_1/b.jpg"}),
            "'../../a_1/b.jpg': expected VIDEO_MILLISECONDS/frame-NUMBER.jpg",
        ),
        (
            "anchor",
            annotations([*MARKS], {**GOOD, "key": ytbb_frame("unknown", 1)}),
            "'ytbb_videos/unknown_44666/frame-1.jpg': has no row in the CSV file",
        ),
        (
            "anchor",
            annotations([*MARKS], {**GOOD, "key": KEYS[COW]}),
            f"'ytbb_videos/{KEYS[COW]}': has no class",
        ),
        ("pmk", annotations([*PAIR_MARKS[1:]]), "'labels' lacks 'similar'"),
        (
            "pmk",
            annotations([*PAIR_MARKS], {**SIMILAR, "key": KEYS[BIRD]}),
            f"{KEYS[BIRD]!r}: expected two frames",
        ),
        (
            "pmk",
            annotations([*PAIR_MARKS], {**SIMILAR, "key": f"{KEYS[BIRD]},x"}),
            f"'{KEYS[BIRD]},x': expected two frames",
        ),
    ],
)
def test_files_in_another_form_are_rejected_with_file_and_key(
    base: Path, file: str, document: dict[str, Any], message: str
) -> None:
    path = base / f"ytbb-robust_metadata/{file}_labels.json"
    path.write_text(json.dumps(document))
    found, _ = rejection(base)
    assert found.startswith(f"{path.parent}/")
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ytid,label\n", "\n  column 'time_ms' is missing"),
        ("ytid,time_ms,label\na,1\n", "  line 2: 2 cells, expected 3"),
        (
            "ytid,time_ms,label\na,1,24\nb,1,²\n",
            "  line 2: label is '24', expected 0 to 23\n  line 3",
        ),
        ('ytid,time_ms,label\n"a', ", line 2: is not CSV: unexpected end of data"),
    ],
)
def test_table_in_another_form_is_rejected_with_its_lines(
    base: Path, text: str, message: str
) -> None:
    path = base / "ytbb-robust_metadata/ytbb_robustness_test_anchors_full.csv"
    path.write_text(text)
    found, _ = rejection(base)
    assert found.startswith(str(path))
    assert message in found


def test_later_mark_of_a_key_replaces_the_earlier(base: Path) -> None:
    path = base / "ytbb-robust_metadata/anchor_labels.json"
    document = json.loads(path.read_text())
    document["annotations"].append({"key": KEYS[COW], "labels": [MARKS.index("bad")]})
    path.write_text(json.dumps(document))
    assert len(opened(base).neighbourhoods) == 2


def test_frame_around_anchors_of_different_classes_is_rejected(base: Path) -> None:
    near = ytbb_frame(BIRD, 90)
    anchors = {**ANCHORS, near: ["good", "dog"]}
    write_ytbb(base / "ytbb-robust_metadata", anchors, PAIRS, FIRST)
    assert f"'ytbb_videos/{near}' is around an anchor of other classes too" in rejection(base)[0]

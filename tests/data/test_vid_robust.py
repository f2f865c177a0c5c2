"""ImageNet-Vid-Robust is read from its files; files in another form are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_image_folder import put
from tests.data.video_copies import VID_CLASSES, vid_frame, write_vid
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.label_join import join_image_set
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.data.subsets import few_shot
from wiseft_cli.errors import DatasetError

A, A1, A2 = (vid_frame(0, number) for number in (442, 440, 441))
B, B1 = (vid_frame(7, number) for number in (10, 12))
ALONE = vid_frame(57000, 44)
SETS: dict[str, Any] = {A: [A1, A2], B: [B1], ALONE: []}
LABELS: dict[str, Any] = {A: [26], A1: [26], A2: [27, 26], B: [0], B1: [1], ALONE: [29]}


def picture(path: Path, class_id: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(class_id.encode())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "imagenet_vid_ytbb_robust/imagenet-vid-robust"
    return write_vid(folder, SETS, LABELS, picture)


def opened(root: Path) -> ImageSet:
    return open_image_set(f"imagenet-vid-robust={root}")


def test_map_has_the_published_counts() -> None:
    card = read_dataset_card("imagenet-vid-robust")
    assert card.class_ids == VID_CLASSES == card.labels
    assert card.label_map is not None
    ids = [class_id for of_class in card.label_map.classes.values() for class_id in of_class]
    assert (len(card.labels), len(ids), len(set(ids))) == (30, 288, 288)
    assert set(ids) < set(read_dataset_card("imagenet").class_ids)
    assert (card.split().n_anchors, card.split().primary) == (1109, "pm10")


@pytest.mark.parametrize("above", [2, 1, 0])
def test_frames_have_their_own_classes(base: Path, above: int) -> None:
    images = opened([base, *base.parents][above])
    assert images.root == base
    labels = {record.path: record.label for record in images.records}
    assert labels == {
        A: VID_CLASSES[26],
        A1: VID_CLASSES[26],
        A2: f"{VID_CLASSES[26]} or {VID_CLASSES[27]}",
        B: VID_CLASSES[0],
        B1: VID_CLASSES[1],
        ALONE: VID_CLASSES[29],
    }
    assert images.neighbourhoods == {A: (A1, A2), B: (B1,), ALONE: ()}
    assert images.accepted_labels == tuple(sorted(VID_CLASSES[at] for at in (0, 1, 26, 27, 29)))
    assert [warning.split(", ")[0] for warning in images.warnings] == [
        "image set 'imagenet-vid-robust': 6 images",
        "image set 'imagenet-vid-robust': 5 classes",
        "image set 'imagenet-vid-robust': 3 anchor frames",
    ]


def test_labels_join_through_the_map_or_as_classes_of_the_head(base: Path) -> None:
    images = opened(base)
    head = [ClassEntry(at, "x") for at in read_dataset_card("imagenet").class_ids]
    join = join_image_set(images, head)
    both = join.accepted[f"{VID_CLASSES[26]} or {VID_CLASSES[27]}"]
    assert (join.kind, len(join.columns), len(both)) == ("map", 30, 2)
    assert {len(join.columns[at]) for at in both} == {5, 15}  # turtles and watercraft
    own = [ClassEntry(at, "x") for at in (*VID_CLASSES, "another")]
    join = join_image_set(images, own)
    assert join.columns == tuple((at,) for at in range(30))
    assert join.accepted[f"{VID_CLASSES[26]} or {VID_CLASSES[27]}"] == (26, 27)


def test_neighbourhoods_are_in_the_fingerprint_and_not_in_a_subset(base: Path) -> None:
    before = opened(base)
    (base / "metadata/pmsets.json").write_text(json.dumps({**SETS, A: [A1, A2, B1], B: []}))
    after = opened(base)
    assert before.records == after.records
    assert data_fingerprint(before) != data_fingerprint(after)
    assert few_shot(before, 1, seed=0).images.neighbourhoods == {}


def rejection(root: Path) -> tuple[str, str | None]:
    with pytest.raises(DatasetError) as caught:
        opened(root)
    return caught.value.message, caught.value.hint


def test_missing_files_and_frames_are_reported(base: Path) -> None:
    (base / A1).unlink()
    (base / ALONE).unlink()
    (base / ALONE).mkdir()
    assert rejection(base) == (
        f"image set 'imagenet-vid-robust': 2 of 6 frames are missing in {base}:\n"
        f"  {A1!r}: No such file or directory\n  {ALONE!r}: is not a regular file",
        "unpack all of imagenet_vid_ytbb_robust.tar.gz, and name the folder it is in",
    )
    (base / "metadata/labels.json").unlink()
    assert rejection(base) == (
        f"image set 'imagenet-vid-robust': {base} is not a copy of ImageNet-Vid-Robust, video"
        " frames of 30 classes: 1 of 2 required files are missing:\n  metadata/labels.json",
        "get it from https://modestyachts.github.io/natural-perturbations-website/; it is expected"
        " in the folder that you name, or below it in"
        " imagenet_vid_ytbb_robust/imagenet-vid-robust/ or imagenet-vid-robust/",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": cannot be read as JSON: Expecting value: line 1"),
        ("[1]", ": holds a JSON list, expected an object"),
        ('{"a": [], "a": []}', ": cannot be read as JSON: the key 'a' is repeated"),
        ("[" * 100_000, ": cannot be read as JSON: "),
        ('{"a": ' + "9" * 5000 + "}", ": cannot be read as JSON: "),
        ('{"a": "val/b"}', "'a': 'val/b' is not a list of paths"),
        ('{"a": [1, null, "b"]}', "'a': [1, None, 'b'] is not a list of paths"),
        ('{"../a": []}', "'../a': [] is not a list of paths below the set's folder"),
        ('{"a": ["/etc/passwd"]}', "'a': ['/etc/passwd'] is not a list of paths below the set's"),
        ('{"a": ["b\\u0000"]}', "'a': ['b\\x00'] is not a list of paths below the set's folder"),
    ],
)
def test_invalid_neighbourhoods_are_rejected_with_file_and_key(
    base: Path, text: str, message: str
) -> None:
    path = base / "metadata/pmsets.json"
    path.write_text(text)
    found, _ = rejection(base)
    assert found.startswith(str(path))
    assert message in found


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({A: [26], A1: [26], B: [0]}, f"  {A2!r}: None, expected class positions from 0 to 29"),
        *(
            ({**LABELS, A: value}, f"  {A!r}: {value!r}, expected class positions from 0 to 29")
            for value in ([], 26, [30], [-1], [True], ["26"], [2.0])
        ),
    ],
)
def test_labels_that_are_not_class_positions_are_rejected_with_file_and_key(
    base: Path, labels: dict[str, Any], message: str
) -> None:
    path = base / "metadata/labels.json"
    path.write_text(json.dumps(labels))
    found, _ = rejection(base)
    assert found.startswith(f"{path}: ")
    assert message in found


def test_frames_with_impossible_file_names_are_reported_as_missing(base: Path) -> None:
    odd = "val/\ud800.JPEG"
    (base / "metadata/pmsets.json").write_text(json.dumps({odd: []}))
    (base / "metadata/labels.json").write_text(json.dumps({odd: [1]}))
    assert "surrogates not allowed" in rejection(base)[0]
    (base / "metadata/pmsets.json").write_text("{}")
    assert rejection(base)[0] == (
        f"image set 'imagenet-vid-robust': the files in {base} list no anchor frame"
    )


def test_frames_outside_all_neighbourhoods_are_ignored(base: Path) -> None:
    put(base, vid_frame(0, 1))
    assert len(opened(base).records) == 6

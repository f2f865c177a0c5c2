"""ImageNet-Vid-Robust: its neighbourhoods and labels, and files that are not as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.temporal import VID_CLASSES, vid_frame, write_vid
from tests.data.test_image_folder import put
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


def test_the_map_has_the_published_counts() -> None:
    card = read_dataset_card("imagenet-vid-robust")
    assert card.class_ids == VID_CLASSES == card.labels
    assert card.label_map is not None
    ids = [class_id for of_class in card.label_map.classes.values() for class_id in of_class]
    assert (len(card.labels), len(ids), len(set(ids))) == (30, 288, 288)
    assert set(ids) < set(read_dataset_card("imagenet").class_ids)
    assert (card.part().n_anchors, card.part().primary) == (1109, "pm10")


@pytest.mark.parametrize("above", [2, 1, 0])
def test_frames_are_listed_with_their_own_classes(base: Path, above: int) -> None:
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


def test_labels_join_through_the_map_or_as_the_sets_own_classes(base: Path) -> None:
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


def test_neighbourhoods_are_part_of_the_fingerprint_and_of_no_part_of_the_set(base: Path) -> None:
    before = opened(base)
    (base / "metadata/pmsets.json").write_text(json.dumps({**SETS, A: [A1, A2, B1], B: []}))
    after = opened(base)
    assert before.records == after.records
    assert data_fingerprint(before) != data_fingerprint(after)
    assert few_shot(before, 1, seed=0).images.neighbourhoods == {}


def refused(root: Path) -> tuple[str, str | None]:
    with pytest.raises(DatasetError) as caught:
        opened(root)
    return caught.value.message, caught.value.hint


def test_a_copy_without_its_files_or_frames_is_told_what_is_missing(base: Path) -> None:
    (base / A1).unlink()
    (base / ALONE).unlink()
    (base / ALONE).mkdir()
    assert refused(base) == (
        "image set 'imagenet-vid-robust': 2 of 6 frames that its files name are not in"
        f" {base}:\n  {A1!r}: No such file or directory\n  {ALONE!r}: is not a regular file",
        "unpack imagenet_vid_ytbb_robust.tar.gz whole, and name the folder it is in",
    )
    (base / "metadata/labels.json").unlink()
    assert refused(base) == (
        f"image set 'imagenet-vid-robust': {base} is no copy of ImageNet-Vid-Robust, video frames"
        " of 30 classes: 1 of 2 that it is read from are not there:\n  metadata/labels.json",
        "get it from https://modestyachts.github.io/natural-perturbations-website/; it is looked"
        " for in the folder that is named, or below it in"
        " imagenet_vid_ytbb_robust/imagenet-vid-robust/ or imagenet-vid-robust/",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ", line 1: is not JSON: Expecting value"),
        ("[1]", ": holds a list, expected an object"),
        ('{"a": [], "a": []}', ": the key 'a' stands there twice"),
        ("[" * 100_000, ": is not JSON that can be read: "),
        ('{"a": ' + "9" * 5000 + "}", ": is not JSON that can be read: "),
        ('{"a": "val/b"}', "'a': is the text 'val/b', expected a list of texts"),
        ('{"a": [1, null, "b", "b"]}', "'a': has the number 1, expected texts\n  'a': has null"),
        ('{"a": ["b", "b"]}', "'a': has 'b' twice"),
        ('{"a": ["a"]}', "'a': stands among the frames around it"),
        ('{"../a": []}', "'../a': '../a' is no path below the set's folder"),
        ('{"a": ["/etc/passwd"]}', "'a': '/etc/passwd' is no path below the set's folder"),
        ('{"a": ["b\\u0000"]}', "'a': 'b\\x00' is no path below the set's folder"),
    ],
)
def test_neighbourhoods_of_another_form_are_refused_with_file_and_key(
    base: Path, text: str, message: str
) -> None:
    path = base / "metadata/pmsets.json"
    path.write_text(text)
    found, _ = refused(base)
    assert found.startswith(str(path))
    assert message in found


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({A: [26], A1: [26], B: [0]}, f"  {A2!r}: is not there, and pmsets.json names it"),
        ({**LABELS, A: []}, f"  {A!r}: has no class"),
        ({**LABELS, A: 26}, f"  {A!r}: is the number 26, expected a list of numbers"),
        ({**LABELS, A: [30]}, f"  {A!r}: has the number 30, expected 0 to 29"),
        ({**LABELS, A: [-1]}, f"  {A!r}: has the number -1, expected 0 to 29"),
        ({**LABELS, A: [True]}, f"  {A!r}: has true, expected 0 to 29"),
        ({**LABELS, A: ["26"]}, f"  {A!r}: has the text '26', expected 0 to 29"),
        ({**LABELS, A: [2.0]}, f"  {A!r}: has the number 2.0, expected 0 to 29"),
    ],
)
def test_labels_that_are_no_positions_of_classes_are_refused_with_file_and_key(
    base: Path, labels: dict[str, Any], message: str
) -> None:
    path = base / "metadata/labels.json"
    path.write_text(json.dumps(labels))
    found, _ = refused(base)
    assert found.startswith(f"{path}: ")
    assert message in found


def test_frames_whose_names_no_file_can_have_are_told_as_missing(base: Path) -> None:
    odd = "val/\ud800.JPEG"
    (base / "metadata/pmsets.json").write_text(json.dumps({odd: []}))
    (base / "metadata/labels.json").write_text(json.dumps({odd: [1]}))
    assert "surrogates not allowed" in refused(base)[0]
    (base / "metadata/pmsets.json").write_text("{}")
    assert refused(base)[0] == (
        f"image set 'imagenet-vid-robust': the files of {base} name no anchor frame"
    )


def test_frames_that_no_neighbourhood_names_take_no_part(base: Path) -> None:
    put(base, vid_frame(0, 1))
    assert len(opened(base).records) == 6

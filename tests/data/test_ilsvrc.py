"""ImageNet-1k is read from class folders, the flat download and Kaggle's archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.imagenet_labels import write_devkit, write_kaggle, write_meta
from tests.data.test_image_folder import put
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError

IDS = read_dataset_card("imagenet").class_ids
KIT_ORDER = (IDS[7], IDS[2], IDS[999], IDS[0])
"""The kit numbers the classes in its own order."""
TRUTH = (IDS[2], IDS[2], IDS[0], IDS[999], IDS[7])
KIT = "ILSVRC2012_devkit_t12/data"
TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"


def image_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def put_flat(folder: Path) -> Path:
    return put(folder, *(image_name(number) for number in range(1, len(TRUTH) + 1)))


def labels_of(root: Path, split: str = "") -> tuple[str, ...]:
    images = open_image_set(f"imagenet={root}{split}")
    assert [record.path for record in images.records] == sorted(r.path for r in images.records)
    return tuple(record.label for record in images.records)


@pytest.mark.parametrize("images", ["val", "ILSVRC2012_img_val", "."])
@pytest.mark.parametrize("kit", [KIT, "ILSVRC2012_devkit_t12", "devkit/data", "."])
def test_flat_images_are_labelled_by_the_development_kit(
    tmp_path: Path, images: str, kit: str
) -> None:
    put_flat(tmp_path / images)
    truth = write_devkit(tmp_path / "kit", KIT_ORDER, TRUTH)
    (tmp_path / kit).mkdir(parents=True, exist_ok=True)
    for file in (truth, truth.with_name("meta.mat")):
        file.rename(tmp_path / kit / file.name)
    assert labels_of(tmp_path) == TRUTH
    assert labels_of(tmp_path / images) == TRUTH


def test_kaggles_archive_is_read_from_its_root_and_from_its_image_folder(tmp_path: Path) -> None:
    val = put_flat(tmp_path / "ILSVRC/Data/CLS-LOC/val")
    put(tmp_path / "ILSVRC/Data/CLS-LOC/train", f"{IDS[5]}/{IDS[5]}_1.JPEG")
    order = (4, 1, 5, 3, 2)  # the rows are not in the order of the images
    write_kaggle(tmp_path / "LOC_val_solution.csv", {at: TRUTH[at - 1] for at in order})
    assert labels_of(tmp_path) == TRUTH
    assert labels_of(val) == TRUTH
    assert labels_of(tmp_path, "?split=train") == (IDS[5],)


@pytest.mark.parametrize("folder", ["val", "val_in_folder"])
def test_class_folders_are_read_split_by_split(tmp_path: Path, folder: str) -> None:
    put(tmp_path / folder, f"{IDS[3]}/{image_name(1)}", f"{IDS[1]}/{image_name(2)}")
    put(tmp_path / "train", f"{IDS[8]}/{IDS[8]}_10026.JPEG")
    assert labels_of(tmp_path) == (IDS[1], IDS[3])
    images = open_image_set(f"imagenet={tmp_path}?split=train")
    assert images.labels == (IDS[8],)
    assert images.warnings[0] == (
        "image set 'imagenet': 1 images, but ImageNet-1k (ILSVRC 2012), split train has 1,281,167:"
        " the copy is incomplete, or not of this set"
    )


def test_flat_images_without_ground_truth_are_rejected_with_a_remedy(
    tmp_path: Path,
) -> None:
    put_flat(tmp_path / "val")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"imagenet={tmp_path}")
    assert caught.value.message == (
        f"image set 'imagenet': {tmp_path / 'val'} has 5 validation images without class folders;"
        " neither it nor the 4 folders above have their ground truth,"
        " ILSVRC2012_validation_ground_truth.txt or LOC_val_solution.csv"
    )
    assert caught.value.hint == (
        "unpack ILSVRC2012_devkit_t12.tar.gz beside the images, or put Kaggle's"
        " LOC_val_solution.csv there, or sort the images into class folders"
    )


def rejection(root: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"imagenet={root}")
    return caught.value.message


def test_images_without_ground_truth_are_listed(tmp_path: Path) -> None:
    put(put_flat(tmp_path / "val"), image_name(9))
    truth = write_devkit(tmp_path / KIT, KIT_ORDER, TRUTH)
    assert rejection(tmp_path) == (
        f"image set 'imagenet': {truth} has no label for 1 of 6 images of {tmp_path / 'val'}:\n"
        f"  {image_name(9)}"
    )


def test_images_without_ground_truth_are_listed_in_order(tmp_path: Path) -> None:
    put(tmp_path / "val", *(image_name(number) for number in (9, 1, 12, 7, 10)))
    truth = write_devkit(tmp_path / KIT, KIT_ORDER, TRUTH)
    assert rejection(tmp_path) == (
        f"image set 'imagenet': {truth} has no label for 4 of 5 images of {tmp_path / 'val'}:\n"
        + "\n".join(f"  {image_name(number)}" for number in (7, 9, 10, 12))
    )


def test_blank_lines_at_the_end_of_the_ground_truth_are_ignored(tmp_path: Path) -> None:
    put_flat(tmp_path / "val")
    truth = write_devkit(tmp_path / KIT, KIT_ORDER, TRUTH)
    truth.write_text(truth.read_text() + "\n \n")
    assert labels_of(tmp_path) == TRUTH


def test_other_images_beside_the_flat_ones_are_ignored_with_a_note(tmp_path: Path) -> None:
    put(put_flat(tmp_path / "val"), "preview.png", ".hidden.png", "notes.txt")
    write_devkit(tmp_path / KIT, KIT_ORDER, TRUTH)
    images = open_image_set(f"imagenet={tmp_path}")
    note = "image set 'imagenet': {} ignored, whose names are not those of validation images"
    assert (len(images.records), images.notes) == (5, (note.format("1 image"),))
    put(tmp_path / "val", "ILSVRC2012_val_00000001 (1).JPEG")
    assert open_image_set(f"imagenet={tmp_path}").notes == (note.format("2 images"),)


def test_ground_truth_of_other_classes_is_rejected(tmp_path: Path) -> None:
    put_flat(tmp_path / "val")
    truth = write_devkit(tmp_path / KIT, ("n00000001",), ("n00000001",) * 5)
    assert rejection(tmp_path) == (f"{truth}: not classes of ImageNet-1k (ILSVRC 2012): n00000001")


def test_lines_of_the_ground_truth_that_are_not_a_class_number_are_listed(tmp_path: Path) -> None:
    put_flat(tmp_path / "val")
    truth = write_devkit(tmp_path / KIT, KIT_ORDER, TRUTH)
    truth.write_text("1\n5\n-1\n\n²\n0x2\n")  # 5 is the synset above the classes
    assert rejection(tmp_path) == (
        f"{truth}: 5 lines cannot be used:\n"
        "  line 2: '5'\n  line 3: '-1'\n  line 4: ''\n  line 5: '²'\n  line 6: '0x2'"
    )


def test_kit_without_a_usable_meta_mat_is_rejected(tmp_path: Path) -> None:
    put_flat(tmp_path / "val")
    meta = write_devkit(tmp_path / KIT, KIT_ORDER, TRUTH).with_name("meta.mat")
    meta.write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 20)
    assert rejection(tmp_path).startswith(f"{meta}: cannot be read: ")
    savemat(meta, {"classes": np.arange(3)})
    assert rejection(tmp_path) == f"{meta}: cannot be read: KeyError: 'synsets'"
    savemat(meta, {"synsets": np.arange(3)})
    assert rejection(tmp_path).startswith(f"{meta}: cannot be read: ")
    meta.unlink()
    assert "meta.mat: cannot be read: FileNotFoundError: " in rejection(tmp_path)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (f"ILSVRC2012_val_00000002,{IDS[2]} 1 2 3", f"{IDS[2]} 1 2 3'"),
        (f"ILSVRC2012_val_00000002,{IDS[2]} 1 2 3 4 {IDS[3]} 1 2 3 4", f"{IDS[3]} 1 2 3 4'"),
        ("ILSVRC2012_val_00000002,", "00000002,'"),
        ("ILSVRC2012_val_00000002", "1 cells, expected 2"),
        (f"ILSVRC2012_val_00000001,{IDS[2]} 1 2 3 4", f"{IDS[2]} 1 2 3 4'"),
    ],
)
def test_ambiguous_rows_of_kaggles_table_are_listed(tmp_path: Path, row: str, shown: str) -> None:
    put_flat(tmp_path / "val")
    table = write_kaggle(tmp_path / "LOC_val_solution.csv", {1: IDS[0]})
    table.write_text(table.read_text() + row + "\n")
    first, second = rejection(tmp_path).splitlines()
    assert first == f"{table}: 1 row cannot be used:"
    assert second.startswith("  line 3: ")
    assert second.endswith(shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ImageId,label\n",
            ", line 1: the header cannot be used:\n  column 'PredictionString' is missing",
        ),
        ('ImageId,PredictionString\n"a', ", line 2: is not CSV: unexpected end of data"),
    ],
)
def test_another_table_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    put_flat(tmp_path / "val")
    (tmp_path / "LOC_val_solution.csv").write_text(text)
    assert rejection(tmp_path) == f"{tmp_path / 'LOC_val_solution.csv'}{message}"


def test_nearest_ground_truth_is_used_and_the_kits_before_kaggles(tmp_path: Path) -> None:
    put_flat(tmp_path / "val")
    write_kaggle(tmp_path / "LOC_val_solution.csv", dict.fromkeys(range(1, 6), IDS[5]))
    write_devkit(tmp_path / KIT, KIT_ORDER, TRUTH)
    assert labels_of(tmp_path) == TRUTH
    write_meta(tmp_path / "val/meta.mat", (IDS[9],))
    (tmp_path / "val" / TRUTH_NAME).write_text("1\n" * 5)
    assert labels_of(tmp_path) == (IDS[9],) * 5

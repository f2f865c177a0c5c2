from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import data_fingerprint
from wiseft_cli.data.records import ImageRecord
from wiseft_cli.errors import DatasetError


def put(root: Path, *paths: str, size: int = 3) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * size)
    return root


def test_images_are_listed_by_path_with_label_and_size(tmp_path: Path) -> None:
    put(tmp_path / "val", "dog/2.png", "dog/10.jpg", "cat/deep/er/1.webp")
    put(tmp_path / "val", "cat/a.JPEG", size=7)
    image_set = list_image_folder(tmp_path / "val")
    assert image_set.name == "val"
    assert image_set.labels == ("cat", "dog")
    assert image_set.records == (
        ImageRecord("cat/a.JPEG", "cat", 7),
        ImageRecord("cat/deep/er/1.webp", "cat", 3),
        ImageRecord("dog/10.jpg", "dog", 3),
        ImageRecord("dog/2.png", "dog", 3),
    )
    assert image_set.notes == ()


def test_hidden_files_and_other_file_types_are_skipped(tmp_path: Path) -> None:
    put(
        tmp_path, "a/1.png", "a/._1.png", "a/.cache/2.png", ".hidden/3.png", "a/readme.txt", "a/png"
    )
    assert [record.path for record in list_image_folder(tmp_path).records] == ["a/1.png"]


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "store", "x/1.png", "x/2.png", size=5)
    put(tmp_path / "set", "b/0.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "set" / "b" / "1.png").symlink_to(tmp_path / "store" / "x" / "1.png")
    found = [
        (record.path, record.size_bytes) for record in list_image_folder(tmp_path / "set").records
    ]
    assert found == [("a/1.png", 5), ("a/2.png", 5), ("b/0.png", 3), ("b/1.png", 5)]


def test_a_link_to_a_parent_folder_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(list_image_folder(tmp_path).records) == 1


def test_empty_class_folders_and_images_outside_class_folders_are_noted(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/readme.txt", "loose.png")
    image_set = list_image_folder(tmp_path, name="val")
    assert image_set.labels == ("a",)
    assert image_set.notes == (
        "image set 'val': 1 class folder without images: 'b'",
        "image set 'val': 1 image outside the class folders ignored",
    )


def test_broken_links_and_pipes_are_rejected_by_name(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a" / "3.png")
    with pytest.raises(DatasetError) as caught:
        list_image_folder(tmp_path, name="val")
    assert caught.value.message == (
        "image set 'val' has 2 images that are broken links or not regular files:\n"
        f"  {tmp_path}/a/2.png\n  {tmp_path}/a/3.png"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "image set 'val': {root} has no class subfolders"),
        (
            ["1.png"],
            "image set 'val': {root} has no class subfolders; it directly contains 1 image",
        ),
    ],
)
def test_a_folder_without_class_folders_is_rejected(
    tmp_path: Path, files: list[str], message: str
) -> None:
    put(tmp_path, *files)
    with pytest.raises(DatasetError) as caught:
        list_image_folder(tmp_path, name="val")
    assert caught.value.message == message.format(root=tmp_path)
    assert caught.value.hint is not None


def test_class_folders_without_images_missing_folders_and_files_are_rejected(
    tmp_path: Path,
) -> None:
    put(tmp_path, "a/readme.txt")
    with pytest.raises(
        DatasetError, match=r"the 1 class folders of .* contain no images \(\.apng "
    ):
        list_image_folder(tmp_path)
    with pytest.raises(DatasetError, match=r"^image folder .*/nowhere does not exist$"):
        list_image_folder(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"readme\.txt is a file; expected an image folder"):
        list_image_folder(tmp_path / "a" / "readme.txt")


def test_the_fingerprint_is_the_hash_of_sorted_paths_sizes_and_labels(tmp_path: Path) -> None:
    put(tmp_path / "a", "b/2.png", "b/10.png", "a b/é.png", size=11)
    lines = [["a b/é.png", 11, "a b"], ["b/10.png", 11, "b"], ["b/2.png", 11, "b"]]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    expected = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert data_fingerprint(list_image_folder(tmp_path / "a")) == expected


def test_the_fingerprint_of_a_copy_is_equal_and_changes_with_a_size(tmp_path: Path) -> None:
    put(tmp_path / "a", "x/1.png", "y/1.png")
    first = data_fingerprint(list_image_folder(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "copy", copy_function=shutil.copyfile)
    assert data_fingerprint(list_image_folder(tmp_path / "copy", name="other")) == first
    put(tmp_path / "a", "y/1.png", size=4)
    assert data_fingerprint(list_image_folder(tmp_path / "a")) != first


def test_file_names_that_are_not_unicode_are_listed_and_fingerprinted(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/a"
    os.mkdir(folder)
    with open(folder + b"/\xff.png", "wb") as file:
        file.write(b"xyz")
    image_set = list_image_folder(tmp_path)
    assert (tmp_path / image_set.records[0].path).read_bytes() == b"xyz"
    assert data_fingerprint(image_set).startswith("sha256:")

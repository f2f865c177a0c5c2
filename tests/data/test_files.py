"""A path in a folder without permissions is an error that names it, never a missing path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wiseft_cli.cli.app import main
from wiseft_cli.data.files import is_folder, is_regular_file, path_exists
from wiseft_cli.data.sources import open_image_set, open_suite
from wiseft_cli.errors import DatasetError

HINT = "a folder above it may not be searched by this user (chmod u+rx FOLDER)"


def lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make lookups below a folder fail, as for a user without permissions."""
    folder.mkdir(parents=True)
    look_up = os.stat

    def refuse(path: object, *words: object, **named: object) -> os.stat_result:
        if isinstance(path, str | Path) and folder in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return look_up(path, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)
    return folder


def test_files_folders_and_missing_paths_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    paths = [tmp_path, tmp_path / "file", tmp_path / "broken", tmp_path / "file/x", Path("a\0")]
    assert [*map(path_exists, paths)] == [True, True, False, False, False]
    assert [*map(is_folder, paths)] == [True, False, False, False, False]
    assert [*map(is_regular_file, paths)] == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "locked", "looked_for"),
    [
        ("cifar10.1", "datasets", "datasets/cifar10.1_v6_data.npy"),
        ("dtd", "labels", "images"),
        ("eurosat", "2750", "2750/SeaLake"),
        ("imagenet-r", ".", "imagenet-r"),
        ("imagenet", ".", "val_in_folder"),
    ],
)
def test_datasets_check_reports_a_folder_without_permissions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    locked: str,
    looked_for: str,
) -> None:
    root = tmp_path / "set"
    if name == "dtd":
        (root / "images").mkdir(parents=True)
        looked_for = "labels/test1.txt"
    lock(root / locked, monkeypatch)
    assert main(["datasets", "check", name, str(root)]) == 1
    assert capsys.readouterr().err == (
        f"error: cannot look for {root / looked_for}: Permission denied\nhint: {HINT}\n"
    )


def test_eval_and_suites_report_a_folder_without_permissions_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lock(tmp_path / "data", monkeypatch)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"imagenet-r={root / 'r.v1'}")
    assert caught.value.message == f"cannot look for {root / 'r.v1'}: Permission denied"
    with pytest.raises(DatasetError) as caught:
        open_suite("imagenet-shifts", root)
    assert (caught.value.message, caught.value.hint) == (
        f"cannot look for {root / 'imagenet'}: Permission denied",
        HINT,
    )


def test_a_link_into_a_folder_without_permissions_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.jpg").touch()

    class Link:
        name, path = "dog", str(tmp_path / "dog")

        def is_dir(self) -> bool:
            raise PermissionError(13, "Permission denied", self.path)

    class Entries(list[Link]):
        def __enter__(self) -> Entries:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", lambda _: Entries([Link()]))
    with pytest.raises(DatasetError) as caught:
        open_image_set(str(tmp_path))
    assert caught.value.message == f"cannot look for {tmp_path / 'dog'}: Permission denied"

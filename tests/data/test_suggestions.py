"""Errors suggest the path, folder, class or published set that was probably meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.test_image_folder import put
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.label_join import join_image_set
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.data.suggestions import published_set_of
from wiseft_cli.errors import DatasetError, UsageError, did_you_mean_path

HEAD = (ClassEntry("n1", "sea lion"), ClassEntry("n2", "cat"), ClassEntry("n3", "dog"))


def hint_of(spec: str) -> str:
    with pytest.raises(DatasetError) as caught:
        join_image_set(open_image_set(spec), HEAD)
    return str(caught.value.hint)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        put(tmp_path, *(f"pets/{split}/{name}/1.png" for name in ("cat", "dog", "sea lion")))
    put(tmp_path, "deep/a/b/c/cat/1.png", "deep/a/b/c/dog/more/1.png")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("pets", "did you mean pets/train or pets/val?"),
        ("deep", "did you mean deep/a/b/c?"),
        ("deep/a/b", "did you mean deep/a/b/c?"),
        ("deep/a/b/c/dog", "did you mean deep/a/b/c?"),
    ],
)
def test_a_folder_at_another_level_is_suggested(spec: str, hint: str) -> None:
    assert hint_of(spec) == hint


def test_a_class_folder_itself_suggests_the_folder_above(folder: Path) -> None:
    for spec in ("pets/train/cat", f"{folder}/pets/val/dog"):
        assert hint_of(spec).endswith(f"did you mean {Path(spec).parent}?")


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("imagenet-v2", "imagenet-v2"),
        ("ImageNet_R", "imagenet-r"),
        ("imagenetv2-matched-frequency-format-val", "imagenet-v2"),
        ("cifar-10-batches-py", "cifar10"),
        ("objectnet-1.0", "objectnet"),
    ],
)
def test_a_published_set_is_offered_by_its_name(tmp_path: Path, name: str, card: str) -> None:
    put(tmp_path, f"{name}/0/1.png", f"{name}/1/1.png")
    assert hint_of(str(tmp_path / name)) == (
        f"did you mean the published set {card}? Give it as {card}={tmp_path / name}"
    )


def test_common_folder_names_do_not_suggest_a_published_set(tmp_path: Path) -> None:
    for name in ("train", "val", "images", "photos"):
        assert published_set_of(tmp_path / name) is None


def test_a_published_set_without_class_folders_is_offered_too(tmp_path: Path) -> None:
    put(tmp_path, "cifar-10-batches-py/test_batch")
    assert "Give it as cifar10=" in hint_of(str(tmp_path / "cifar-10-batches-py"))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "similar"),
    [("pest", "pets"), ("pets/trian", "pets/train"), ("label.csv", "labels.csv")],
)
def test_a_missing_path_suggests_the_most_similar_one(spec: str, similar: str) -> None:
    Path("labels.csv").write_text("path,label\n")
    assert hint_of(spec) == f"did you mean {similar}?"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("merged", "merged.pt or merged.safetensors"),
        ("merged.safetensor", "merged.safetensors"),
        ("Merged.SafeTensors", "merged.safetensors"),
        ("mergd.safetensors", "merged.safetensors"),
        ("pest/trian", None),  # two parts are wrong
        ("pest/train", "pets/train"),
        ("pest/train/cat/1.png", "pets/train/cat/1.png"),
        ("./pets/train/cat/1.jpg", "./pets/train/cat/1.png"),
        ("pets/train/cat/2.png", None),  # another number is another file
        ("pets", None),  # exists
        ("nothing/like/this", None),
        ("quite-different", None),
        ("nul\0.png", None),
        ("/", None),
        ("", None),
    ],
)
def test_a_near_path_is_suggested_in_full(path: str, found: str | None) -> None:
    for name in ("merged.safetensors", "merged.pt"):
        Path(name).touch()
    assert did_you_mean_path(path) == (found and f"did you mean {found}?")


def test_a_folder_that_may_not_be_listed_suggests_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert did_you_mean_path(tmp_path / "file" / "below") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pipe:cat a.tar", "is a command"),
        ("https://example.org/a-{000..127}.tar", "is a URL"),
        ("s3://bucket/labels.csv", "is a URL"),
        ("x=gs://bucket/photos", "is a URL"),
    ],
)
def test_urls_and_commands_are_rejected(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_image_set(spec)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a-{0..3}.tar.zst", "a.tar.xz"])
def test_compressed_shards_are_rejected_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="is a compressed tar file") as caught:
        open_image_set(str(tmp_path / name))
    assert "decompress it" in str(caught.value.hint)


def test_a_shard_with_another_name_is_recognized(tmp_path: Path) -> None:
    put(tmp_path, "d/1.png")
    archive = shutil.make_archive(str(tmp_path / "a"), "tar", tmp_path / "d")
    for name in ("shard", "shard.bin", "shard.dat"):
        path = Path(shutil.copy(archive, tmp_path / name))
        with pytest.raises(DatasetError, match="is a tar file, but its name does not end in"):
            open_image_set(str(path))


def test_a_tilde_after_a_name_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "photos/cat/1.png")
    (tmp_path / "m.csv").write_text("path,label\nphotos/cat/1.png,cat\n")
    (tmp_path / "map.yaml").write_text("cat: n2\n")
    for spec in ("x=~/photos", "~/photos", "x=~/m.csv", "x=~/photos?map=~/map.yaml"):
        (record,) = open_image_set(spec).records
        assert record.label == "cat"

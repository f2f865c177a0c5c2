"""Folders of CLIP_benchmark are image sets with their own class names and templates."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError
from wiseft_cli.model.zeroshot_prompts import resolve_prompts


def write_shard(path: Path, labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for number, label in enumerate(labels):
            picture = io.BytesIO()
            Image.new("RGB", (4, 4), (label * 60, 0, 0)).save(picture, "WEBP")
            for suffix, data in (("webp", picture.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"s{path.stem}{number:06d}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    root = tmp_path / "vtab" / "dtd"
    write_shard(root / "test" / "0.tar", [0, 1])
    write_shard(root / "test" / "1.tar", [2])
    write_shard(root / "train" / "0.tar", [2, 2])
    (root / "test" / "nshards.txt").write_text("2\n")
    (root / "train" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("banded\nblotchy\nbraided\n")
    templates = "a photo of a {c} texture.\na photo of a {c} {c}.\n"
    (root / "zeroshot_classification_templates.txt").write_text(templates)
    return root


def test_the_test_split_is_read_with_its_class_names(dtd: Path) -> None:
    images = open_image_set(str(dtd))
    assert images.name == "dtd"
    assert [record.label for record in images.records] == ["banded", "blotchy", "braided"]
    assert images.source(0).read(4) == b"RIFF"


def test_another_split_is_chosen_by_option(dtd: Path) -> None:
    images = open_image_set(f"{dtd}?split=train")
    assert (images.name, images.labels, len(images.records)) == ("dtd-train", ("braided",), 2)
    assert open_image_set(f"mine={dtd}?split=train").name == "mine"


def test_the_folder_gives_classes_and_templates(dtd: Path) -> None:
    prompts, lines = resolve_prompts(str(dtd))
    assert [entry.name for entry in prompts.classes.entries] == ["banded", "blotchy", "braided"]
    assert prompts.templates == ("a photo of a {} texture.", "a photo of a {} {}.")
    assert any("of the image set" in line for line in lines)
    given, _ = resolve_prompts(["cat"], str(dtd))
    assert given.templates == prompts.templates
    other, _ = resolve_prompts(str(dtd), ["a {}"])
    assert other.templates == ("a {}",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "test" / "nshards.txt").write_text("3"),
            "1 of 3 shards do not exist",
        ),
        (lambda root: (root / "test" / "nshards.txt").write_text("-1"), "expected the number of"),
        (lambda root: (root / "classnames.txt").write_text("a\nb\n"), "without a name"),
        (lambda root: (root / "test" / "nshards.txt").unlink(), "has no split 'test', found train"),
    ],
)
def test_damage_is_reported(dtd: Path, change: object, message: str) -> None:
    change(dtd)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message):
        open_image_set(str(dtd))

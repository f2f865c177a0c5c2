from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from webdataset.tariterators import group_by_keys, tar_file_iterator

from wiseft_cli.data import image_formats
from wiseft_cli.data.image_set import data_fingerprint
from wiseft_cli.data.images import load_image
from wiseft_cli.data.loading import ImageDataset, collate_images
from wiseft_cli.data.shards import list_shards
from wiseft_cli.errors import DatasetError


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, *, shards: int = 3, images: int = 4) -> str:
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for at in range(images):
            key = f"sub/{shard * images + at:04d}"
            members |= {f"{key}.cls": f"c{at % 2}\n".encode(), f"{key}.png": png(shard * 16 + at)}
        write_tar(folder / f"data-{shard:03d}.tar", members)
    return str(folder / f"data-{{000..{shards - 1:03d}}}.tar")


def refusal(pattern: object) -> str:
    with pytest.raises(DatasetError) as caught:
        list_shards(str(pattern), name="s")
    return caught.value.message


def test_each_record_reads_the_bytes_of_its_sample(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)
    image_set = list_shards(pattern)
    assert (image_set.name, image_set.root, len(image_set.records)) == ("data", tmp_path, 12)
    first = image_set.records[0]
    assert (first.path, first.label, first.container) == (
        "data-000.tar/sub/0000.png",
        "c0",
        "data-000.tar",
    )
    for index, record in enumerate(image_set.records):
        image = load_image(image_set.source(index))
        assert image.getpixel((0, 0)) == (index // 4 * 16 + index % 4, 0, 0)
        assert record.label == f"c{index % 2}"


def test_images_and_labels_equal_those_of_webdataset(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)
    expected = []
    for shard in sorted(tmp_path.glob("*.tar")):
        with open(shard, "rb") as file:
            samples = group_by_keys({**it, "__url__": ""} for it in tar_file_iterator(file))
            expected += [(sample["png"], sample["cls"].decode().strip()) for sample in samples]
    image_set = list_shards(pattern)
    found = [
        (image_set.source(index).read(), record.label)
        for index, record in enumerate(image_set.records)
    ]
    assert found == expected


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image).copy()).permute(2, 0, 1).float()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_images_are_loaded_once_and_in_order_for_any_number_of_workers(
    tmp_path: Path, workers: int
) -> None:
    image_set = list_shards(write_shards(tmp_path))
    dataset = ImageDataset(image_set, range(12), to_tensor)
    loader = DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=collate_images)
    batches = list(loader)
    assert [index for batch in batches for index in batch.indices.tolist()] == list(range(12))
    values = [int(value) for batch in batches for value in batch.images[:, 0, 0, 0]]
    assert values == [shard * 16 + at for shard in range(3) for at in range(4)]


def test_a_damaged_image_is_reported_with_its_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x.cls": b"0", "x.jpg": b"no image"})
    item = ImageDataset(list_shards(str(tmp_path / "a.tar")), [0], to_tensor)[0]
    assert item.reason == (
        f"cannot read image {tmp_path}/a.tar/x.jpg: not an image in a format that Pillow knows"
    )


def test_a_shard_that_shrinks_or_disappears_after_listing_is_reported(tmp_path: Path) -> None:
    image_set = list_shards(str(write_tar(tmp_path / "a.tar", {"x.cls": b"0", "x.jpg": b"x" * 99})))
    os.truncate(tmp_path / "a.tar", 1600)
    dataset = ImageDataset(image_set, [0], to_tensor)
    assert dataset[0].reason.endswith(
        "the shard ends inside the image; it has changed since it was listed"
    )
    (tmp_path / "a.tar").unlink()
    assert dataset[0].reason.endswith("a.tar/x.jpg: No such file or directory")


def test_labels_come_from_cls_then_json_then_txt(tmp_path: Path) -> None:
    image = png(0)
    document = json.dumps({"label": "from json", "group": 7}).encode()
    write_tar(
        tmp_path / "a.tar",
        {
            "a.png": image, "a.cls": b" from cls\n", "a.json": document, "a.txt": b"from txt",
            "b.png": image, "b.json": document, "b.txt": b"from txt",
            "c.png": image, "c.json": b'{"caption": "x"}', "c.txt": b"from txt",
            "d.seg.png": image, "d.JPG": image, "d.json": b'{"label": 12}',
            "e.png": image, "e.json": b"[1]", "e.txt": b"\xef\xbb\xbffrom txt",
        },
    )  # fmt: skip
    records = list_shards(str(tmp_path / "a.tar")).records
    assert [(record.label, record.group) for record in records] == [
        ("from cls", "7"),
        ("from json", "7"),
        ("from txt", None),
        ("12", None),
        ("from txt", None),
    ]
    assert records[3].path == "a.tar/d.JPG"


def test_all_unusable_samples_are_listed(tmp_path: Path) -> None:
    image = png(0)
    write_tar(
        tmp_path / "a.tar",
        {
            "0.png": image, "0.cls": b"x",
            "1.cls": b"x", "1.txt": b"x",
            "2.png": image, "2.jpg": image, "2.cls": b"x",
            "3.png": image, "3.meta": b"",
            "4.png": image, "4.cls": b" \n",
            "5.png": image, "5.cls": b"\xff",
            "6.png": image, "6.json": b"{",
            "7.png": image, "7.json": b'{"label": [1]}',
            "8.1.png": image, "8.1.cls": b"x",
        },
    )  # fmt: skip
    assert refusal(tmp_path / "a.tar") == (
        "image set 's': 8 samples cannot be used:\n"
        "  a.tar/1: expected one image, found none among cls, txt\n"
        "  a.tar/2: expected one image, found png and jpg among png, jpg, cls\n"
        "  a.tar/3: found no label among png, meta\n"
        "  a.tar/4: its label is empty\n"
        "  a.tar/5: its .cls is not UTF-8 text\n"
        "  a.tar/6: its .json is not valid JSON\n"
        "  a.tar/7: 'label' in its .json is [1], expected text\n"
        "  a.tar/8: expected one image, found none among 1.png, 1.cls"
    )


def test_repeated_member_names_are_rejected(tmp_path: Path) -> None:
    image = png(0)
    write_tar(tmp_path / "a.tar", [("0.png", image), ("0.PNG", image), ("0.cls", b"x")])
    assert refusal(tmp_path / "a.tar") == (
        f"{tmp_path}/a.tar: sample 0 has .png twice, 0.png and 0.PNG; extensions are not"
        " case-sensitive"
    )
    sample = [("0.png", image), ("0.cls", b"x")]
    write_tar(tmp_path / "b.tar", [*sample, ("1.png", image), ("1.cls", b"x"), *sample])
    assert refusal(tmp_path / "b.tar").startswith(
        f"{tmp_path}/b.tar: sample 0 has .png twice, 0.png and 0.png"
    )


def test_members_of_a_sample_need_not_be_adjacent(tmp_path: Path) -> None:
    """`tar cf` of a folder adds the files in the order of the disk or of their names."""
    images = [(f"d/{at}.png", png(at)) for at in range(3)]
    labels = [(f"d/{at}.cls", f"c{at}".encode()) for at in range(3)]
    orders = (images + labels, labels + images, [images[2], *labels, *images[:2]])
    for at, members in enumerate(orders):
        image_set = list_shards(str(write_tar(tmp_path / f"{at}.tar", members)))
        found = {record.path: record.label for record in image_set.records}
        assert found == {f"{at}.tar/d/{number}.png": f"c{number}" for number in range(3)}
        for index, record in enumerate(image_set.records):
            image = load_image(image_set.source(index))
            assert image.getpixel((0, 0)) == (int(record.label[1:]), 0, 0)


@pytest.mark.parametrize("folder", ["", "d/", "./d/e.f/"])
def test_the_hidden_files_of_macos_are_ignored(tmp_path: Path, folder: str) -> None:
    members = []
    for name, data in ((f"{folder}1.png", png(7)), (f"{folder}1.cls", b"x")):
        head, _, tail = name.rpartition("/")
        members += [(f"{head}/._{tail}" if head else f"._{tail}", b"Mac OS X"), (name, data)]
    members += [(f"__MACOSX/{folder}1.png", b"?"), (f"{folder}.DS_Store", b"?")]
    (record,) = list_shards(str(write_tar(tmp_path / "a.tar", members))).records
    assert (record.path, record.label) == (f"a.tar/{folder}1.png", "x")


@pytest.mark.parametrize(
    ("extension", "remedy"),
    [
        ("heic", "pip install 'wiseft-cli[heif]'"),
        ("jxl", "pip install pillow-jxl-plugin"),
        ("nef", "convert it to JPEG, PNG or TIFF"),
    ],
)
def test_pictures_that_are_not_read_are_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str, remedy: str
) -> None:
    monkeypatch.setattr(image_formats, "_is_installed", lambda module: False)
    path = write_tar(tmp_path / "a.tar", {f"0.{extension}": b"x", "0.cls": b"a"})
    message = refusal(path)
    assert f"expected one image, found none among {extension}, cls" in message
    assert message.endswith(remedy)


def test_missing_shards_of_a_range_are_listed(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "data-001.tar").unlink()
    assert refusal(tmp_path / "data-{000..003}.tar") == (
        "image set 's': 2 of 4 shards do not exist or are not files:\n"
        f"  {tmp_path}/data-001.tar\n  {tmp_path}/data-003.tar"
    )
    assert refusal(tmp_path / "data-{000..000}{,}.tar").startswith(
        f"{tmp_path}/data-{{000..000}}{{,}}.tar: names shards more than once:"
    )
    for pattern in ("data-{000..001.tar", "${nowhere}.tar"):
        assert "not a valid shard pattern" in refusal(tmp_path / pattern)


def test_shards_of_two_folders_form_one_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "a", shards=1)
    write_shards(tmp_path / "b", shards=1)
    both = list_shards(str(tmp_path / "{a,b}" / "data-000.tar"))
    assert (both.root, both.records[-1].path) == (tmp_path, "b/data-000.tar/sub/0003.png")
    monkeypatch.chdir(tmp_path)
    mixed = list_shards(f"a/data-000.tar::{tmp_path}/b/data-000.tar")
    assert data_fingerprint(mixed) == data_fingerprint(both)


@pytest.mark.parametrize("length", [0, 100, 511, 700, 1024, 1100, 3072, 3600])
def test_a_truncated_shard_is_rejected(tmp_path: Path, length: int) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.jpg": b"x" * 600, "0.cls": b"x", "1.jpg": b"x" * 600})
    path.write_bytes(path.read_bytes()[:length])
    assert refusal(path).startswith(f"{path}: ")


def test_a_damaged_header_is_reported(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", {f"{at}.{e}": b"x" for at in (0, 1) for e in ("jpg", "cls")}
    )
    data = bytearray(path.read_bytes())
    data[2048 + 5] ^= 255  # in the header of the third member
    path.write_bytes(data)
    assert refusal(path) == (
        f"{path}: damaged, or several concatenated tar files: neither a member nor the end of the"
        " archive at byte 2048"
    )


def test_concatenated_tar_files_are_rejected(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.cls": b"x"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + one)
    assert "several concatenated tar files" in refusal(tmp_path / "a.tar")


def test_compressed_files_other_files_links_and_empty_shards_are_rejected(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "z.tar", "w:gz"):
        pass
    with pytest.raises(DatasetError) as caught:
        list_shards(str(tmp_path / "z.tar"))
    assert caught.value.message == f"{tmp_path}/z.tar: is compressed (gzip)"
    assert caught.value.hint == "shards are plain tar files: decompress them"
    (tmp_path / "t.tar").write_text("no tar file\n" * 100)
    assert refusal(tmp_path / "t.tar") == (
        f"{tmp_path}/t.tar: is a text file that begins with 'no tar file'"
    )
    (tmp_path / "p.tar").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert (
        refusal(tmp_path / "p.tar") == f"{tmp_path}/p.tar: is a pointer of Git LFS, not the shard"
    )
    write_tar(tmp_path / "e.tar", {})
    assert refusal(tmp_path / "e.tar") == "image set 's': 1 shard without a single sample"
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert refusal(tmp_path / "l.tar") == (
        f"{tmp_path}/l.tar: member 0.jpg is a link or another special file, expected files"
    )


def write_numbered(folder: Path, names: str, labels: str = "0 2") -> Path:
    members = {}
    for at, label in enumerate(labels.split()):
        members |= {f"{at}.png": png(at), f"{at}.cls": label.encode()}
    (folder / "classnames.txt").write_text(names)
    return write_tar(folder / "test" / "0.tar", members)


def test_integer_labels_take_their_names_from_a_file_beside_the_shards(tmp_path: Path) -> None:
    image_set = list_shards(str(write_numbered(tmp_path, "ape\nbear\ngreat cat\n\n")))
    assert image_set.labels == ("ape", "great cat")
    assert image_set.notes == (
        f"image set '0': labels are numbers; their names are taken from {tmp_path}/classnames.txt",
    )


def test_labels_without_a_name_are_rejected(tmp_path: Path) -> None:
    assert refusal(write_numbered(tmp_path, "ape\nbear\n")) == (
        f"image set 's': 1 label without a name in {tmp_path}/classnames.txt, which has 2 class"
        " names:\n"
        "  '2'"
    )


def test_repeated_class_names_are_ignored_and_text_labels_kept(tmp_path: Path) -> None:
    image_set = list_shards(str(write_numbered(tmp_path, "crane\nbear\ncrane\n")))
    assert image_set.labels == ("0", "2")
    assert image_set.notes == (
        f"image set '0': {tmp_path}/classnames.txt repeats 'crane': labels stay numbers",
    )
    assert list_shards(str(write_numbered(tmp_path, "a\nb\n", "x 0"))).labels == ("0", "x")


def test_the_fingerprint_depends_on_the_samples_and_not_on_the_root(tmp_path: Path) -> None:
    first = data_fingerprint(list_shards(write_shards(tmp_path / "a")))
    assert data_fingerprint(list_shards(write_shards(tmp_path / "b"))) == first
    assert data_fingerprint(list_shards(write_shards(tmp_path / "b", images=3))) != first

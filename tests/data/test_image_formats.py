"""Files that are not images: counted, named, and read once their package is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_image_folder import put
from wiseft_cli.data import image_formats
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_paths import PathStream, image_paths
from wiseft_cli.data.images import load_image
from wiseft_cli.errors import DatasetError

HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 40
NO_STDIN = PathStream(lambda _: b"")
PLUGIN = """
from PIL import Image, ImageFile

class HeicFile(ImageFile.ImageFile):
    format = "HEIC"
    def _open(self):
        if self.fp.read(12)[4:] != b"ftypheic":
            raise SyntaxError("not HEIC")
        self._size, self._mode, self.tile = (2, 2), "RGB", []
    def load(self):
        self.im = Image.new("RGB", (2, 2), (9, 8, 7)).im
        return Image.Image.load(self)

def register_heif_opener():
    Image.register_open("HEIC", HeicFile)
"""


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "_is_installed", lambda module: False)
    image_formats.register_plugins.cache_clear()


@pytest.fixture
def fake_plugin(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a module of the name of pillow-heif that reads a 2 x 2 picture."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "pillow_heif.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    caches = (image_formats._is_installed, image_formats.register_plugins)
    for cache in caches:
        cache.cache_clear()
    yield
    sys.modules.pop("pillow_heif", None)
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("no_plugins")
def test_ignored_files_are_counted_by_extension_with_what_reads_them(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/2.HEIC", "b/3.heic", "b/4.png", "b/5.jxl", "b/6.CR2", "b/7.mp4")
    put(tmp_path, "b/8", "b/note.txt", "b/9.json", "b/.hidden.heic")
    image_set = list_image_folder(tmp_path, name="val")
    assert len(image_set.records) == 2
    assert image_set.warnings == (
        "image set 'val': 6 files ignored: 2 .heic (such as a/2.HEIC; pillow-heif reads it: pip"
        " install 'wiseft-cli[heif]'); 1 .jxl (such as b/5.jxl; pillow-jxl-plugin reads it:"
        " pip install pillow-jxl-plugin); 1 .cr2 (such as b/6.CR2; a camera raw file: convert it to"
        " JPEG, PNG or TIFF); 1 .mp4 (such as b/7.mp4); 1 without an extension (such as b/8)",
    )
    assert image_set.notes == ()


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize("name", ["a/1.heif", "a/1.dng", "a/1"])
def test_a_folder_of_other_files_alone_names_them(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    with pytest.raises(DatasetError, match=f"found 1 .*such as {name}"):
        list_image_folder(tmp_path)


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.heic", b"?" * 20, "pip install 'wiseft-cli[heif]'"),
        ("a.jpg", HEIC, "pip install 'wiseft-cli[heif]'"),
        ("a.hif", HEIC, "pip install 'wiseft-cli[heif]'"),
        ("a.jxl", b"\xff\x0a" + b"?" * 20, "pip install pillow-jxl-plugin"),
        ("a.avif", b"?" * 20, "pip install --upgrade pillow"),
        ("a.nef", b"II*\0" + b"?" * 20, "a camera raw file: convert it to JPEG, PNG or TIFF"),
    ],
)
def test_an_unreadable_picture_is_reported_with_what_reads_it(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        load_image(tmp_path / name)
    assert caught.value.message.startswith(f"cannot read image {tmp_path / name}: ")
    assert caught.value.message.endswith(reason)


def test_a_raw_file_is_never_read_as_its_preview(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif")
    for extension in ("dng", "CR2", "arw"):
        path = (tmp_path / "a.tif").rename(tmp_path / f"a.{extension}")
        with pytest.raises(DatasetError, match="a camera raw file"):
            load_image(path)
        path.rename(tmp_path / "a.tif")


@pytest.mark.usefixtures("fake_plugin")
def test_an_installed_plugin_makes_its_files_images(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.heic").write_bytes(HEIC)
    (tmp_path / "a" / "3.jpg").write_bytes(HEIC)
    image_set = list_image_folder(tmp_path)
    assert [record.path for record in image_set.records] == ["a/1.png", "a/2.heic", "a/3.jpg"]
    assert image_set.warnings == ()
    for source in (tmp_path / "a" / "2.heic", tmp_path / "a" / "3.jpg"):
        assert load_image(source).getpixel((1, 1)) == (9, 8, 7)
    with open(tmp_path / "a" / "2.heic", "rb") as file:
        assert load_image(file, name="a.tar/2.heic").size == (2, 2)


def test_heif_files_are_read_with_pillow_heif(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    values = np.zeros((64, 48, 3), np.uint8)
    values[:, :24] = 255
    heif = pillow_heif.from_pillow(Image.fromarray(values))
    (tmp_path / "a").mkdir()
    heif.save(tmp_path / "a" / "1.heic", quality=-1)
    for cache in (image_formats._is_installed, image_formats.register_plugins):
        cache.cache_clear()
    assert [record.path for record in list_image_folder(tmp_path).records] == ["a/1.heic"]
    loaded = load_image(tmp_path / "a" / "1.heic")
    assert loaded.size == (48, 64)
    assert np.abs(np.asarray(loaded).astype(int) - values).max() < 20


@pytest.mark.usefixtures("no_plugins")
def test_prediction_lists_all_pictures_of_a_folder_read_or_not(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.heic", "c.JXL", "d.nef", "e.psd", "notes.txt", "data.json", "f.mp4")
    Image.new("RGB", (2, 2)).save(tmp_path / "g.png")
    (tmp_path / "g.png").rename(tmp_path / "g")
    Image.new("RGB", (2, 2)).save(tmp_path / "h.jpg")
    (tmp_path / "h.jpg").rename(tmp_path / "h.jpg_large")
    found = [Path(path).name for path in image_paths([str(tmp_path)], NO_STDIN)]
    assert found == ["a.png", "b.heic", "c.JXL", "d.nef", "e.psd", "g", "h.jpg_large"]

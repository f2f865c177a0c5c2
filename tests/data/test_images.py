from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from wiseft_cli.data.images import exif_orientation, load_image, transform_image
from wiseft_cli.errors import DatasetError
from wiseft_cli.model.transforms import eval_transform

RAMP = np.linspace(0, 255, 48 * 48).reshape(48, 48).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)
RGB = Image.fromarray(COLOURS)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_modes_that_open_clip_handles_are_unchanged(tmp_path: Path) -> None:
    for mode, ending in (("RGB", "png"), ("L", "png"), ("LA", "png"), ("RGBA", "png")):
        image = RGB.convert(mode)
        loaded = load_image(saved(image, tmp_path / f"{mode}.{ending}"))
        assert loaded.mode == mode
        assert np.array_equal(np.asarray(loaded), np.asarray(image))
    assert load_image(saved(RGB.convert("CMYK"), tmp_path / "cmyk.jpg")).mode == "CMYK"


def test_sixteen_bit_images_are_scaled_and_rounded_instead_of_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 255, 256, 32767, 32768, 65407, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for name in ("a.png", "a.tif", "a.pgm"):
        loaded = load_image(saved(Image.fromarray(values), tmp_path / name))
        assert loaded.mode == "L"
        assert np.array_equal(np.asarray(loaded), expected)
    big_endian = Image.frombytes("I;16B", (9, 1), values.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(load_image(saved(big_endian, tmp_path / "b.tif"))), expected)


def test_integers_beyond_sixteen_bits_are_rejected(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[-1, 70000]], np.int32)), tmp_path / "a.tif")
    with pytest.raises(DatasetError) as caught:
        load_image(path)
    assert caught.value.message == (
        f"cannot read image {path}: integer pixels from -1 to 70000; expected 16 bits, 0 to 65535"
    )


@pytest.mark.parametrize("maximum", [1, 7, 200, 255])
def test_32_bit_integers_that_could_be_8_bits_are_rejected(tmp_path: Path, maximum: int) -> None:
    values = np.array([[0, maximum]], np.int32)
    path = saved(Image.fromarray(values), tmp_path / "a.tif")
    for source in (path, Image.fromarray(values)):
        with pytest.raises(DatasetError) as caught:
            load_image(source)
        assert f"32-bit integer pixels from 0 to {maximum}: white may be 255" in str(caught.value)
        assert "convert the image to 8 or 16 bits" in str(caught.value)


def test_32_bit_integers_whose_range_is_clear_are_scaled(tmp_path: Path) -> None:
    for values, expected in (([0, 256, 65535], [0, 1, 255]), ([0, 0, 0], [0, 0, 0])):
        path = saved(Image.fromarray(np.array([values], np.int32)), tmp_path / "a.tif")
        assert np.asarray(load_image(path)).tolist() == [expected]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_files_that_state_16_bits_may_be_dark(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 100, 200, 255]], np.uint16)
    loaded = load_image(saved(Image.fromarray(values), tmp_path / name))
    assert np.asarray(loaded).tolist() == [[0, 0, 1, 1]]


def text_chunks() -> dict[str, dict[str, object]]:
    """Return options of `Image.save` for PNG files that exceed Pillow's limits on text."""
    options: dict[str, dict[str, object]] = {}
    for name, zipped in (("zTXt", True), ("iTXt", True), ("tEXt", False)):
        info = PngImagePlugin.PngInfo()
        for at in range(1 if zipped else 80):  # one long text, or many short ones
            text = "x" * (3_000_000 if zipped else 2**20 - 100)
            add = info.add_itxt if name == "iTXt" else info.add_text
            add(f"Comment{at}", text, zip=zipped)
        options[name] = {"pnginfo": info}
    options["iCCP"] = {"icc_profile": b"p" * 3_000_000}
    return options


@pytest.mark.parametrize("chunk", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_a_png_with_more_text_than_pillow_reads_is_read(tmp_path: Path, chunk: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = saved(RGB, tmp_path / "a.png", exif=exif, **text_chunks()[chunk])
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(path) as image:
        image.load()
    for source in (path, io.BytesIO(path.read_bytes())):
        loaded = load_image(source, name="a.png")
        assert np.array_equal(np.asarray(loaded), COLOURS)
        assert exif_orientation(loaded) == 6


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
        server.bind("socket.png")
    sources = {"pipe.png": "not a regular file", "socket.png": "not a regular file"}
    for path, reason in (*sources.items(), ("/dev/zero", "not a regular file"), (".", "a folder")):
        with pytest.raises(DatasetError) as caught:
            load_image(tmp_path / path)
        assert caught.value.message == f"cannot read image {tmp_path / path}: {reason}"


@pytest.mark.parametrize("size", [(10_000_000, 1), (1, 4_000_000), (3_000_000, 2)])
def test_an_image_that_would_be_too_large_when_resized_is_reported_by_name(
    size: tuple[int, int],
) -> None:
    transform = eval_transform({"size": 224})
    with pytest.raises(DatasetError) as caught:
        transform_image(Image.new("L", size), transform, "long.png")
    assert caught.value.message.startswith(
        f"cannot transform image long.png of {size[0]} x {size[1]} pixels: its sides have a ratio"
    )
    narrow = transform_image(Image.new("L", (4000, 2)), transform, "narrow.png")
    assert narrow.shape == (3, 224, 224)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("height must be > 0"), OSError("x")])
def test_an_image_that_a_transform_fails_on_is_reported_by_name(error: Exception) -> None:
    def fail(image: Image.Image) -> None:
        raise error

    with pytest.raises(DatasetError, match=r"^cannot transform image a\.png of 48 x 48 pixels: "):
        transform_image(RGB, fail, "a.png")


def test_float_images_in_zero_to_one_are_scaled_and_others_rejected(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.5, 1.0, 1 / 255]], np.float32)
    loaded = load_image(saved(Image.fromarray(values), tmp_path / "a.tif"))
    assert np.asarray(loaded).tolist() == [[0, 128, 255, 1]]
    for at, bad in enumerate((1.5, -0.1, np.nan)):
        path = saved(Image.fromarray(np.array([[0, bad]], np.float32)), tmp_path / f"{at}.tif")
        with pytest.raises(DatasetError, match=r"float pixels from .*; expected them in \[0, 1\]"):
            load_image(path)


def test_palette_images_are_converted_before_resizing(tmp_path: Path) -> None:
    path = saved(RGB.quantize(256), tmp_path / "a.png")
    with Image.open(path) as image:
        assert image.mode == "P"
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    # Pillow resizes a palette by nearest neighbour: averages of neighbours prove the conversion.
    checker = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8))
    small = load_image(saved(checker.quantize(2), tmp_path / "c.png")).resize((8, 8), 3)
    assert 100 < np.asarray(small)[2:-2, 2:-2].mean() < 155
    assert np.asarray(small)[2:-2, 2:-2].std() < 20


def test_a_palette_with_transparency_equals_its_rgba_image(tmp_path: Path) -> None:
    image = RGB.quantize(8)
    path = saved(image, tmp_path / "a.png", transparency=bytes([0, 128, 255, 255]))
    loaded = load_image(path)
    assert loaded.mode == "RGBA"
    as_rgba = load_image(saved(loaded, tmp_path / "b.png"))
    assert np.array_equal(np.asarray(loaded), np.asarray(as_rgba))
    assert len(np.unique(np.asarray(loaded)[..., 3])) == 3


def test_bilevel_images_become_grey(tmp_path: Path) -> None:
    loaded = load_image(saved(RGB.convert("1"), tmp_path / "a.png"))
    assert loaded.mode == "L"
    assert set(np.unique(np.asarray(loaded))) == {0, 255}


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(RGB, to_lab)
    loaded = load_image(saved(lab, tmp_path / "a.tif"))
    assert loaded.mode == "RGB"
    assert np.abs(np.asarray(loaded).astype(int) - COLOURS).mean() < 8


def test_the_first_frame_of_an_animation_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load_image(path).convert("RGB").getpixel((4, 4)) == (255, 0, 0)


def test_the_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.new("RGB", (8, 4)), tmp_path / "a.jpg", exif=exif)
    assert load_image(path).size == (8, 4)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "F"])
def test_the_transform_of_every_mode_is_close_to_that_of_the_rgb_image(
    tmp_path: Path, mode: str
) -> None:
    grey = mode in ("L", "LA", "1", "I;16", "F")
    image = RGB.convert("L") if grey else RGB
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "F":
        stored = Image.fromarray((np.asarray(image) / 255).astype(np.float32))
    else:
        stored = image.convert(mode)
    path = tmp_path / f"a.{'tif' if mode in ('CMYK', 'F') else 'png'}"
    transform = eval_transform({"size": 24, "mean": [0.0] * 3, "std": [1.0] * 3})
    result = transform(load_image(saved(stored, path)))
    expected = transform(image)
    assert result.shape == (3, 24, 24)
    # One bit and 256 colours are coarse; the others are exact up to rounding.
    tolerance = {"1": 0.2, "P": 0.1}.get(mode, 0.01)
    assert float((result - expected).abs().mean()) < tolerance


def hostile_files() -> dict[str, bytes]:
    file = io.BytesIO()
    RGB.resize((256, 256)).save(file, "PNG")
    png = file.getvalue()
    file = io.BytesIO()
    RGB.resize((256, 256)).save(file, "JPEG")
    jpeg = file.getvalue()
    return {
        "empty.png": b"",
        "text.jpg": b"not an image",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "head.png": png[:40],
        "flipped.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "wide.pgm": b"P5 999999 999999 255\n",
        "wrong.gif": b"GIF89a" + b"\xff" * 40,
        "tiff.tif": b"II*\x00\xff\xff\xff\xff",
    }


@pytest.mark.parametrize("name", sorted(hostile_files()))
def test_a_damaged_file_is_reported_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(hostile_files()[name])
    with pytest.raises(DatasetError) as caught:
        load_image(path)
    assert caught.value.message.startswith(f"cannot read image {path}: ")
    assert "\n" not in caught.value.message


def test_a_decompression_bomb_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("L", (100, 100)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert load_image(path).size == (100, 100)  # Pillow only warns up to twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(DatasetError, match="could be decompression bomb"):
        load_image(path)


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of one pixel whose header claims another size."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + file.getvalue()[24:29]
    return (
        file.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + file.getvalue()[33:]
    )


def test_the_pixel_limit_equals_the_documented_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(178_956_970, 1))
    with pytest.raises(DatasetError, match=r"a\.png: (?!.*bomb)"):  # decoded, and found truncated
        load_image(path)
    path.write_bytes(png_that_claims(178_956_971, 1))
    with pytest.raises(DatasetError) as caught:
        load_image(path)
    assert caught.value.message == (
        f"cannot read image {path}: Image size (178956971 pixels) exceeds limit of 178956970"
        " pixels, could be decompression bomb DOS attack."
    )
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert f"{2 * Image.MAX_IMAGE_PIXELS:,} pixels" in page


def test_a_stream_is_decoded_and_reported_by_the_given_name() -> None:
    file = io.BytesIO()
    RGB.save(file, "PNG")
    assert np.array_equal(np.asarray(load_image(file, name="x")), COLOURS)
    with pytest.raises(DatasetError, match=r"^cannot read image a\.tar/x\.png: not an image"):
        load_image(io.BytesIO(b"?"), name="a.tar/x.png")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^cannot read image .*/no\.png: No such file"):
        load_image(tmp_path / "no.png")


def test_an_empty_file_is_reported_as_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), io.BytesIO()):
        with pytest.raises(DatasetError) as caught:
            load_image(source, name="a.jpg")
        assert caught.value.message == "cannot read image a.jpg: the file is empty"

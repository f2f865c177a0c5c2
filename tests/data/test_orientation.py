"""The EXIF orientation: read in every format, applied or ignored as card and set state."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from tests.evaluation.tiny import PREPROCESS, make_images
from wiseft_cli.checkpoint.card import canonical_preprocess
from wiseft_cli.data.dataset_card import dataset_card_names, read_dataset_card
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.images import exif_orientation, load_image, load_image_of
from wiseft_cli.data.loading import ImageDataset, collate_images, load_batches, load_paths
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError, ModelError, UsageError
from wiseft_cli.model.transforms import eval_transform, train_transform

RANDOM = np.random.default_rng(0)
PICTURE = Image.fromarray(RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8))
APPLY, IGNORE = ({**PREPROCESS, "exif_orientation": value} for value in ("apply", "ignore"))


def exif_of(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def saved(path: Path, orientation: int, image: Image.Image = PICTURE) -> Path:
    image.save(path, exif=exif_of(orientation), lossless=True, quality=95)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_apply_turns_an_image_like_pillow(tmp_path: Path, name: str, orientation: int) -> None:
    path = saved(tmp_path / name, orientation)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    loaded = load_image(path)
    assert exif_orientation(loaded) == orientation
    expected = eval_transform(PREPROCESS)(upright)
    assert torch.equal(eval_transform(APPLY)(loaded), expected)
    ignored = eval_transform(IGNORE)(loaded)
    assert torch.equal(ignored, eval_transform(PREPROCESS)(loaded))
    assert torch.equal(ignored, expected) == (orientation == 1)


def test_training_images_are_turned_before_the_random_crop(tmp_path: Path) -> None:
    loaded = load_image(saved(tmp_path / "a.png", 6))
    upright = PICTURE.transpose(Image.Transpose.ROTATE_270)
    for augment in ("crop", "none"):
        results = []
        for preprocess, image in ((APPLY, loaded), (IGNORE, upright)):
            torch.manual_seed(3)
            results.append(train_transform(preprocess, augment=augment)(image))
        assert torch.equal(*results)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_orientation_survives_the_conversion_of_modes(tmp_path: Path, mode: str) -> None:
    grey = np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257
    image = Image.fromarray(grey) if mode == "I;16" else PICTURE.convert(mode)
    loaded = load_image(saved(tmp_path / "a.png", 8, image))
    assert exif_orientation(loaded) == 8
    upright = load_image(image).transpose(Image.Transpose.ROTATE_90)
    assert torch.equal(eval_transform(APPLY)(loaded), eval_transform(PREPROCESS)(upright))


def test_orientation_is_read_from_xmp_too(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    loaded = load_image(tmp_path / "a.png")
    assert exif_orientation(loaded) == 3
    assert torch.equal(
        eval_transform(APPLY)(loaded),
        eval_transform(PREPROCESS)(PICTURE.transpose(Image.Transpose.ROTATE_180)),
    )


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0" + b"\xff" * 20,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12",
        exif_of(0).tobytes(),
        exif_of(9).tobytes(),
    ],
)
def test_damaged_or_undefined_orientations_mean_upright(exif: bytes) -> None:
    file = io.BytesIO()
    PICTURE.save(file, "JPEG", exif=exif)
    loaded = load_image(file, name="a.jpg")
    assert exif_orientation(loaded) == 1
    assert torch.equal(eval_transform(APPLY)(loaded), eval_transform(IGNORE)(loaded))


def test_an_unknown_value_is_rejected() -> None:
    with pytest.raises(ModelError, match="exif_orientation 'maybe'; expected ignore or apply"):
        eval_transform({**PREPROCESS, "exif_orientation": "maybe"})


def test_a_border_is_cropped_from_the_sides_of_the_turned_image(tmp_path: Path) -> None:
    saved(make_images(tmp_path, ["a"], per_class=1) / "a" / "0.png", 6)
    cropped = load_image_of(open_image_set(f"{tmp_path}?crop_border=5"), 0)
    upright = PICTURE.crop((5, 5, 55, 35)).transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(eval_transform(APPLY)(cropped), eval_transform(PREPROCESS)(upright))


def rotated_set(folder: Path, orientations: list[int]) -> ImageSet:
    (folder / "a").mkdir(parents=True)
    for at, orientation in enumerate(orientations):
        saved(folder / "a" / f"{at}.jpg", orientation)
    return open_image_set(str(folder))


@pytest.mark.parametrize("preprocess", [APPLY, IGNORE])
def test_a_batch_names_the_images_with_an_orientation(
    tmp_path: Path, preprocess: dict[str, object]
) -> None:
    images = rotated_set(tmp_path / "set", [1, 6, 3, 1, 8])
    dataset = ImageDataset(images, [0] * 5, eval_transform(preprocess))
    assert collate_images([dataset[at] for at in (4, 0, 2)]).rotated == (4, 2)
    batches = [[4, 0, 2], [1, 3]]
    for workers in (0, 1):
        loaded = load_batches(dataset, batches, workers=workers, device=torch.device("cpu"))
        assert [batch.rotated for batch in loaded] == [(4, 2), (1,)]
    paths = [images.name_of(at) for at in range(5)] + ["missing.jpg"]
    transform = eval_transform(preprocess)
    for read_ahead in (True, False):
        (batch,) = load_paths(paths, transform, batch_size=8, workers=0, read_ahead=read_ahead)
        assert batch.rotated == (1, 2, 4)
        assert list(batch.unreadable) == [5]


def test_a_set_can_override_the_checkpoint(tmp_path: Path) -> None:
    images = rotated_set(tmp_path / "set", [6])
    assert images.preprocess(APPLY) == APPLY
    assert [images.misses_orientation(at) for at in (APPLY, IGNORE, PREPROCESS)] == [
        False, True, True
    ]  # fmt: skip
    for value, expected in (("apply", APPLY), ("ignore", IGNORE)):
        chosen = open_image_set(f"{tmp_path / 'set'}?exif_orientation={value}")
        assert [chosen.preprocess(at) for at in (APPLY, IGNORE, PREPROCESS)] == [expected] * 3
        assert not any(chosen.misses_orientation(at) for at in (APPLY, IGNORE, PREPROCESS))
        assert data_fingerprint(chosen) == data_fingerprint(images)
    with pytest.raises(UsageError, match="exif_orientation is 'yes'; expected ignore or apply"):
        open_image_set(f"{tmp_path / 'set'}?exif_orientation=yes")


def test_published_sets_ignore_the_orientation_as_their_published_results_do() -> None:
    cards = [read_dataset_card(name) for name in dataset_card_names()]
    assert {card.exif_orientation for card in cards} == {"ignore"}
    assert read_dataset_card("torchvision:FGVCAircraft").exif_orientation == "ignore"


def test_a_card_of_ones_own_states_the_orientation_or_leaves_it_to_the_checkpoint(
    tmp_path: Path,
) -> None:
    rotated_set(tmp_path / "set", [6])
    (tmp_path / "classes.txt").write_text("a\n")
    card = (
        "name: x\ntitle: x\nsource: x\nlicence: x\ncitation: x\nlayout: id-folders\n"
        "classes: classes.txt\nn_classes: 1\nn_images: 1\n"
    )
    spec = f"{tmp_path / 'set'}?card={tmp_path / 'x.yaml'}"
    for line, expected in (("", None), ("apply", "apply"), ("ignore", "ignore")):
        text = card + (f"exif_orientation: {line}\n" if line else "")
        (tmp_path / "x.yaml").write_text(text)
        assert open_image_set(spec).exif_orientation == expected
        assert open_image_set(f"{spec},exif_orientation=apply").exif_orientation == "apply"
    (tmp_path / "x.yaml").write_text(f"{card}exif_orientation: sometimes\n")
    with pytest.raises(DatasetError, match="'sometimes', expected ignore or apply"):
        open_image_set(spec)


def test_cards_without_the_field_mean_ignore() -> None:
    assert canonical_preprocess(IGNORE) == canonical_preprocess(PREPROCESS) == PREPROCESS
    assert canonical_preprocess(APPLY) == APPLY

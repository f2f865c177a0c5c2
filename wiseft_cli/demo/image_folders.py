"""Write the demo's image sets as folders of PNG files, with its class and template files.

    OUT/data/mnist/{train,val,test}/<class>/NNNN.png     in distribution
    OUT/data/<shift>/<class>/NNNN.png                    the ten distribution shifts
    OUT/classes.txt, OUT/templates.txt                   inputs of the zero-shot head

The commands that the demo runs know nothing about the digits beyond these files. The same seed
gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wiseft_cli.demo import shifts
from wiseft_cli.demo.effect import SHIFTS
from wiseft_cli.demo.embedded import DIGIT_NAMES, DigitAssets, LabelledDigits, load_digits

OPTDIGITS_PER_CLASS = 100
DERIVED_PER_CLASS = 50
TEMPLATES = (
    "a photo of the digit {}.",
    "a photo of the number {}.",
    "an image of the digit {}.",
    "a drawing of the number {}.",
    "a picture of the numeral {}.",
    "the digit {}.",
    "the number {}.",
    "a photo of a blurry digit {}.",
    "a handwritten digit {}.",
    "a white digit {} on a black background.",
    "a black digit {} on a white background.",
)


@dataclass(frozen=True)
class DemoData:
    """Paths of the demo's inputs.

    Attributes:
        train: In-distribution folder for fine-tuning.
        validation: In-distribution folder for choosing a recipe.
        test: In-distribution folder for the results.
        shifts: Folder by name, in the order of `effect.SHIFTS`.
        classes: Class list.
        templates: Template file.
    """

    train: Path
    validation: Path
    test: Path
    shifts: Mapping[str, Path]
    classes: Path
    templates: Path

    @property
    def class_folders(self) -> list[Path]:
        """The folders that contain images."""
        sets = (self.train, self.validation, self.test, *self.shifts.values())
        return [folder / name for folder in sets for name in DIGIT_NAMES]


def demo_paths(out: Path) -> DemoData:
    """Return the paths below `out`, which need not exist."""
    data = out / "data"
    mnist = data / "mnist"
    return DemoData(
        train=mnist / "train",
        validation=mnist / "val",
        test=mnist / "test",
        shifts={name: data / name for name in SHIFTS},
        classes=out / "classes.txt",
        templates=out / "templates.txt",
    )


def write_image_folders(out: Path) -> DemoData:
    """Write every image set, the class list and the templates below `out`.

    Args:
        out: Created if missing.
    Raises:
        FileExistsError: A class folder already exists.
    """
    paths = demo_paths(out)
    digits = load_digits()
    for folder, labelled in (
        (paths.train, digits.train),
        (paths.validation, digits.validation),
        (paths.test, digits.test),
    ):
        _write_set(folder, labelled.images, labelled.labels)
    for name, folder in paths.shifts.items():
        pictures, labels = make_shift(name, digits)
        _write_set(folder, _to_bytes(pictures), labels)
    paths.classes.write_text("".join(f"{name}\n" for name in DIGIT_NAMES))
    paths.templates.write_text("".join(f"{template}\n" for template in TEMPLATES))
    return paths


def make_shift(
    name: str, digits: DigitAssets, *, seed: int = 0
) -> tuple[Tensor, NDArray[np.uint8]]:
    """Make one set of `effect.SHIFTS`.

    Each set has its own generator, so it does not depend on which other sets are made.

    Returns:
        Pictures, roughly in [0, 1] but not clamped, shape (N, 1 or 3, 32, 32), and labels,
        shape (N,).
    """
    entropy = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(entropy, "big"))
    if name == "optdigits":
        chosen = _first_of_each_class(digits.optdigits, OPTDIGITS_PER_CLASS)
        return shifts.enlarge_optdigits(_to_tensor(chosen.images)), chosen.labels
    if name in shifts.DERIVATIONS:
        chosen = _first_of_each_class(digits.test, DERIVED_PER_CLASS)
        pictures = shifts.enlarge_mnist(_to_tensor(chosen.images))
        return shifts.DERIVATIONS[name](pictures, generator), chosen.labels
    draw = {"fonts": shifts.print_fonts, "fonts-colored": shifts.paint_fonts}[name]
    return draw(_to_tensor(digits.fonts.images), generator), digits.fonts.labels


def _first_of_each_class(digits: LabelledDigits, count: int) -> LabelledDigits:
    rows = [np.flatnonzero(digits.labels == digit)[:count] for digit in range(10)]
    index = np.sort(np.concatenate(rows))
    return LabelledDigits(digits.images[index], digits.labels[index])


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Convert bytes (N, H, W) to floats in [0, 1], shape (N, 1, H, W)."""
    return torch.from_numpy(images).float().div(255)[:, None]


def _to_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """Convert (N, C, H, W) to bytes: (N, H, W) for one channel, else (N, H, W, 3)."""
    bytes_ = pictures.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    array: NDArray[np.uint8] = bytes_.contiguous().numpy()
    return array[..., 0] if array.shape[3] == 1 else array


def _write_set(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Write one folder per class and one PNG per image, numbered across the set."""
    for name in DIGIT_NAMES:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / DIGIT_NAMES[label] / f"{number:04d}.png")

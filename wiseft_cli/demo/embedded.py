"""Load the files that ship with the demo: a tiny CLIP and three sources of digits.

`assets/` contains the files; docs/demo.md gives their sources and licences. `image_folders` turns
the digits into image sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class LabelledDigits:
    """Grayscale images of digits, white on black.

    Attributes:
        images: Shape (N, H, W), uint8.
        labels: The digits, shape (N,), uint8.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images, {len(self.labels)} labels")


@dataclass(frozen=True)
class DigitAssets:
    """The image sets in `assets/digits.npz`.

    Attributes:
        train: MNIST, 28 x 28.
        validation: MNIST, 28 x 28; disjoint from the other two.
        test: MNIST, 28 x 28; disjoint from the other two.
        optdigits: UCI optical digits, 8 x 8; values scaled from 0..16 to 0..255.
        fonts: Coverage masks of digits in fonts held out from pretraining, 48 x 48.
    """

    train: LabelledDigits
    validation: LabelledDigits
    test: LabelledDigits
    optdigits: LabelledDigits
    fonts: LabelledDigits


SET_NAMES = ("train", "validation", "test", "optdigits", "fonts")


def embedded_model_folder() -> Path:
    """Return the folder of the tiny CLIP, which open_clip loads as `local-dir:FOLDER`."""
    return _assets() / "tiny-clip"


def digits_path() -> Path:
    """Return the path of the digits' file."""
    return _assets() / "digits.npz"


def load_digits(path: Path | None = None) -> DigitAssets:
    """Load the digits from `path` (default: the file in the package), without unpickling."""
    with np.load(path or digits_path(), allow_pickle=False) as archive:
        return DigitAssets(
            **{
                name: LabelledDigits(archive[f"{name}_images"], archive[f"{name}_labels"])
                for name in SET_NAMES
            }
        )


def _assets() -> Path:
    return Path(str(files("wiseft_cli.demo"))) / "assets"

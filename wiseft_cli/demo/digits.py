"""The digits that ship with the package: `assets/digits.npz`, written by `pack`.

Two sources of real handwriting and the digits of held-out fonts, as they were published or
rendered; sources and licences are in docs/demo.md. How they become pictures is `image_folders`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelledDigits:
    """Gray images of digits, white on black.

    Attributes:
        images: Shape (N, H, W), uint8.
        labels: The digit, shape (N,), uint8.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images, {len(self.labels)} labels")


@dataclass(frozen=True)
class DigitAssets:
    """Everything in the asset file.

    Attributes:
        train: MNIST, 28 x 28.
        validation: MNIST, 28 x 28; disjoint from the other two.
        test: MNIST, 28 x 28; disjoint from the other two.
        optdigits: UCI optical digits, 8 x 8 with values scaled from 0..16 to 0..255.
        fonts: Masks of digits in fonts the embedded model never saw, 48 x 48.
    """

    train: LabelledDigits
    validation: LabelledDigits
    test: LabelledDigits
    optdigits: LabelledDigits
    fonts: LabelledDigits


SET_NAMES = ("train", "validation", "test", "optdigits", "fonts")


def digits_path() -> Path:
    """The asset file inside the installed package."""
    return Path(str(files("wiseft_cli.demo"))) / "assets" / "digits.npz"


def load_digits(path: Path | None = None) -> DigitAssets:
    """Read the asset file; nothing in it is unpickled."""
    with np.load(path or digits_path(), allow_pickle=False) as archive:
        return DigitAssets(
            **{
                name: LabelledDigits(archive[f"{name}_images"], archive[f"{name}_labels"])
                for name in SET_NAMES
            }
        )

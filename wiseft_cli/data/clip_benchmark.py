"""Image sets in the layout that CLIP_benchmark publishes on the hub.

A folder holds `classnames.txt`, `zeroshot_classification_templates.txt`, and per split a folder
with `nshards.txt` and the shards `0.tar`, `1.tar`, ...; labels are positions in `classnames.txt`.

Source: https://github.com/LAION-AI/CLIP_benchmark, `clip_benchmark/datasets/builder.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.shards import CLASS_NAMES_FILE, list_shards
from wiseft_cli.errors import DatasetError
from wiseft_cli.prompts.documents import read_text
from wiseft_cli.prompts.templates import CLIP_BENCHMARK_TEMPLATES

DEFAULT_SPLIT = "test"
_COUNT_FILE = "nshards.txt"


def find_splits(root: Path) -> tuple[str, ...]:
    """Return the splits of a folder in this layout; empty for any other folder."""
    try:
        return tuple(sorted(path.parent.name for path in root.glob(f"*/{_COUNT_FILE}")))
    except OSError:
        return ()


def class_names_file(root: Path) -> Path | None:
    """Return the class list of a folder in this layout, or None."""
    path = root / CLASS_NAMES_FILE
    return path if find_splits(root) and path.is_file() else None


def templates_file(root: Path) -> Path | None:
    """Return the templates of a folder in this layout, or None."""
    path = root / CLIP_BENCHMARK_TEMPLATES
    return path if find_splits(root) and path.is_file() else None


def list_clip_benchmark(root: Path, *, name: str | None, split: str | None) -> ImageSet:
    """List the images of one split.

    Args:
        name: Name of the set; by default that of the folder, with the split unless it is `test`.
        split: `test` by default.
    Raises:
        DatasetError: There is no such split, its `nshards.txt` is damaged, or a shard is missing
            or damaged.
    """
    splits, split = find_splits(root), split or DEFAULT_SPLIT
    if split not in splits:
        raise DatasetError(
            f"{root}: has no split {split!r}, found {', '.join(splits)}",
            hint=f"choose one: '{root}?split={splits[0]}'",
        )
    path = root / split / _COUNT_FILE
    text = read_text(path, DatasetError).strip()
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= 1_000_000:
        raise DatasetError(f"{path}: {text[:40]!r}, expected the number of shards")
    last = int(text) - 1
    pattern = f"{root}/{split}/{{0..{last}}}.tar" if last else f"{root}/{split}/0.tar"
    own = root.resolve().name if split == DEFAULT_SPLIT else f"{root.resolve().name}-{split}"
    images = list_shards(pattern, name=name or own)
    note = f"image set {images.name!r}: split {split} of a folder of CLIP_benchmark"
    return replace(images, notes=(note, *images.notes))

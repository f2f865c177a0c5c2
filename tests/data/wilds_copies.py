"""Write small copies of the WILDS sets: their folders, file names and CSV columns.

Six classes of each set are handwritten digits, which the embedded model distinguishes; the
pictures of all other classes are noise.
"""

from __future__ import annotations

import csv
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.demo.embedded import load_digits

# fmt: off
IWILDCAM_COLUMNS = (
    "", "split", "location_remapped", "location", "sequence_remapped", "seq_id", "y",
    "category_id", "datetime", "filename", "image_id",
)
FMOW_COLUMNS = (
    "split", "img_filename", "img_path", "spatial_reference", "epsg", "category", "visible",
    "img_width", "img_height", "country_code", "cloud_cover", "timestamp", "lat", "lon",
)
COUNTRY_COLUMNS = (
    "name", "alpha-2", "alpha-3", "country-code", "iso_3166-2", "region", "sub-region",
    "intermediate-region", "region-code", "sub-region-code", "intermediate-region-code",
)
# fmt: on
COUNTRIES = (
    ("Antarctica", "AQ", "ATA", ""),
    ("Australia", "AU", "AUS", "Oceania"),
    ("Brazil", "BR", "BRA", "Americas"),
    ("Congo, Democratic Republic of the", "CD", "COD", "Africa"),
    ("Côte d'Ivoire", "CI", "CIV", "Africa"),
    ("Germany", "DE", "DEU", "Europe"),
    ("India", "IN", "IND", "Asia"),
    ("Namibia", "NA", "NAM", "Africa"),
)
TIMES = (
    *(f"{year}-07-24T16:05:53Z" for year in range(2002, 2018)),
    *("2012-12-31T23:59:59Z", "2013-01-01T00:00:00Z"),
    *("2015-12-31T23:59:59Z", "2016-01-01T00:00:00Z"),
)
"""Every year, and both sides of the two dates that separate the splits."""


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a CSV file as pandas does; columns that a row lacks are empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


class Pictures:
    """Saves each picture of a kind once, in a fixed order."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        digits = load_digits().train
        self._left = {kind: list(digits.images[digits.labels == kind]) for kind in range(6)}

    def save(self, path: Path, kind: int | None) -> None:
        """Save the next picture of a kind, or noise."""
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = self._random.integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(noise if kind is None else self._left[kind].pop()).convert("RGB").save(path)


def make_iwildcam(root: Path, *, n_train: int = 16, n_test: int = 60) -> Path:
    """Write iwildcam_v2.0 below the root, with each of the 182 classes in its train split.

    Six classes have more images. In id_test, class 5 never occurs and a third of class 1 looks
    like it, so that predictions name a class without images.
    """
    folder, random, pictures = root / "iwildcam_v2.0", np.random.default_rng(0), Pictures(0)
    rows: list[dict[str, Any]] = []

    def add(split: str, y: int, kind: int | None) -> None:
        image_id = str(uuid.UUID(bytes=random.bytes(16)))
        at = len(rows)
        rows.append(
            {"split": split, "location_remapped": at % 7, "location": at % 7, "y": y}
            | {"sequence_remapped": at, "seq_id": image_id, "category_id": y}
            | {"datetime": f"2013-06-05 05:44:{at % 60:02d}.000"}
            | {"filename": f"{image_id}.jpg", "image_id": image_id}
        )
        pictures.save(folder / "train" / f"{image_id}.jpg", kind)

    for y in range(182):
        for _ in range(n_train if y < 6 else 1):
            add("train", y, y if y < 6 else None)
    for split, present in (("id_test", range(5)), ("test", range(1, 6))):
        for at in range(n_test):
            y = present[at * at % len(present)]
            looks_like = 5 if split == "id_test" and y == 1 and at % 3 == 0 else y
            add(split, y, looks_like)
    for split in ("id_val", "val"):
        for y in range(3):
            add(split, y, y)
    rows.sort(key=lambda row: (row["split"], row["location_remapped"], row["sequence_remapped"]))
    numbered = [{"": at} | row for at, row in enumerate(rows)]
    write_rows(folder / "metadata.csv", IWILDCAM_COLUMNS, numbered)
    (folder / "categories.csv").write_text("y,category_id,name\n0,0,empty\n")
    (folder / "RELEASE_v2.0.txt").write_text("")
    return folder


def make_fmow(root: Path, *, n_images: int = 700) -> Path:
    """Write fmow_v1.1 below the root, with every original split and time.

    Categories are the 62 in turn, then the first six at random. Countries are random, one of them
    missing in the mapping.
    """
    folder, random, pictures = root / "fmow_v1.1", np.random.default_rng(1), Pictures(1)
    categories = read_dataset_card("fmow").class_ids
    codes = [code for _, _, code, _ in COUNTRIES] + ["XKX"]
    rows: list[dict[str, Any]] = []
    for at in range(n_images):
        split = ("train", "test", "seq", "val", "test", "train", "test")[at % 7]
        kind = int(random.integers(6)) if at >= 62 else at
        country = codes[int(random.integers(len(codes)))]
        rows.append(
            {"split": split, "category": categories[kind], "country_code": country}
            | {"timestamp": TIMES[at % 20 if at < 100 else int(random.integers(8, 20))]}
            | {"img_filename": f"x_{at}_rgb.jpg", "img_path": f"{split}/x_{at}_rgb.jpg"}
        )
        if split != "seq":
            # Some images of Antarctica and the Americas, and all of Other, show another class.
            odd = {"XKX": 1, "ATA": 2, "BRA": 4}.get(country)
            is_odd = odd is not None and at % odd == 0
            looks_like = (kind + is_odd) % 6 if kind < 6 else None
            pictures.save(folder / "images" / f"rgb_img_{at}.png", looks_like)
    write_rows(folder / "rgb_metadata.csv", FMOW_COLUMNS, rows)
    countries = [
        {"name": name, "alpha-2": two, "alpha-3": three, "region": region}
        for name, two, three, region in COUNTRIES
    ]
    write_rows(folder / "country_code_mapping.csv", COUNTRY_COLUMNS, countries)
    (folder / "RELEASE_v1.1.txt").write_text("")
    return folder

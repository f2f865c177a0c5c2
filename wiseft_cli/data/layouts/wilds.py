"""iWildCam-WILDS and FMoW-WILDS: images, labels and splits from the tables of the package `wilds`.

Source: Koh et al. 2021, arXiv 2012.07421; appendix E.7 for the splits and regions of FMoW.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from wiseft_cli.data.files import file_sizes
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.local_copy import LocalCopy
from wiseft_cli.data.layouts.tables import read_columns, reject_faults
from wiseft_cli.data.records import ImageRecord, ImageRecords

_FMOW_SPLITS = ("train", "val", "test", "seq")
_OTHER = "Other"
_BLANK = "nan"


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    group: str | None = None


def list_iwildcam(copy: LocalCopy) -> ImageSet:
    """List one split of iWildCam from `metadata.csv`; all images are in `train/`.

    The card's class ids are the numbers in the column `y`.

    Raises:
        DatasetError: The table or images are missing, or rows cannot be used.
    """
    folder = copy.find_folder()
    copy.require_files(folder, ("metadata.csv", "train/"))
    table = folder / "metadata.csv"
    splits = {split.name for split in copy.card.splits}
    labels = {label: label for label in copy.card.labels}  # rows share one string per label
    rows: list[_Row] = []
    faults: list[str] = []
    for line, (split, label, file_name) in read_columns(table, ("split", "y", "filename"), faults):
        if split not in splits:
            faults.append(_fault(line, "split", split, f"one of {', '.join(sorted(splits))}"))
        elif split != copy.split.name:
            continue
        elif label not in labels:
            faults.append(_fault(line, "y", label, _one_of(copy.card.labels)))
        elif not file_name or "/" in file_name:
            faults.append(_fault(line, "filename", file_name, "a file in train/"))
        else:
            rows.append(_Row(line, f"train/{file_name}", labels[label]))
    return _image_set(copy, table, rows, faults)


@dataclass(frozen=True)
class _Period:
    """Defines a split of FMoW: the images of an original split taken from `start` to `end`."""

    original: str
    start: datetime | None
    end: datetime | None

    def contains(self, time: datetime) -> bool:
        return (self.start is None or self.start <= time) and (self.end is None or time < self.end)


def list_fmow(copy: LocalCopy) -> ImageSet:
    """List one split of FMoW from `rgb_metadata.csv`, whose row n is `images/rgb_img_n.png`.

    The card's class ids are the texts in the column `category`. An image's group is the region
    of its country in `country_code_mapping.csv`. As in the package `wilds`, images of countries
    that are not in that file (region Other) have no group, so they do not count in the worst
    region; a country with a blank region is in the group `nan`.

    Raises:
        DatasetError: A table or images are missing, rows cannot be used, or the card does not
            define the split.
    """
    period = _period(copy)
    folder = copy.find_folder()
    copy.require_files(folder, ("rgb_metadata.csv", "country_code_mapping.csv", "images/"))
    regions = _regions(folder / "country_code_mapping.csv")
    table = folder / "rgb_metadata.csv"
    faults: list[str] = []
    rows = list(_fmow_rows(table, copy.card.labels, period, regions, faults))
    images = _image_set(copy, table, rows, faults)
    n_other = sum(record.group is None for record in images.records)
    if not n_other:
        return images
    note = (
        f"image set {copy.name!r}: {n_other} images are in no region of country_code_mapping.csv;"
        " worst_group does not count them, as in WILDS"
    )
    return replace(images, notes=(note,))


def _fmow_rows(
    table: Path,
    labels: Sequence[str],
    period: _Period,
    regions: Mapping[str, str],
    faults: list[str],
) -> Iterator[_Row]:
    """Yield the usable rows of a period, and add a line to `faults` for each other one."""
    known = {label: label for label in labels}
    columns = ("split", "category", "country_code", "timestamp")
    # An image's number is that of its row, counted from 0 over the rows of all splits.
    for number, (line, cells) in enumerate(read_columns(table, columns, faults)):
        split, category, country, timestamp = cells
        if split not in _FMOW_SPLITS:
            faults.append(_fault(line, "split", split, f"one of {', '.join(_FMOW_SPLITS)}"))
        if split != period.original:
            continue
        time = _read_time(timestamp)
        if time is None:
            faults.append(
                _fault(line, "timestamp", timestamp, "a time such as 2015-07-24T16:05:53Z")
            )
        elif not period.contains(time):
            continue
        elif category not in known:
            faults.append(_fault(line, "category", category, _one_of(labels)))
        else:
            region = regions.get(country, _OTHER)
            group = None if _OTHER in region else region
            yield _Row(line, f"images/rgb_img_{number}.png", known[category], group)


def _period(copy: LocalCopy) -> _Period:
    """Return the period that the card's options define: `original`, `from` and `before`."""
    options = copy.split.options
    is_valid = options.get("original") in _FMOW_SPLITS
    is_valid &= options.keys() <= {"original", "from", "before"}
    try:
        start, end = (
            datetime.strptime(options[key], "%Y").replace(tzinfo=UTC) if key in options else None
            for key in ("from", "before")
        )
    except ValueError:
        is_valid = False
    if not is_valid:
        found = ", ".join(f"{key}: {value}" for key, value in options.items())
        raise copy.error(
            f"the card defines split {copy.split.name!r} by the options {{{found}}}",
            hint=f"expected `original`, one of {', '.join(_FMOW_SPLITS)}, and optionally the years"
            " `from` and `before`",
        )
    return _Period(options["original"], start, end)


def _regions(path: Path) -> dict[str, str]:
    """Return the region of each country, by its three-letter code."""
    faults: list[str] = []
    regions = {
        code: sys.intern(region) or _BLANK
        for _, (code, region) in read_columns(path, ("alpha-3", "region"), faults)
    }
    reject_faults(path, faults, unit="row", hint="is this the set's original file?")
    return regions


def _read_time(text: str) -> datetime | None:
    """Return a time with its zone; None if the text is not one."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if time.tzinfo is None else time


def _fault(line: int, column: str, found: str, expected: str) -> str:
    return f"line {line}: {column} is {found!r}, expected {expected}"


def _one_of(labels: Sequence[str]) -> str:
    return f"one of the {len(labels)} from {labels[0]} to {labels[-1]}"


def _image_set(copy: LocalCopy, table: Path, rows: Sequence[_Row], faults: list[str]) -> ImageSet:
    """Return the set of the rows' images.

    Args:
        table: The rows' file; its folder is the root of the set.
        faults: Faults of other rows.
    Raises:
        DatasetError: There are faults, repeated or missing images (all are listed), or no rows.
    """
    first: dict[str, _Row] = {}
    for row in rows:
        if first.setdefault(row.path, row) is not row:
            faults.append(f"line {row.line}: {row.path} is on line {first[row.path].line} too")
    sizes, missing = file_sizes(table.parent, first)
    faults += [f"line {first[path].line}: {path}: {missing[path]}" for path in missing]
    hint = f"is the copy complete and unchanged? Get it from {copy.card.source}"
    reject_faults(table, faults, unit="row", hint=hint)
    if not first:
        raise copy.error(f"{table} has no row of split {copy.split.name!r}")
    records = ImageRecords(
        ImageRecord(path, first[path].label, sizes[path], first[path].group)
        for path in sorted(first)
    )
    return ImageSet(copy.name, table.parent, records)

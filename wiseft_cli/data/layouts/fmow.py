"""FMoW-WILDS: rows of `rgb_metadata.csv` are images by their number; splits are made by date.

A split is one of the set's original splits (`original`), taken from the beginning of one year
(`from`) to that of another (`before`), UTC. An image's group is its country's region by
`country_code_mapping.csv`. As in the package `wilds`, a country that is not in there is of
region Other, which is no group: its images count everywhere but in the worst region. A country
whose region is blank there is in a group that pandas, and so `wilds`, calls nan.

Source: Koh et al. 2021, arXiv 2012.07421, appendix E.7.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.csv_table import read_columns
from wiseft_cli.data.layouts.faults import refuse
from wiseft_cli.data.layouts.places import find_folder, require_files
from wiseft_cli.data.layouts.table_images import image_set_of_rows
from wiseft_cli.data.manifest import Row
from wiseft_cli.errors import DatasetError

_TABLE = "rgb_metadata.csv"
_COUNTRIES = "country_code_mapping.csv"
_IMAGES = "images/"
_COLUMNS = ("split", "category", "country_code", "timestamp")
_ORIGINAL_SPLITS = ("train", "val", "test", "seq")
_OTHER = "Other"
_BLANK = "nan"


@dataclass(frozen=True)
class _Period:
    """The images of an original split that a split takes, by the time they were taken."""

    original: str
    start: datetime | None
    end: datetime | None

    def holds(self, time: datetime) -> bool:
        return (self.start is None or self.start <= time) and (self.end is None or time < self.end)


def list_fmow(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List one split; the card's class ids are the texts in the column `category`.

    Raises:
        DatasetError: A table or the images are not there, rows cannot be used, or the card does
            not say what the split is.
    """
    period = _period(card, part)
    folder = find_folder(card, part, root, name=name)
    require_files(card, part, folder, (_TABLE, _COUNTRIES, _IMAGES), name=name)
    regions = _regions(folder / _COUNTRIES)
    faults: list[str] = []
    rows = list(_rows(folder / _TABLE, card.labels, period, regions, faults))
    images = image_set_of_rows(card, part, folder / _TABLE, rows, faults, name=name)
    n_other = sum(record.group is None for record in images.records)
    note = (
        f"image set {name!r}: {n_other} images are in no region of {_COUNTRIES}; the worst region"
        " is of the others, as in WILDS"
    )
    return replace(images, notes=(note,)) if n_other else images


def _rows(
    table: Path,
    labels: Sequence[str],
    period: _Period,
    regions: Mapping[str, str],
    faults: list[str],
) -> Iterator[Row]:
    """Yield the usable rows of a period, and add a line to `faults` for each other one."""
    known = {label: label for label in labels}  # one text a label, not one a row
    # An image is called by its row's number from 0 on, those of all splits counted.
    numbered = enumerate(read_columns(table, _COLUMNS, faults))
    for number, (line, (split, category, country, timestamp)) in numbered:
        if split not in _ORIGINAL_SPLITS:
            expected = ", ".join(_ORIGINAL_SPLITS)
            faults.append(f"  line {line}: the split is {split!r}, expected one of {expected}")
        if split != period.original:
            continue
        time = _read_time(timestamp)
        if time is None:
            form = "expected a time such as 2015-07-24T16:05:53Z"
            faults.append(f"  line {line}: the timestamp is {timestamp!r}, {form}")
        elif not period.holds(time):
            continue
        elif category not in known:
            expected = f"one of the {len(labels)} from {labels[0]} to {labels[-1]}"
            faults.append(f"  line {line}: the category is {category!r}, expected {expected}")
        else:
            region = regions.get(country, _OTHER)
            group = None if _OTHER in region else region
            yield Row(line, f"{_IMAGES}rgb_img_{number}.png", known[category], split, group)


def _period(card: DatasetCard, part: Part) -> _Period:
    """Return what the card's options say of a split."""
    options = dict(part.options)
    original = options.pop("original", "")
    years = [options.pop(key, None) for key in ("from", "before")]
    if options or original not in _ORIGINAL_SPLITS or not all(map(_is_year, years)):
        found = ", ".join(f"{key}: {value}" for key, value in part.options.items())
        raise DatasetError(
            f"the card {card.name!r}: its split {part.split!r} has the options {{{found}}}",
            hint=f"a card of this layout has `original`, one of {', '.join(_ORIGINAL_SPLITS)}, and"
            " perhaps the years `from` and `before` for each split",
        )
    times = [None if year is None else datetime(int(year), 1, 1, tzinfo=UTC) for year in years]
    return _Period(original, *times)


def _is_year(text: str | None) -> bool:
    return text is None or (text.isascii() and text.isdigit() and len(text) == 4 and text > "0000")


def _regions(path: Path) -> dict[str, str]:
    """Return the region of each country, by its code of three letters."""
    faults: list[str] = []
    regions = {
        code: sys.intern(region) or _BLANK
        for _, (code, region) in read_columns(path, ("alpha-3", "region"), faults)
    }
    refuse(path, faults, what="rows", hint="is it the set's own file, unchanged?")
    return regions


def _read_time(text: str) -> datetime | None:
    """Return a time with its zone; None where the text is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if time.tzinfo is None else time

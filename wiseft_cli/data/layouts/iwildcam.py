"""iWildCam-WILDS: `metadata.csv` gives each image its split, its label and its file in `train/`.

Source: Koh et al. 2021, arXiv 2012.07421; the columns are those that the package `wilds` reads.
"""

from __future__ import annotations

from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.csv_table import read_columns
from wiseft_cli.data.layouts.places import find_folder, require_files
from wiseft_cli.data.layouts.table_images import image_set_of_rows
from wiseft_cli.data.manifest import Row

_TABLE = "metadata.csv"
_IMAGES = "train/"  # of every split
_COLUMNS = ("split", "y", "filename")


def list_iwildcam(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List one split; the card's class ids are the numbers in the column `y`.

    Raises:
        DatasetError: The table or the images are not there, or rows cannot be used.
    """
    folder = find_folder(card, part, root, name=name)
    require_files(card, part, folder, (_TABLE, _IMAGES), name=name)
    table = folder / _TABLE
    splits = {known.split for known in card.parts}
    labels = {label: label for label in card.labels}  # one text a label, not one a row
    rows: list[Row] = []
    faults: list[str] = []
    for line, (split, label, file_name) in read_columns(table, _COLUMNS, faults):
        if split not in splits:
            expected = ", ".join(sorted(splits))
            faults.append(f"  line {line}: the split is {split!r}, expected one of {expected}")
        elif split != part.split:
            continue
        elif label not in labels:
            expected = f"one of the {len(labels)} from {card.labels[0]} to {card.labels[-1]}"
            faults.append(f"  line {line}: the class y is {label!r}, expected {expected}")
        elif not file_name or "/" in file_name:
            faults.append(f"  line {line}: the file is {file_name!r}, expected one in {_IMAGES}")
        else:
            rows.append(Row(line, f"{_IMAGES}{file_name}", labels[label], split, None))
    return image_set_of_rows(card, part, table, rows, faults, name=name)

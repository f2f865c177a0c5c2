"""From the rows of a published set's table to its image set: every row's image, each once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.faults import refuse
from wiseft_cli.data.manifest import Row, image_records
from wiseft_cli.errors import DatasetError


def image_set_of_rows(
    card: DatasetCard,
    part: Part,
    table: Path,
    rows: Sequence[Row],
    faults: list[str],
    *,
    name: str,
) -> ImageSet:
    """Look up the images of the rows.

    Args:
        part: The split that they are.
        table: The file that the rows are of; its folder is the set's root.
        faults: What is wrong with other rows.
        name: What reports call the set.
    Raises:
        DatasetError: Rows that cannot be used, an image that stands there twice or is missing
            (all are listed), or no image at all.
    """
    first: dict[str, Row] = {}
    for row in rows:
        if first.setdefault(row.path, row) is not row:
            faults.append(
                f"  line {row.line}: {row.path} stands on line {first[row.path].line} too"
            )
    records = image_records(table.parent, [*first.values()], faults)
    remedy = f"is the copy whole and unchanged? {card.source} has the set"
    refuse(table, faults, what="rows", hint=remedy)
    if not records:
        raise DatasetError(f"image set {name!r}: {table} has no row of split {part.split!r}")
    return ImageSet(name, table.parent, tuple(sorted(records, key=lambda record: record.path)))

"""Results that look like a mistake: at chance, over one class, on a handful of images.

It judges finished results lines; it changes nothing and refuses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from wiseft_cli.reporting.results import ResultLine

FEW_IMAGES = 100
"""Below this, a 95 % interval is up to 20 points wide."""


def suspicious(lines: Sequence[ResultLine]) -> tuple[str, ...]:
    """Return one warning for each kind of doubt and image set, in the order of the sets."""
    of_set: dict[str, list[ResultLine]] = {}
    for line in lines:
        of_set.setdefault(line.set_name, []).append(line)
    return tuple(
        f"image set {name!r}: {doubt}"
        for name, of_one in of_set.items()
        for doubt in _doubts(of_one)
    )


def _doubts(lines: Sequence[ResultLine]) -> list[str]:
    doubts = []
    first = lines[0]
    if first.n_classes == 1:
        return ["has one class of the head, over which every image counts as right"]
    at_chance = [line for line in lines if line.metrics["top1"].low <= 1 / line.n_classes]
    if at_chance:
        which = "every row" if len(at_chance) == len(lines) else f"{len(at_chance)} rows"
        doubts.append(
            f"{which} of {len(lines)} no better than chance ({100 / first.n_classes:.2f} %);"
            " check that its folders mean the head's classes, and the class order of the head"
        )
    if first.n_images < FEW_IMAGES:
        doubts.append(f"only {first.n_images} images, so the intervals are wide")
    return doubts

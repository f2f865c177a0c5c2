"""Results that look like a mistake: at chance, far below other sets, on a handful of images.

It judges finished results lines; it changes nothing and refuses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from wiseft_cli.reporting.results import ResultLine

FEW_IMAGES = 100
"""Below this, a 95 % interval is up to 20 points wide."""

FAR_BELOW = 0.25
"""Share of the median skill on the other sets under which a set is doubted: low, since a hard
natural shift may well take more than half of a model's skill."""


def suspicious(lines: Sequence[ResultLine]) -> tuple[str, ...]:
    """Return one warning for each kind of doubt and image set, in the order of the sets."""
    of_set: dict[str, list[ResultLine]] = {}
    for line in lines:
        of_set.setdefault(line.set_name, []).append(line)
    skills = _skills(lines)
    return tuple(
        f"image set {name!r}: {doubt}"
        for name, of_one in of_set.items()
        for doubt in (*_doubts(of_one), *_doubts_beside_others(name, of_one, skills))
    )


def _skill(line: ResultLine, accuracy: float) -> float:
    """Return an accuracy's part of the way from chance, 0, to no error, 1."""
    chance = 1 / max(2, line.n_classes)
    return (accuracy - chance) / (1 - chance)


def _skills(lines: Sequence[ResultLine]) -> dict[object, dict[str, float]]:
    """Return for each weight set its skill on each image set."""
    skills: dict[object, dict[str, float]] = {}
    for line in lines:
        of_weights = skills.setdefault((line.weights_key, line.checkpoints), {})
        of_weights[line.set_name] = _skill(line, line.metrics["top1"].value)
    return skills


def _doubts_beside_others(
    name: str, lines: Sequence[ResultLine], skills: dict[object, dict[str, float]]
) -> list[str]:
    """Doubt a set on which every weight set is far below what it reaches on the others."""
    for line in lines:
        of_weights = skills[(line.weights_key, line.checkpoints)]
        others = [skill for other, skill in of_weights.items() if other != name]
        high = _skill(line, line.metrics["top1"].interval[1])
        if not others or line.n_classes == 1 or high >= FAR_BELOW * median(others):
            return []
        if line.metrics["top1"].interval[0] <= 1 / line.n_classes:
            return []  # told as being at chance
    return ["far below the same weights on the other sets; check the class order and the labels"]


def _doubts(lines: Sequence[ResultLine]) -> list[str]:
    doubts = []
    first = lines[0]
    if first.n_classes == 1:
        return ["has one class of the head, over which every image counts as right"]
    chance = 1 / first.n_classes
    at_chance = [line for line in lines if line.metrics["top1"].interval[0] <= chance]
    if at_chance:
        rows = (
            "every row"
            if len(at_chance) == len(lines)
            else f"{len(at_chance)} of {len(lines)} rows"
        )
        if any(line.metrics["top1"].value > chance for line in at_chance):
            doubt = f"cannot be told from chance ({100 * chance:.2f} %) by so few images"
        else:
            doubt = f"no better than chance ({100 * chance:.2f} %)"
        doubts.append(
            f"{rows} {doubt}; check that its labels mean the head's classes, and the class order of"
            " the head"
        )
    if first.n_counted < FEW_IMAGES:
        what = "images" if first.n_counted == first.n_images else "anchor frames"
        doubts.append(f"only {first.n_counted} {what}, so the intervals are wide")
    return doubts

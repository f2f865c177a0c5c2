"""What an evaluation would do, from its plan and a few decoded images of each set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from wiseft_cli.data.images import load_image_of
from wiseft_cli.errors import DatasetError, counted
from wiseft_cli.evaluation.plan import EvalPlan, Job

N_SAMPLED = 8
"""Images of each set that are decoded."""


@dataclass(frozen=True)
class PlannedSet:
    """An image set of a plan.

    Attributes:
        name: Name of the set.
        role: `reference`, `shift` or `selection`.
        n_images: Number of images.
        n_classes: Classes that compete for each image; several for heads of different classes.
        joins: How labels found their classes, in the same order.
        primary: Name of the primary metric.
        n_rows: Number of weight sets that are evaluated on it.
        n_held: Of these, how many the results file holds already.
        n_decoded: Sampled images that were decoded.
        unreadable: Why the other sampled images could not be read.
        decoding_seconds: Estimated time to decode all images on one CPU.
    """

    name: str
    role: str
    n_images: int
    n_classes: tuple[int, ...]
    joins: tuple[str, ...]
    primary: str
    n_rows: int
    n_held: int
    n_decoded: int
    unreadable: tuple[str, ...]
    decoding_seconds: float

    def __str__(self) -> str:
        joined = " and ".join(
            f"{n} classes joined by {join}"
            for n, join in zip(self.n_classes, self.joins, strict=True)
        )
        held = f", {self.n_held} of them held already" if self.n_held else ""
        return (
            f"{self.name}: {self.role}, {counted(self.n_images, 'image')}, {joined},"
            f" {self.primary}, {counted(self.n_rows, 'row')}{held}; decoded {self.n_decoded} of"
            f" {counted(self.n_decoded + len(self.unreadable), 'sampled image')}"
        )

    def document(self) -> dict[str, Any]:
        """Return the set as a JSON object."""
        return {name: value for name, value in vars(self).items() if name != "decoding_seconds"}


def inspect_sets(plan: EvalPlan) -> list[PlannedSet]:
    """Describe the sets of a plan, and decode a few images of each."""
    return [
        _inspect(list(jobs), plan)
        for _, jobs in groupby(plan.jobs, key=lambda job: job.image_set.name)
    ]


def _inspect(jobs: Sequence[Job], plan: EvalPlan) -> PlannedSet:
    image_set, line = jobs[0].image_set, jobs[0].line
    n_images = len(image_set.records)
    # Spread over the set: the first images are often of one class, or of one camera.
    sample = sorted({at * n_images // N_SAMPLED for at in range(N_SAMPLED)})
    unreadable = []
    start = time.perf_counter()
    for index in sample:
        try:
            load_image_of(image_set, index)
        except DatasetError as error:
            unreadable.append(error.message)
    joins = dict.fromkeys((len(job.join.columns), job.join.kind) for job in jobs)
    return PlannedSet(
        name=image_set.name,
        role=line.role,
        n_images=n_images,
        n_classes=tuple(n for n, _ in joins),
        joins=tuple(kind for _, kind in joins),
        primary=line.primary,
        n_rows=len(jobs),
        n_held=sum(job in plan.held for job in jobs),
        n_decoded=len(sample) - len(unreadable),
        unreadable=tuple(unreadable),
        decoding_seconds=(time.perf_counter() - start) / len(sample) * n_images,
    )

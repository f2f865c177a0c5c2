"""Results lines for tests, each field of which can be set."""

from __future__ import annotations

import hashlib
from typing import Any

from wiseft_cli.reporting.results import CheckpointName, Metric, ResultLine
from wiseft_cli.reporting.statistics import clopper_pearson


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


ZEROSHOT = CheckpointName("zeroshot", "zeroshot", digest("0"))
FINETUNED = CheckpointName("finetuned", "finetuned", digest("1"))


def line(set_name: str, n_correct: int, n_images: int = 1000, **fields: Any) -> ResultLine:
    alpha = fields.pop("alpha", None)
    metric = Metric(n_correct / n_images, *clopper_pearson(n_correct, n_images))
    defaults: dict[str, Any] = {
        "checkpoints": (ZEROSHOT,) if alpha is None else (ZEROSHOT, FINETUNED),
        "reference": False,
        "data_fingerprint": f"sha256:{hashlib.sha256(set_name.encode()).hexdigest()}",
        "n_unreadable": 0,
        "n_classes": 10,
        "join": "id",
        "primary": "top1",
        "metrics": {"top1": metric},
        "precision": "fp32",
        "version": "0.1.0",
    }
    return ResultLine(alpha=alpha, set_name=set_name, n_images=n_images, **(defaults | fields))


def sweep_lines(*, select_on: str | None = None) -> list[ResultLine]:
    """A bow over five alphas, one reference and two shifts."""
    values = {"0": (600, 500, 400), "0.25": (700, 560, 470), "0.5": (770, 580, 500)}
    values |= {"0.75": (800, 540, 480), "1": (805, 450, 380)}
    return [
        line(name, count, alpha=alpha, reference=name == "val", selection=name == select_on)
        for alpha, counts in values.items()
        for name, count in zip(("val", "shift-a", "shift-b"), counts, strict=True)
    ]

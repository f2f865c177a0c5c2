"""Results lines with saved predictions, for tests and measurements of reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.reporting.lines import FINETUNED, ZEROSHOT, line
from wiseft_cli.reporting.results import CheckpointName, ResultLine

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="hacked=2">'
"""A name that runs, or loads something, wherever it is not escaped."""

SEPARATORS = "a\u2028b\u2029'\"`{{7*7}}"
RIGHT_TO_LEFT = "\u202egnp.exe\u200f"


def write_inputs(
    folder: Path,
    *,
    alphas: Sequence[str] = ("0", "0.5", "1"),
    sets: Sequence[str] = ("val", "shift-a", "shift-b"),
    n_images: int = 60,
    class_names: Sequence[str] = ("cat", "dog", "bird"),
    checkpoints: tuple[CheckpointName, CheckpointName] = (ZEROSHOT, FINETUNED),
) -> list[ResultLine]:
    """Write files of predictions, and return the lines that name them.

    The first set is the reference. Accuracy rises with alpha there and falls on the others.
    """
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, set_name in enumerate(sets):
        labels = [class_names[at % len(class_names)] for at in range(n_images)]
        difficulty = random.random(n_images)
        for alpha in alphas:
            share = 0.6 + 0.3 * float(alpha) if number == 0 else 0.7 - 0.2 * float(alpha)
            right = difficulty + 0.15 * random.random(n_images) < share
            name = f"{number}.alpha-{alpha}.jsonl"
            texts = []
            for at, (label, is_right) in enumerate(zip(labels, right.tolist(), strict=True)):
                other = class_names[(class_names.index(label) + 1) % len(class_names)]
                found = label if is_right else other
                image = {"group": None, "id": found, "label": label, "name": found}
                image |= {"path": f"{at}.png", "probability": 0.99 - 0.5 * difficulty[at]}
                texts.append(json.dumps(image | {"right": is_right}, sort_keys=True))
            (folder / name).write_text("\n".join(texts) + "\n")
            lines.append(
                line(
                    set_name,
                    int(right.sum()),
                    n_images,
                    alpha=alpha,
                    checkpoints=checkpoints,
                    reference=number == 0,
                    extra={"predictions": name},
                )
            )
    return lines

"""The learning rate of each optimizer step: linear warm-up, then a cosine to zero or a constant.

Source: Wortsman et al. 2021, arXiv 2109.01903, section D.2. Steps are counted per batch, from
0. It does not touch an optimizer.
"""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, peak_lr: float, warmup_steps: int, steps: int, schedule: str = "cosine"
) -> float:
    """Return the learning rate of one step.

    With step s, warm-up W and T steps in all: peak_lr * (s + 1) / W for s < W; after that
    peak_lr * 0.5 * (1 + cos(pi * (s - W) / (T - W))), or peak_lr where the schedule is constant.

    Args:
        step: The step, from 0 to `steps` - 1.
        peak_lr: The rate that the warm-up ends with.
        warmup_steps: W, from 0 to `steps` - 1.
        steps: T, the number of steps of the whole run.
        schedule: `cosine` or `constant`.
    Raises:
        ValueError: The step or the warm-up is outside the run.
    """
    if not 0 <= step < steps or not 0 <= warmup_steps < steps:
        raise ValueError(f"step {step} with warm-up {warmup_steps} in a run of {steps} steps")
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak_lr
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return peak_lr * 0.5 * (1.0 + math.cos(math.pi * progress))

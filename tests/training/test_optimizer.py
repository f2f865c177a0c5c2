from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.training.optimizer import clip_gradients, learning_rate
from wiseft_cli.training.recipe import Recipe, resolve


def rates(*, warmup: int, steps: int, peak: float = 3e-5, schedule: str = "cosine") -> list[float]:
    recipe = resolve(Recipe(steps=steps, warmup=warmup, lr=peak, schedule=schedule), 1)
    return [learning_rate(step, recipe) for step in range(steps)]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (1, 2), (1, 9), (5, 6), (500, 1200)])
def test_learning_rates_equal_the_closed_form(warmup, steps):
    s = np.arange(steps, dtype=np.float64)
    rising = (s + 1) / max(warmup, 1)
    falling = (1 + np.cos(np.pi * (s - warmup) / (steps - warmup))) / 2
    expected = 3e-5 * np.where(s < warmup, rising, falling)
    np.testing.assert_allclose(rates(warmup=warmup, steps=steps), expected, rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 10), (1, 10), (4, 10)])
def test_learning_rates_equal_torch_schedulers(warmup, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    parts: list[torch.optim.lr_scheduler.LRScheduler] = [
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - warmup)
    ]
    if warmup:
        parts.insert(
            0,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / warmup),
        )
    found = []
    for phase, length in zip(parts, [warmup, steps - warmup] if warmup else [steps], strict=True):
        for group in optimizer.param_groups:
            group["lr"] = phase.get_last_lr()[0] if phase is parts[0] else 0.5
        for _ in range(length):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            phase.step()
    assert rates(warmup=warmup, steps=steps, peak=0.5) == pytest.approx(found, rel=1e-12)


def test_single_step_trains_at_the_peak():
    assert rates(warmup=0, steps=1, peak=0.25) == [0.25]


def test_warmup_of_one_step_starts_at_the_peak_and_stays_for_a_step():
    assert rates(warmup=1, steps=3, peak=0.25)[:2] == [0.25, 0.25]


@given(st.integers(1, 300), st.data())
def test_learning_rates_rise_to_the_peak_then_fall_and_never_reach_zero(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    found = rates(warmup=warmup, steps=steps, peak=1.0)
    assert all(0 < rate <= 1 for rate in found)
    assert max(found) == 1.0
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    assert math.isclose(found[warmup], 1.0)


def test_constant_schedule_stays_at_the_peak_after_the_warmup():
    assert rates(warmup=2, steps=5, peak=0.5, schedule="constant") == [0.25, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("step", [-1, 5])
def test_step_outside_the_run_raises(step):
    with pytest.raises(ValueError, match=f"step {step} in a run of 5 steps"):
        learning_rate(step, resolve(Recipe(steps=5), 1))


@pytest.mark.parametrize("warmup", [5, 500])
def test_warmup_as_long_as_the_run_only_rises(warmup):
    recipe = resolve(Recipe(steps=5, warmup=warmup, lr=1.0), 1)
    rates = [learning_rate(step, recipe) for step in range(5)]
    assert rates == pytest.approx([(step + 1) / warmup for step in range(5)])


def test_cosine_falls_to_min_lr():
    recipe = resolve(Recipe(steps=1000, warmup=0, lr=1.0, min_lr=0.25), 1)
    rates = [learning_rate(step, recipe) for step in range(1000)]
    assert rates[0] == 1.0
    assert rates[500] == pytest.approx(0.625)
    assert 0.25 < rates[-1] < 0.25001


@pytest.mark.parametrize(("bound", "expected"), [(1.0, 1.0), (10.0, 5.0), (0.0, 5.0)])
def test_gradients_are_clipped_by_their_global_norm_and_0_leaves_them(bound, expected):
    parameters = [torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(2))]
    parameters[0].grad = torch.tensor([3.0])
    parameters[1].grad = torch.tensor([0.0, 4.0])
    norm = clip_gradients(torch.optim.SGD(parameters, lr=1.0), bound)
    assert float(norm) == 5.0
    clipped = torch.cat([p.grad for p in parameters]).norm()
    assert float(clipped) == pytest.approx(expected, rel=1e-5)

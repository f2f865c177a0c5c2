"""What bounds it: a profile of ten steps of `wiseft finetune`, its top kernels and idle share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from tests.gpu.commands import Context, call
from tests.gpu.speed import settings

N_STEPS, N_KERNELS = 10, 10


def measure(context: Context) -> None:
    """Profile ViT-B-16 in bf16."""
    name, setting = next(
        (name, setting)
        for name, setting in settings(context)
        if context.is_reduced or name == "ViT-B-16 bf16"
    )
    skip = 2 * setting.workers
    words: list[object] = ["finetune", setting.checkpoint, "--train", setting.photos]
    words += ["--batch-size", setting.batch_size, "--precision", setting.precision]
    words += ["--device", context.device, "--workers", setting.workers, "--save-every", "never"]
    words += ["--steps", skip + N_STEPS + 1, "-o", context.folder("out") / "out"]
    is_cuda = context.device == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda
    profiler, n_done = profile(activities=activities), 0

    def follow(*_: object) -> None:
        nonlocal n_done
        n_done += 1
        if n_done in (skip, skip + N_STEPS):
            if is_cuda:
                torch.cuda.synchronize()
            profiler.start() if n_done == skip else profiler.stop()

    hook = register_optimizer_step_post_hook(follow)
    try:
        call(words)
    finally:
        hook.remove()
    record(context, f"{name}, {N_STEPS} steps", list(profiler.events() or []))


def record(context: Context, name: str, events: list[Any]) -> None:
    """Record the busiest kernels, or operators on a CPU, and the idle share of the device."""
    chosen = [
        event
        for event in events
        if not getattr(event, "is_user_annotation", False)
        and (
            event.device_type == DeviceType.CUDA
            if context.device == "cuda"
            else event.cpu_parent is None and event.device_type == DeviceType.CPU
        )
    ]
    spans = [(event.time_range.start, event.time_range.end) for event in chosen]
    ranges = [(event.time_range.start, event.time_range.end) for event in events]
    whole = max(end for _, end in ranges) - min(start for start, _ in ranges)
    busy = busy_time(spans)
    context.figures.add(f"{name}: time", whole / 1e3 / N_STEPS, "ms per step")
    context.figures.add(f"{name}: idle share of the device", 1 - busy / whole)
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event, (start, end) in zip(chosen, spans, strict=True):
        total[event.name] += end - start
        calls[event.name] += 1
    for kernel, spent in total.most_common(N_KERNELS):
        note = f"{100 * spent / busy:.1f} % of the busy time, {calls[kernel] / N_STEPS:g} per step"
        context.figures.add(kernel[:100], spent / 1e3 / N_STEPS, "ms per step", note=note)


def busy_time(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans (start, end)."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy

"""What bounds it: a profile of ten steps of `wiseft finetune`, its top kernels and idle share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from tests.gpu.commands import Context, call
from tests.gpu.speed import settings

N_STEPS, N_KERNELS = 10, 10


def measure(context: Context) -> None:
    """Profile ViT-B-16 in bf16."""
    setting = next(s for s in settings(context) if context.is_reduced or "B-16 bf16" in s.name)
    is_cuda, skip, n_done = context.device == "cuda", 2 * setting.workers, 0
    profiler = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_cuda])

    def follow(*_: object) -> None:
        nonlocal n_done
        n_done += 1
        if n_done in (skip, skip + N_STEPS):
            setting.now()
            (profiler.start if n_done == skip else profiler.stop)()

    words = ["finetune", setting.checkpoint, "--train", setting.photos, *setting.words]
    words += ["--save-every", "never", "-o", context.folder("profiled") / "out"]
    hook = register_optimizer_step_post_hook(follow)
    try:
        call([*words, "--steps", skip + N_STEPS + 1])
    finally:
        hook.remove()
    record(context, f"{setting.name}, {N_STEPS} steps", list(profiler.events() or []))


def record(context: Context, name: str, events: list[Any]) -> None:
    """Record the busiest kernels, or operators on a CPU, and the idle share of the device."""
    kind = DeviceType.CUDA if context.device == "cuda" else DeviceType.CPU
    chosen = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in events
        if event.device_type == kind
        and event.cpu_parent is None
        and not getattr(event, "is_user_annotation", False)
    ]
    ranges = [event.time_range for event in events]
    whole = max(span.end for span in ranges) - min(span.start for span in ranges)
    busy = busy_time((start, end) for start, end, _ in chosen)
    context.figures.add(f"{name}: time", whole / 1e3 / N_STEPS, "ms per step")
    context.figures.add(f"{name}: idle share of the device", 1 - busy / whole)
    total, calls = Counter[str](), Counter[str]()
    for start, end, kernel in chosen:
        total[kernel] += end - start
        calls[kernel] += 1
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

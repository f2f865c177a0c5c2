"""Fast: images per second against a bare loop with the same options and against ready tensors.

Commands run in this process, without their start. A bare loop has the same transform, batch size,
workers, pinned memory, precision and optimizer. Ready tensors on the device are the ceiling.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter
from torchvision.datasets import ImageFolder

from tests.gpu.commands import Context, call
from tests.gpu.inputs import checkpoints
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform, train_transform

PRECISIONS = ("bf16", "fp32")
SHARE_OF_BARE_LOOP = 0.9
SHARE_OF_ESTIMATE = 1.2


class Fetch(NamedTuple):
    """One batch that a DataLoader handed out: when it was asked for, when it came."""

    asked: float
    came: float
    n_images: int
    is_pinned: bool


class Setting(NamedTuple):
    """What all sides of a comparison share."""

    device: str
    photos: Path
    checkpoint: Path
    precision: str
    batch_size: int
    workers: int
    seconds: float


@contextmanager
def watched_loaders() -> Iterator[list[Fetch]]:
    """Note every batch that any DataLoader of this process hands out."""
    fetches: list[Fetch] = []
    original = _BaseDataLoaderIter.__next__

    def timed(self: Any) -> Any:
        asked = time.perf_counter()
        batch = original(self)
        came = time.perf_counter()
        fetches.append(Fetch(asked, came, len(batch[0]), batch[0].is_pinned()))
        return batch

    _BaseDataLoaderIter.__next__ = timed  # type: ignore[method-assign]
    try:
        yield fetches
    finally:
        _BaseDataLoaderIter.__next__ = original  # type: ignore[method-assign]


def steady(fetches: list[Fetch], skip: int, end: float | None = None) -> tuple[float, float]:
    """Return images per second and the share of time spent waiting for data.

    Args:
        fetches: In order.
        skip: Batches before the time that counts.
        end: When the last batch was done; by default the last batch does not count.
    """
    counted = fetches[skip:] if end is not None else fetches[skip:-1]
    seconds = (fetches[-1].asked if end is None else end) - counted[0].asked
    waited = sum(fetch.came - fetch.asked for fetch in counted)
    return sum(fetch.n_images for fetch in counted) / seconds, waited / seconds


def settings(context: Context) -> Iterator[tuple[str, Setting]]:
    """Yield a name and a setting for every precision and model, the fastest precision first."""
    few = context.is_reduced
    workers = 2 if few else min(8, torch.get_num_threads())
    for precision in PRECISIONS[: 1 if few else None]:
        for model, path in checkpoints(context).items():
            batch = 8 if few else 64 if "-L-" in model else 128
            setting = Setting(
                context.device, context.work / "photos", path, precision, batch, workers, 4.0
            )
            yield f"{model} {precision}", setting._replace(seconds=0.2) if few else setting


def measure_finetune(context: Context) -> None:
    """Compare fine-tuning with the bare loop and with ready tensors, and memory with --dry-run."""
    for name, setting in settings(context):
        ready = rate_of_ready_tensors(setting, train_step)
        context.figures.add(f"{name}: ready tensors", ready, "images/s")
        if setting.precision == "fp32" and context.device == "cuda":
            torch.set_float32_matmul_precision("high")
            tf32 = rate_of_ready_tensors(setting, train_step)
            torch.set_float32_matmul_precision("highest")
            context.figures.add(f"{name}: ready tensors with TF32", tf32, "images/s")
        counted = int(min(max(setting.seconds * ready / setting.batch_size, 4), 32))
        skip = min(2 * setting.workers, counted)
        bare, bare_wait = steady(bare_finetune(setting, skip + counted), skip)
        output = context.work / f"finetuned-{setting.checkpoint.name}"
        fetches, peak, estimate = finetune(setting, output, skip + counted)
        ours, wait = steady(fetches, skip)
        note = f"waits for data {100 * wait:.0f} % of the time, the bare loop {100 * bare_wait:.0f}"
        context.figures.add(f"{name}: bare loop", bare, "images/s")
        context.figures.add(f"{name}: wiseft finetune", ours, "images/s", note=note)
        context.figures.at_least(
            f"{name}: share of the bare loop", ours / bare, _limit(context, SHARE_OF_BARE_LOOP)
        )
        if context.device == "cuda":
            pinned = all(fetch.is_pinned for fetch in fetches)
            context.figures.holds(f"{name}: images come in pinned memory", pinned)
            note = f"peak {peak / 1e9:.2f} GB, --dry-run {estimate / 1e9:.2f} GB"
            check = f"{name}: peak device memory over what --dry-run said"
            context.figures.at_most(check, peak / estimate, SHARE_OF_ESTIMATE, note=note)


def _limit(context: Context, limit: float) -> float:
    """Return a limit on speed, or none where the scale is too small for one."""
    return 0.0 if context.is_reduced else limit


def finetune(setting: Setting, output: Path, steps: int) -> tuple[list[Fetch], int, int]:
    """Run `wiseft finetune`; return its batches, its peak device memory and the estimate."""
    words: list[object] = ["finetune", setting.checkpoint, "--train", setting.photos]
    words += ["--batch-size", setting.batch_size, "--precision", setting.precision]
    words += ["--device", setting.device, "--workers", setting.workers, "--steps", steps]
    words += ["--save-every", "never", "--force", "-o", output]
    estimate = json.loads(call([*words, "--dry-run", "--json"]))["memory_bytes"]
    before = 0
    if setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with watched_loaders() as fetches:
        call(words)
    peak = torch.cuda.max_memory_allocated() - before if setting.device == "cuda" else 0
    return fetches, peak, estimate


def bare_finetune(setting: Setting, steps: int) -> list[Fetch]:
    """Train in a plain loop; return its batches."""
    classifier, card = load_classifier(setting.checkpoint, device=setting.device)
    transform = train_transform(card.preprocess or {}, augment="crop")
    images = ImageFolder(str(setting.photos), transform, loader=Image.open)
    sampler = RandomSampler(images, num_samples=steps * setting.batch_size)
    step = train_step(classifier, setting)
    with watched_loaders() as fetches:
        for batch, targets in _loader(setting, images, sampler):
            step(_moved(batch, setting), _moved(targets, setting))
    return fetches


def _loader(setting: Setting, images: ImageFolder, sampler: Iterable[int]) -> Iterable[Any]:
    return DataLoader(
        images,
        batch_size=setting.batch_size,
        sampler=sampler,
        num_workers=setting.workers,
        pin_memory=setting.device == "cuda",
    )


def _moved(tensor: torch.Tensor, setting: Setting) -> torch.Tensor:
    return tensor.to(setting.device, non_blocking=True)


Step = Callable[[torch.Tensor, torch.Tensor], object]


def logits_of(classifier: Any, setting: Setting, images: torch.Tensor) -> torch.Tensor:
    """Return logits with the encoder in the precision and the head in float32."""
    is_mixed = setting.precision == "bf16"
    with torch.autocast(setting.device, torch.bfloat16, enabled=is_mixed):
        features = classifier.visual(images)
    return classifier.classification_head(functional.normalize(features.float(), dim=-1))


def train_step(classifier: Any, setting: Setting) -> Step:
    """Return one step of AdamW on images and targets; it waits for the loss."""
    classifier.train()
    parameters = list(classifier.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-5, weight_decay=0.1, fused=True)

    def step(images: torch.Tensor, targets: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(logits_of(classifier, setting, images), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.item()

    return step


def forward_step(classifier: Any, setting: Setting) -> Step:
    """Return one forward pass that counts correct predictions."""
    classifier.eval()

    @torch.inference_mode()
    def step(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (logits_of(classifier, setting, images).argmax(dim=1) == targets).sum()

    return step


def rate_of_ready_tensors(
    setting: Setting, make_step: Callable[[Any, Setting], Step], backend: str | None = None
) -> float:
    """Return images per second of a step on a batch that lies on the device."""
    classifier, card = load_classifier(setting.checkpoint, device=setting.device)
    if backend:
        classifier.visual = torch.compile(classifier.visual, backend=backend)
    size = (card.preprocess or {})["size"]
    side = size if isinstance(size, int) else size[0]
    images = torch.randn(setting.batch_size, 3, side, side, device=setting.device)
    targets = torch.randint(len(card.classes), (setting.batch_size,), device=setting.device)
    step = make_step(classifier, setting)
    for _ in range(3):
        step(images, targets)
    n_steps, begin = 0, _now(setting)
    while n_steps < 3 or time.perf_counter() - begin < setting.seconds / 2:
        for _ in range(3):
            step(images, targets)
        n_steps += 3
        _now(setting)
    return n_steps * setting.batch_size / (_now(setting) - begin)


def _now(setting: Setting) -> float:
    """Return the time once the device has done its work."""
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_eval(context: Context) -> None:
    """Compare evaluation with the bare loop and ready tensors, and eleven alphas with one."""
    for name, setting in settings(context):
        ready = rate_of_ready_tensors(setting, forward_step)
        context.figures.add(f"{name}: ready tensors", ready, "images/s")
        pairs = [(bare_eval(setting), evaluate(setting)) for _ in range(2)]
        bare, bare_wait = max(pair[0] for pair in pairs)
        ours, wait = max(pair[1] for pair in pairs)
        note = f"waits for data {100 * wait:.0f} % of the time, the bare loop {100 * bare_wait:.0f}"
        context.figures.add(f"{name}: bare loop", bare, "images/s")
        context.figures.add(f"{name}: wiseft eval", ours, "images/s", note=note)
        context.figures.at_least(
            f"{name}: share of the bare loop", ours / bare, _limit(context, SHARE_OF_BARE_LOOP)
        )
        finetuned = context.work / f"finetuned-{setting.checkpoint.name}"
        check = f"{name}: eleven alphas, times the time of one"
        if setting.precision != "bf16":
            continue
        if not finetuned.exists():
            context.figures.skip(check, "finetune left no checkpoint")
            continue
        one, eleven = (evaluate(setting, finetuned, alpha)[0] for alpha in ("0.5", "0:1:0.1"))
        context.figures.add(check, one / eleven, note=f"{one:.0f} and {eleven:.0f} images/s")


def evaluate(
    setting: Setting, finetuned: Path | None = None, alpha: str = "0.5"
) -> tuple[float, float]:
    """Run `wiseft eval`; return its images per second and its share of waiting."""
    words: list[object] = ["eval", setting.checkpoint, "--data", setting.photos, "--json"]
    if finetuned:
        words += [finetuned, "--alpha", alpha]
    words += ["--batch-size", setting.batch_size, "--precision", setting.precision]
    words += ["--device", setting.device, "--workers", setting.workers]
    with watched_loaders() as fetches:
        call(words)
        return steady(fetches, 0, _now(setting))


def bare_eval(setting: Setting) -> tuple[float, float]:
    """Evaluate in a plain loop; return as `evaluate`."""
    classifier, card = load_classifier(setting.checkpoint, device=setting.device)
    images = ImageFolder(
        str(setting.photos), eval_transform(card.preprocess or {}), loader=Image.open
    )
    step, counts = forward_step(classifier, setting), []
    with watched_loaders() as fetches:
        for batch, targets in _loader(setting, images, range(len(images))):
            counts.append(step(_moved(batch, setting), _moved(targets, setting)))
        torch.stack(counts).sum().item()
        return steady(fetches, 0, _now(setting))


def measure_compile(context: Context) -> None:
    """Measure what torch.compile would give: wiseft has no option for it."""
    for name, setting in settings(context):
        if "ViT-B-16 bf16" not in name and not context.is_reduced:
            continue
        backend = "eager" if context.is_reduced else "inductor"
        plain = rate_of_ready_tensors(setting, train_step)
        begin = time.perf_counter()
        compiled = rate_of_ready_tensors(setting, train_step, backend)
        note = f"{time.perf_counter() - begin:.0f} s with compiling"
        check = f"{name}: ready tensors, torch.compile over plain"
        context.figures.add(check, compiled / plain, note=note)

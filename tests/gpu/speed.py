"""Fast: images per second against a bare loop with the same options and against ready tensors.

Commands run in this process, without their start. A bare loop has the same transform, batch size,
workers, pinned memory, precision and optimizer. Ready tensors on the device are the ceiling.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
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
from tests.gpu.inputs import checkpoint, models
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform, train_transform

SHARE_OF_BARE_LOOP = 0.9
SHARE_OF_ESTIMATE = 1.2
Step = Callable[[torch.Tensor, torch.Tensor], Any]


class Setting(NamedTuple):
    """What all sides of a comparison share; `seconds` is how long each aims to run."""

    name: str
    device: str
    photos: Path
    checkpoint: Path
    precision: str
    batch_size: int
    workers: int
    seconds: float

    @property
    def words(self) -> list[object]:
        """Options of finetune and eval."""
        options = ["--batch-size", self.batch_size, "--precision", self.precision]
        return [*options, "--workers", self.workers, "--device", self.device]

    def now(self) -> float:
        """Return the time once the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def settings(context: Context) -> Iterator[Setting]:
    """Yield a setting for each precision and model, the fastest precision first."""
    photos, few = context.work / "photos", context.is_reduced
    workers = 2 if few else min(8, len(os.sched_getaffinity(0)))
    for precision in ("bf16",) if few else ("bf16", "fp32"):
        for model in models(context):
            batch, path = (8 if few else 64 if "-L-" in model else 128), checkpoint(context, model)
            how = (precision, batch, workers, 0.2 if few else 4.0)
            yield Setting(f"{model} {precision}", context.device, photos, path, *how)


class Fetch(NamedTuple):
    """One batch of a DataLoader: when it was asked for and when it came."""

    asked: float
    came: float
    n_images: int
    is_pinned: bool


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


def rates(fetches: list[Fetch], skip: int = 0, end: float | None = None) -> tuple[float, float]:
    """Return images per second and the share of the time spent waiting for data.

    Args:
        fetches: In order.
        skip: Batches before the time that counts.
        end: When all work was done; without it the last batch does not count.
    """
    counted = fetches[skip:] if end else fetches[skip:-1]
    seconds = (end or fetches[-1].asked) - counted[0].asked
    waited = sum(fetch.came - fetch.asked for fetch in counted)
    return sum(fetch.n_images for fetch in counted) / seconds, waited / seconds


def measure_finetune(context: Context) -> None:
    """Compare fine-tuning with the bare loop and with ready tensors, and memory with --dry-run."""
    for setting in settings(context):
        name, add = setting.name, context.figures.add
        ready = rate_of_ready_tensors(setting, train_step)
        add(f"{name}: ready tensors", ready, "images/s")
        if setting.precision == "fp32":
            torch.set_float32_matmul_precision("high")
            tf32 = rate_of_ready_tensors(setting, train_step)
            torch.set_float32_matmul_precision("highest")
            add(f"{name}: ready tensors with TF32", tf32, "images/s")
        n_counted = int(min(max(setting.seconds * ready / setting.batch_size, 4), 32))
        skip = min(2 * setting.workers, n_counted)  # the loader reads so many batches ahead
        bare = rates(bare_finetune(setting, skip + n_counted), skip)
        fetches, peak, estimate = finetune(context, setting, skip + n_counted)
        compare(context, name, "finetune", rates(fetches, skip), bare)
        if context.device == "cuda":
            is_pinned = all(fetch.is_pinned for fetch in fetches)
            context.figures.holds(f"{name}: images come in pinned memory", is_pinned)
            note = f"peak {peak / 1e9:.2f} GB, --dry-run {estimate / 1e9:.2f} GB"
            check = f"{name}: peak device memory over what --dry-run said"
            context.figures.at_most(check, peak / estimate, SHARE_OF_ESTIMATE, note=note)


def compare(
    context: Context, name: str, command: str, ours: tuple[float, float], bare: tuple[float, float]
) -> None:
    """Record images per second of a command and of its bare loop; the limit is for full scale."""
    limit = 0.0 if context.is_reduced else SHARE_OF_BARE_LOOP
    for side, (rate, waiting) in ((f"wiseft {command}", ours), ("bare loop", bare)):
        note = f"waits for data {100 * waiting:.0f} % of the time"
        context.figures.add(f"{name}: {side}", rate, "images/s", note=note)
    context.figures.at_least(f"{name}: share of the bare loop", ours[0] / bare[0], limit)


def finetune(context: Context, setting: Setting, steps: int) -> tuple[list[Fetch], int, int]:
    """Run `wiseft finetune`; return its batches, its peak device memory and the estimate."""
    output = context.work / f"finetuned-{setting.checkpoint.name}"
    words = ["finetune", setting.checkpoint, "--train", setting.photos, "--steps", steps]
    words += ["--save-every", "never", "--force", "-o", output, *setting.words]
    estimate = json.loads(call([*words, "--dry-run", "--json"]))["memory_bytes"]
    if is_cuda := setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if is_cuda else 0
    with watched_loaders() as fetches:
        call(words)
    return fetches, torch.cuda.max_memory_allocated() - before if is_cuda else 0, estimate


def bare_finetune(setting: Setting, steps: int) -> list[Fetch]:
    """Train in a plain loop; return its batches."""
    classifier, card = load_classifier(setting.checkpoint, device=setting.device)
    transform = train_transform(card.preprocess or {}, augment="crop")
    images = ImageFolder(str(setting.photos), transform, loader=Image.open)
    sampler = RandomSampler(images, num_samples=steps * setting.batch_size)
    with watched_loaders() as fetches:
        run_plainly(setting, images, sampler, train_step(classifier, setting))
    return fetches


def run_plainly(setting: Setting, images: ImageFolder, sampler: Any, step: Step) -> list[Any]:
    """Load images and step over their batches; return what each step returned."""
    loader = DataLoader(
        images,
        batch_size=setting.batch_size,
        sampler=sampler,
        num_workers=setting.workers,
        pin_memory=setting.device == "cuda",
    )
    return [step(*(t.to(setting.device, non_blocking=True) for t in batch)) for batch in loader]


def logits_of(classifier: Any, setting: Setting, images: torch.Tensor) -> torch.Tensor:
    """Return logits, with the encoder in the precision and the head in float32."""
    with torch.autocast(setting.device, torch.bfloat16, enabled=setting.precision == "bf16"):
        features = classifier.visual(images)
    return classifier.classification_head(functional.normalize(features.float(), dim=-1))


def train_step(classifier: Any, setting: Setting) -> Step:
    """Return one step of AdamW that waits for its loss."""
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
    size = card.preprocess["size"]
    shape = (setting.batch_size, 3, *(size if isinstance(size, list) else (size, size)))
    images = torch.randn(shape, device=setting.device)
    targets = torch.randint(len(card.classes), shape[:1], device=setting.device)
    step = make_step(classifier, setting)
    for _ in range(3):
        step(images, targets)
    n_images, begin = 0, setting.now()
    while n_images == 0 or setting.now() - begin < setting.seconds / 2:
        for _ in range(3):
            step(images, targets)
        n_images += 3 * setting.batch_size
    return n_images / (setting.now() - begin)


def measure_eval(context: Context) -> None:
    """Compare evaluation with the bare loop and ready tensors, and eleven alphas with one."""
    for setting in settings(context):
        name = setting.name
        ready = rate_of_ready_tensors(setting, forward_step)
        context.figures.add(f"{name}: ready tensors", ready, "images/s")
        pairs = [(evaluate(setting), bare_eval(setting)) for _ in range(2)]
        ours, bare = (max(side) for side in zip(*pairs, strict=True))
        compare(context, name, "eval", ours, bare)
        if setting.precision != "bf16":
            continue
        check = f"{name}: eleven alphas, times the time of one"
        finetuned = context.work / f"finetuned-{setting.checkpoint.name}"
        if not finetuned.exists():
            context.figures.skip(check, "finetune left no checkpoint")
            continue
        one, eleven = (
            evaluate(setting, finetuned, "--alpha", alpha)[0] for alpha in ("0.5", "0:1:0.1")
        )
        context.figures.add(check, one / eleven, note=f"{one:.0f} and {eleven:.0f} images/s")


def evaluate(setting: Setting, *more: object) -> tuple[float, float]:
    """Run `wiseft eval`; return its rates from its first batch on."""
    words = ["eval", setting.checkpoint, *more, "--data", setting.photos, *setting.words]
    with watched_loaders() as fetches:
        call([*words, "--json"])
        return rates(fetches, end=setting.now())


def bare_eval(setting: Setting) -> tuple[float, float]:
    """Evaluate in a plain loop; return its rates."""
    classifier, card = load_classifier(setting.checkpoint, device=setting.device)
    transform = eval_transform(card.preprocess or {})
    images = ImageFolder(str(setting.photos), transform, loader=Image.open)
    with watched_loaders() as fetches:
        step = forward_step(classifier, setting)
        torch.stack(run_plainly(setting, images, range(len(images)), step)).sum().item()
        return rates(fetches, end=setting.now())


def measure_compile(context: Context) -> None:
    """Measure what torch.compile would give; wiseft has no option for it."""
    setting = next(s for s in settings(context) if context.is_reduced or "B-16 bf16" in s.name)
    check = f"{setting.name}: ready tensors, torch.compile over plain"
    plain = rate_of_ready_tensors(setting, train_step)
    begin = time.perf_counter()
    try:
        backend = "eager" if context.is_reduced else "inductor"
        compiled = rate_of_ready_tensors(setting, train_step, backend)
    except Exception as error:  # a machine may lack a compiler
        context.figures.skip(check, f"{type(error).__name__}: {str(error)[:200]}")
        return
    note = f"{time.perf_counter() - begin:.0f} s with compiling"
    context.figures.add(check, compiled / plain, note=note)

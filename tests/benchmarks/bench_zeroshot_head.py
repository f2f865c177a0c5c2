"""Compare building a zero-shot head with open_clip and with a loop over classes.

    python tests/benchmarks/bench_zeroshot_head.py [--model ViT-B-32] [--classes 20] [--repeats 2]
    python tests/benchmarks/bench_zeroshot_head.py --memory

The classes are a sample of ImageNet's, evenly spaced, with OpenAI's 80 templates; weights are
random, float32, on the CPU. Each run is a process of its own, and the sides alternate, so that load
on the machine affects all of them. The run with the fewest CPU seconds of each side is reported.
Seconds are those of tokenizing and encoding alone; the peak is the largest resident set of the
process. The ceiling is the speed-up that omitting padding alone can give: the context length over
the mean length, for the sample and for all 80,000 prompts. With --memory: peaks for several numbers
of classes, and while a checkpoint is written.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

SIDES = ("open_clip", "loop", "wiseft")
SIDE_NAMES = {
    "open_clip": "`open_clip.build_zero_shot_classifier`",
    "loop": "a loop over classes",
    "wiseft": "`wiseft zeroshot-head`",
}
MIB = 2**20
TOLERANCE = 1e-5
CLASS_COUNTS = (1_000, 21_000)
"""Numbers of classes whose peaks are compared: about those of ImageNet-1k and ImageNet-21k."""

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
"""A CLIP model whose text tower is about as fast as its tokenizer."""


def run_side(side: str, *, model_name: str, class_count: int, out: Path) -> None:
    """Build one head, save it, and print time and memory as JSON."""
    import open_clip

    from wiseft_cli.model.full_clip import load_full_clip
    from wiseft_cli.model.model_source import find_model

    full = load_full_clip(find_model(model_name, pretrained=None, random_weights=True))
    model: Any = full.model
    names = sample(open_clip.IMAGENET_CLASSNAMES, class_count)
    positions = 0

    def count(_module: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal positions
        positions += inputs[0].shape[0] * inputs[0].shape[1]

    model.transformer.register_forward_pre_hook(count)
    build = {"open_clip": open_clip_head, "loop": loop_head, "wiseft": our_head}[side]
    begin, cpu_begin = time.perf_counter(), time.process_time()
    head = build(full, names)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    np.save(out, head)
    prompts = len(names) * len(open_clip.OPENAI_IMAGENET_TEMPLATES)
    cost = {"seconds": seconds, "cpu": cpu_seconds, "peak": peak_mib()}
    print(json.dumps({**cost, "positions": positions / prompts}))


def sample(names: Sequence[str], count: int) -> list[str]:
    """Return `count` evenly spaced names."""
    return [names[index * len(names) // count] for index in range(count)]


def open_clip_head(full: Any, names: list[str]) -> np.ndarray:
    """Return open_clip's head, scaled; (C, D)."""
    import open_clip
    import torch

    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(
            full.model, full.tokenizer.tokenize, names, open_clip.OPENAI_IMAGENET_TEMPLATES
        )
        return (weights.T * full.model.logit_scale.exp()).numpy()


def loop_head(full: Any, names: list[str]) -> np.ndarray:
    """Return the head of a loop over classes, as in wise-ft's script; (C, D)."""
    import open_clip
    import torch
    from torch.nn import functional

    rows = []
    with torch.no_grad():
        for name in names:
            prompts = [template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
            features = full.model.encode_text(full.tokenizer.tokenize(prompts))
            mean = functional.normalize(features, dim=-1).mean(dim=0)
            rows.append(functional.normalize(mean, dim=-1))
        return (torch.stack(rows) * full.model.logit_scale.exp()).numpy()


def our_head(full: Any, names: list[str]) -> np.ndarray:
    """Return the head of this package; (C, D)."""
    import open_clip

    from wiseft_cli.model.zeroshot_head import build_zeroshot_head, encode_prompts

    prompts = (
        (index, template(name))
        for index, name in enumerate(names)
        for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    features = encode_prompts(full.model, full.tokenizer, prompts, class_count=len(names))
    head = build_zeroshot_head(features, scale=full.logit_scale, class_ids=names)
    return head.weight.detach().numpy()


def measure(model_name: str, class_count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Run the sides alternately, and return the fastest run of each."""
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        heads = {side: Path(scratch) / f"{side}.npy" for side in SIDES}
        for _ in range(repeats):
            for side in SIDES:
                options = ["--model", model_name, "--classes", str(class_count)]
                found = run_self("--side", side, "--out", str(heads[side]), *options)
                if side not in best or found["cpu"] < best[side]["cpu"]:
                    best[side] = found
        arrays = {side: np.load(heads[side]) for side in SIDES}
    for side in SIDES:
        difference = np.abs(arrays["wiseft"] - arrays[side]).max() / np.abs(arrays[side]).max()
        if difference > TOLERANCE:
            raise SystemExit(f"{side}: heads differ by {difference:.1e}, more than {TOLERANCE:.0e}")
        best[side]["difference"] = float(difference)
    return best


def run_self(*arguments: str) -> Any:
    """Run this file in a process of its own; return the JSON that it prints."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def report(best: dict[str, dict[str, float]]) -> None:
    """Print the table and the ratios."""
    ours = best["wiseft"]
    print("| side | seconds | CPU seconds | peak MiB | positions per prompt | times | difference |")
    print("|---|---|---|---|---|---|---|")
    for side in SIDES:
        found = best[side]
        print(
            f"| {SIDE_NAMES[side]} | {found['seconds']:.1f} | {found['cpu']:.1f} | "
            f"{found['peak']:.0f} | {found['positions']:.1f} | {found['cpu'] / ours['cpu']:.1f} | "
            f"{found['difference']:.0e} |"
        )
    ceiling = best["open_clip"]["positions"] / ours["positions"]
    print(f"ceiling of the sample {ceiling:.2f}, of all 80,000 prompts {whole_ceiling():.2f}")


def whole_ceiling() -> float:
    """Return context length over mean prompt length for all 80,000 prompts."""
    import open_clip

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    lengths = [
        len(tokenizer.encode(template(name))) + 2
        for name in open_clip.IMAGENET_CLASSNAMES
        for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]
    return float(tokenizer.context_length / np.mean(lengths))


def peak_mib() -> float:
    """Return the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def encode_many(class_count: int) -> None:
    """Encode 80 prompts for each of many classes, and print the memory peaks."""
    import open_clip

    from wiseft_cli.checkpoint.card import ClassEntry
    from wiseft_cli.model.full_clip import build_untrained_clip
    from wiseft_cli.model.tokenizer import prompt_tokenizer
    from wiseft_cli.model.zeroshot_head import encode_prompts
    from wiseft_cli.prompts.class_names import ClassList

    model = build_untrained_clip(TINY).eval()
    tokenizer = prompt_tokenizer(open_clip.get_tokenizer("ViT-B-32"), 77)
    templates = [f"{at} {{}}" for at in range(len(open_clip.OPENAI_IMAGENET_TEMPLATES))]
    entries = tuple(ClassEntry(f"c{at}", f"thing {at}") for at in range(class_count))
    before = peak_mib()
    begin = time.perf_counter()
    prompts = ClassList(entries, "text").prompts(templates)
    encode_prompts(model, tokenizer, prompts, class_count=class_count)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak_mib()}))


def write_one(model_name: str) -> None:
    """Write the checkpoint of a model with random weights, and print the memory."""
    from wiseft_cli.model import zeroshot_checkpoint

    seen: dict[str, float] = {}
    write = zeroshot_checkpoint.write_checkpoint

    def write_and_measure(
        path: Path, tensors: dict[str, np.ndarray], *rest: Any, **options: Any
    ) -> str:
        process, done = psutil.Process(), threading.Event()
        peaks = [process.memory_info().rss]

        def watch() -> None:
            while not done.wait(0.002):
                peaks.append(process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return write(path, tensors, *rest, **options)
        finally:
            done.set()
            watcher.join()
            seen["before"], seen["peak"] = peaks[0] / MIB, max(peaks) / MIB
            seen["encoder"] = sum(array.nbytes for array in tensors.values()) / MIB

    zeroshot_checkpoint.write_checkpoint = write_and_measure
    with tempfile.TemporaryDirectory() as scratch:
        zeroshot_checkpoint.build_zeroshot_checkpoint(
            Path(scratch) / "z.safetensors",
            model=model_name,
            classes=["cat", "dog"],
            device="cpu",
            random_weights=True,
        )
    print(json.dumps({**seen, "start": peak_mib()}))


def report_memory(models: Sequence[str]) -> None:
    """Print peaks for several numbers of classes, and while writing."""
    print(
        "| classes | prompts | seconds | MiB before | peak MiB |\n|---|---|---|---|---|", flush=True
    )
    for count in CLASS_COUNTS:
        found = run_self("--encode-many", str(count))
        print(
            f"| {count:,} | {count * 80:,} | {found['seconds']:.0f} | {found['before']:.0f} | "
            f"{found['peak']:.0f} |",
            flush=True,
        )
    print("\n| model | image encoder MiB | MiB when writing begins | peak MiB while writing |")
    print("|---|---|---|---|")
    for model in models:
        found = run_self("--write-one", model)
        print(f"| {model} | {found['encoder']:.0f} | {found['before']:.0f} | {found['peak']:.0f} |")


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--encode-many", type=int)
    parser.add_argument("--write-one")
    options = parser.parse_args()
    if options.side:
        run_side(
            options.side, model_name=options.model, class_count=options.classes, out=options.out
        )
    elif options.encode_many:
        encode_many(options.encode_many)
    elif options.write_one:
        write_one(options.write_one)
    elif options.memory:
        report_memory(["ViT-B-32", "ViT-L-14"])
    else:
        report(measure(options.model, options.classes, options.repeats))


@pytest.mark.benchmark
@pytest.mark.timeout(0)
def test_head_equals_open_clips_and_report_its_cost() -> None:
    report(measure("ViT-B-32", 20, repeats=1))


if __name__ == "__main__":
    main()

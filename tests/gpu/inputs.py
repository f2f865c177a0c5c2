"""The machine, and the inputs of the other parts: digits, photos, checkpoints of random weights."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from tests.gpu.commands import Context, run, side_by_side

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow", "safetensors")
MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
N_CLASSES = 100


def describe_machine(context: Context) -> None:
    """Record the card, the CPUs and the versions; exit with 2 without a GPU."""
    import torch

    add = context.figures.add
    if context.device == "cpu":
        add("card", "none, reduced form on the CPU")
    elif not torch.cuda.is_available():
        print("error: torch finds no CUDA GPU; --cpu runs the reduced form", file=sys.stderr)
        sys.exit(2)
    else:
        card = torch.cuda.get_device_properties(0)
        add("card", card.name, note=f"compute capability {card.major}.{card.minor}")
        add("card memory", card.total_memory / 2**30, "GiB")
        add("CUDA", str(torch.version.cuda), note=f"cuDNN {torch.backends.cudnn.version()}")
        add(
            "driver",
            _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        )
    add("CPUs", len(os.sched_getaffinity(0)), note=platform.machine())
    add("memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, "GiB")
    add("/dev/shm", shutil.disk_usage("/dev/shm").total / 2**30, "GiB")
    versions = {"python": platform.python_version()}
    versions |= {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}
    for name, version in versions.items():
        add(name, version)
    add("commit", _output_of("git", "describe", "--always", "--dirty"))


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_digits(context: Context) -> None:
    """Write the demo's folders, and the zero-shot checkpoint of the embedded model."""
    from wiseft_cli.demo.image_folders import write_image_folders

    write_image_folders(context.work / "digits")
    if context.is_reduced:
        for path in (context.work / "digits").rglob("*.png"):
            if int(path.stem) % 5:
                path.unlink()
    write_head(context, context.work / "digits.safetensors", "cpu")


def write_head(context: Context, output: Path, device: str, setup: str = "") -> None:
    """Run zeroshot-head of the embedded model."""
    from wiseft_cli.demo.embedded import embedded_model_folder

    digits = context.work / "digits"
    words = ["zeroshot-head", "--model", f"local-dir:{embedded_model_folder()}", "-o", output]
    words += ["--classes", digits / "classes.txt", "--templates", digits / "templates.txt"]
    run(context, [*words, "--device", device], setup)


def write_photos(context: Context) -> None:
    """Write JPEG files like photos, and a zero-shot checkpoint of each model."""
    classes = context.work / "digits" / "classes.txt"
    count, size = (40, 64) if context.is_reduced else (2000, 500)
    if not context.is_reduced:
        classes = context.work / "classes.txt"
        classes.write_text("".join(f"c{at:03}\n" for at in range(N_CLASSES)))
    names = classes.read_text().split()
    photos = context.work / "photos"
    for name in names:
        (photos / name).mkdir(parents=True)
    jobs = [(photos / names[at % len(names)] / f"{at:05}.jpg", at, size) for at in range(count)]
    with multiprocessing.get_context("fork").Pool() as pool:
        n_bytes = sum(pool.starmap(_write_photo, jobs, chunksize=8))
    context.figures.add("photos", count, note=f"{size} pixels a side, {n_bytes // count} bytes")
    words = ["zeroshot-head", "--random-weights", "--classes", classes, "--device", "cpu"]
    for_model = {m: [*words, "--model", m, "-o", checkpoint(context, m)] for m in models(context)}
    if not context.is_reduced:
        side_by_side(context, {m: partial(run, context, for_model[m]) for m in for_model})


def _write_photo(path: Path, seed: int, size: int) -> int:
    """Write a smooth random picture with noise, and return its bytes: about those of a photo."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + generator.integers(-18, 19, smooth.shape, dtype=np.int16)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path.stat().st_size


def models(context: Context) -> tuple[str, ...]:
    """Return the models whose speed is measured."""
    return ("digits",) if context.is_reduced else MODELS


def checkpoint(context: Context, model: str) -> Path:
    """Return the path of a model's zero-shot checkpoint."""
    return context.work / f"{model}.safetensors"

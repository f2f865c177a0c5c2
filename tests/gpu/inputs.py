"""The inputs of the other parts: the demo's digits, photos, and checkpoints with random weights."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.gpu.commands import Context, run, side_by_side

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
N_CLASSES = 100


def write_digits(context: Context) -> None:
    """Write the demo's folders and the embedded model's zero-shot checkpoint."""
    from wiseft_cli.demo.commands import zeroshot_head_command
    from wiseft_cli.demo.image_folders import write_image_folders
    from wiseft_cli.demo.tiny_clip import embedded_model_folder

    data = write_image_folders(context.work / "digits")
    command = zeroshot_head_command(
        model=embedded_model_folder(),
        classes=data.classes,
        templates=data.templates,
        out=context.work / "digits.safetensors",
    )
    run(context, [*command, "--device", "cpu"])


def write_photos(context: Context) -> None:
    """Write JPEG files like photos, and a zero-shot checkpoint of each model."""
    photos = context.work / "photos-in-progress"
    if context.is_reduced:
        names = (context.work / "digits" / "classes.txt").read_text().split()
        count, size = 40, 64
    else:
        names = [f"c{at:03}" for at in range(N_CLASSES)]
        count, size = 2000, 500
    for name in names:
        (photos / name).mkdir(parents=True)
    jobs = [(photos / names[at % len(names)] / f"{at:05}.jpg", at, size) for at in range(count)]
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        n_bytes = sum(pool.starmap(_write_photo, jobs, chunksize=8))
    context.figures.add("photos", count, note=f"{size} pixels a side, {n_bytes // count} bytes")
    photos.rename(context.work / "photos")
    if not context.is_reduced:
        (context.work / "classes.txt").write_text("".join(f"{name}\n" for name in names))
        side_by_side(context, *(lambda m=model: _write_checkpoint(context, m) for model in MODELS))


def checkpoints(context: Context) -> dict[str, Path]:
    """Return the zero-shot checkpoint of each model that was written."""
    if context.is_reduced:
        return {"embedded": context.work / "digits.safetensors"}
    paths = {model: context.work / f"{model}.safetensors" for model in MODELS}
    return {model: path for model, path in paths.items() if path.exists()}


def _write_photo(path: Path, seed: int, size: int) -> int:
    """Write a smooth random picture with a little noise: about the bytes of a photo."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + generator.integers(-18, 19, smooth.shape, dtype=np.int16)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path.stat().st_size


def _write_checkpoint(context: Context, model: str) -> None:
    words = ["zeroshot-head", "--model", model, "--random-weights", "--device", "cpu"]
    words += ["--classes", context.work / "classes.txt"]
    run(context, [*words, "-o", context.work / f"{model}.safetensors"])

"""The machine, its GPU and its packages."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata

from tests.gpu.commands import Context

PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow", "safetensors"),
    *("huggingface_hub", "typer"),
)
DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def describe(context: Context) -> None:
    """Record the card, the processors and the versions; exit code 2 without a GPU."""
    import torch

    import wiseft_cli

    add = context.figures.add
    if context.device == "cuda":
        if not torch.cuda.is_available():
            print("error: torch finds no CUDA GPU; use --cpu for the reduced form", file=sys.stderr)
            sys.exit(2)
        card = torch.cuda.get_device_properties(0)
        add("card", card.name, note=f"compute capability {card.major}.{card.minor}")
        add("card memory", card.total_memory / 2**30, "GiB")
        add("CUDA", str(torch.version.cuda), note=f"cuDNN {torch.backends.cudnn.version()}")
        if shutil.which(DRIVER[0]):
            found = subprocess.run(DRIVER, capture_output=True, text=True, check=False)
            add("driver", found.stdout.strip())
    else:
        add("card", "none, reduced form on the CPU")
    add("CPUs", len(os.sched_getaffinity(0)), note=platform.machine())
    add("memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, "GiB")
    if os.path.exists("/dev/shm"):
        add("/dev/shm", shutil.disk_usage("/dev/shm").total / 2**30, "GiB")
    add("python", platform.python_version())
    for package in PACKAGES:
        add(package, metadata.version(package))
    add("wiseft", wiseft_cli.__version__, note=_commit())


def _commit() -> str | None:
    git = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else None

"""`wiseft doctor`: the versions and the hardware that a bug report needs."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from wiseft_cli import __version__
from wiseft_cli.cli.console import print_json, print_result
from wiseft_cli.cli.options import Json
from wiseft_cli.compute.disk import free_bytes
from wiseft_cli.compute.workers import usable_cpus

EXAMPLES = """
wiseft doctor
wiseft doctor --json > versions.json
"""

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "ml_dtypes",
    "blake3",
    "scipy",
    "pillow",
    "matplotlib",
    "webdataset",
    "typer",
    "rich",
    "pyyaml",
)


def doctor(as_json: Json = False) -> None:
    """Show versions, devices and disks, for a bug report.

    Nothing is sent anywhere. Packages that are not installed are listed too.
    """
    found = collect()
    if as_json:
        print_json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        print_result(f"{name:<{width}}  {value}")


def collect() -> dict[str, str]:
    """Return name and value of everything that `wiseft doctor` shows, in its order."""
    found = {
        "wiseft": f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "cpu": f"{_cpu_name()}, {usable_cpus()} of {os.cpu_count()} CPUs usable",
        "memory": _memory(),
        "/dev/shm": _space(Path("/dev/shm")),
        "this folder": f"{_space(Path.cwd())}, {_file_system(Path.cwd())}",
    }
    return found | {name: _version(name) for name in PACKAGES} | _torch_facts()


def _version(package: str) -> str:
    from importlib import metadata  # lazy: a tenth of the time of --help

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch_facts() -> dict[str, str]:
    try:
        # lazy: torch costs seconds, and a slim installation does not have it
        import torch
    except ImportError as error:
        return {"torch import": f"failed: {error}"}
    facts: dict[str, Any] = {
        "torch threads": torch.get_num_threads(),
        "CUDA": torch.version.cuda or "not in this build of torch",
    }
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        facts["cuda:0"] = "not available"
    return {name: str(value) for name, value in facts.items()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> str:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return "unknown"
    return f"{pages / 2**30:.0f} GiB"


def _space(folder: Path) -> str:
    if not folder.is_dir():
        return "does not exist"
    total = shutil.disk_usage(folder).total
    return f"{free_bytes(folder) / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on, on Linux."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "file system unknown"
    containing = [
        (len(point), kind) for _, point, kind, *_ in mounts if folder.is_relative_to(point)
    ]
    return max(containing)[1] if containing else "file system unknown"

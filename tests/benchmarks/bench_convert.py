"""Compare `wiseft convert` with a plain copy that computes the same digest.

    python tests/benchmarks/bench_convert.py [--folder DIR] [--repeat 5]

The file has the tensors of transformers' CLIP ViT-B/32 (605 MB in float32). Both programs use the
same writer and end when their output is on the disk; they run in turn, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from wiseft_cli.checkpoint.format import TensorSpec
from wiseft_cli.checkpoint.writer import CheckpointWriter

COPY = """
import sys
from pathlib import Path
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.convert.convert import Conversion, write_converted
with open_checkpoint(Path(sys.argv[1])) as reader:
    write_converted(Conversion(reader, None, None, ()), Path(sys.argv[2]), force=True)
"""
PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module("wiseft_cli", run_name="__main__", alter_sys=True)
finally:
    status = open("/proc/self/status").read()  # ru_maxrss includes the parent's memory
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


def write_clip(path: Path) -> None:
    """Write random tensors with the names and shapes of transformers' CLIP ViT-B/32."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in CLIPModel(CLIPConfig()).state_dict().items()}
    generator = np.random.default_rng(0)
    specs = [TensorSpec(name, "F32", shape) for name, shape in shapes.items()]
    with CheckpointWriter(path, specs, None, metadata={"format": "pt"}) as writer:
        for name, shape in shapes.items():
            writer.append(name, generator.standard_normal(shape, np.float32).tobytes())
        writer.commit()


def run_in_turn(folder: Path, repeat: int) -> dict[str, float]:
    """Return medians in seconds, their ratio, and the peak memory of `convert` in MiB."""
    source = folder / "clip.safetensors"
    write_clip(source)
    convert = ["convert", str(source), "-o", str(folder / "converted"), "--force"]
    programs = {
        "copy": [sys.executable, "-c", COPY, str(source), str(folder / "copied")],
        "convert": [sys.executable, "-c", PEAK, "wiseft", *convert],
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    peak = 0
    for _ in range(repeat):
        for name, command in programs.items():
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[name].append(time.perf_counter() - start)
            if name == "convert":
                peak = max(peak, int(done.stderr.split()[-1]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["convert"] / medians["copy"]
    return {**medians, "ratio": ratio, "peak_mib": peak / 1024}


@pytest.mark.benchmark
def test_a_conversion_takes_at_most_1_3_times_a_copy(tmp_path: Path) -> None:
    found = run_in_turn(tmp_path, repeat=3)
    print(json.dumps(found))
    assert found["ratio"] <= 1.3
    assert found["peak_mib"] < 100


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(arguments)
    with TemporaryDirectory(dir=options.folder) as folder:
        print(json.dumps(run_in_turn(Path(folder), options.repeat), indent=2))


if __name__ == "__main__":
    main()

"""Time the ONNX graph of a checkpoint in onnxruntime against torch eager, alternately, on the CPU.

python tests/benchmarks/bench_onnx.py CHECKPOINT ONNX_FOLDER [--threads 1] [--repeats 7]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import onnxruntime
import torch

from wiseft_cli.model.classifier import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loaded = load_checkpoint(arguments.checkpoint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(str(arguments.folder / "model.onnx"), options)
    side = session.get_inputs()[0].shape[2]
    for count in (1, 8):
        images = torch.randn(count, 3, side, side)
        seconds: dict[str, list[float]] = {"torch eager": [], "onnxruntime": []}
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            with torch.inference_mode():
                loaded.model(images)
            middle = time.perf_counter()
            session.run(None, {"images": images.numpy()})
            seconds["torch eager"].append(middle - start)
            seconds["onnxruntime"].append(time.perf_counter() - middle)
        for name, values in seconds.items():
            print(f"batch {count}: {name} {min(values):.3f} s, median {median(values):.3f} s")


if __name__ == "__main__":
    main()

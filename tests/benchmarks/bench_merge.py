"""Compare `wiseft merge` with other programs, as whole processes that flush their output.

    python tests/benchmarks/bench_merge.py [--folder DIR] [--repeat 5] [--mergekit PROGRAM]

The two inputs have the size of ViT-L/14's image encoder (1.2 GB each in float32) and are in the
page cache. All programs run in turn, `--repeat` times; medians of the wall time are compared. A
run ends when its output is on the disk. Peak memory is the maximum resident set size of the
process. With `--quiet`, a run is repeated if other programs used more than a tenth of the
machine meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

TORCH = """
import sys
from safetensors.torch import load_file, save_file
x, y = load_file(sys.argv[1]), load_file(sys.argv[2])
a = 0.5
save_file({n: (1 - a) * x[n] + a * y[n] for n in x}, sys.argv[3], metadata={"format": "pt"})
"""
COPY = """
import os, sys
x, y = (os.open(path, os.O_RDONLY) for path in sys.argv[1:3])
out = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
buffers = [memoryview(bytearray(4 << 20)) for _ in range(2)]
position = 0
while count := os.preadv(x, [buffers[0]], position):
    os.preadv(y, [buffers[1]], position)
    os.pwrite(out, buffers[0][:count], position)
    position += count
os.fsync(out)
"""
WITHOUT_DIGESTS = """
import sys
from wiseft_cli.checkpoint import digest
class NoHash:
    def update(self, data): pass
    def hexdigest(self): return "0" * 64
digest._HASHES["blake3"] = NoHash
from wiseft_cli.cli.app import main
sys.exit(main(sys.argv[1:]))
"""
READ_AND_HASH = """
import os, sys, threading
from blake3 import blake3
def run(part):
    buffer = memoryview(bytearray(1 << 20))
    for path in sys.argv[1:]:
        file, digest = os.open(path, os.O_RDONLY), blake3()
        half = os.fstat(file).st_size // 2
        position, end = part * half, (part + 1) * half
        while position < end:
            count = os.preadv(file, [buffer[: min(1 << 20, end - position)]], position)
            digest.update(buffer[:count])
            position += count
threads = [threading.Thread(target=run, args=[part]) for part in (0, 1)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
# Runs in a small process: the peak memory of a child starts with that of its parent.
LAUNCHER = """
import os, subprocess, sys, time
def busy():
    ticks = list(map(int, open("/proc/stat").readline().split()[1:]))
    return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")
busy_before = busy()
begin = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
for path in filter(None, sys.argv[1].split(os.pathsep)):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
seconds = time.perf_counter() - begin
cpu_seconds = usage.ru_utime + usage.ru_stime
others = (busy() - busy_before - cpu_seconds) / seconds / os.cpu_count()
print(process.returncode, seconds, cpu_seconds, usage.ru_maxrss / 1024, others)
"""
QUIET_SHARE = 0.1
LIGHT_IMPORTS = "import typer, rich, numpy"


@dataclass(frozen=True)
class Runs:
    """Number of runs per program, and maximum number of tries if a run is disturbed."""

    repeat: int
    tries: int = 1


@dataclass(frozen=True)
class Measured:
    """Medians over the runs of one program.

    Attributes:
        cpu_seconds: Of all threads.
        others_share: Share of the machine that other programs used meanwhile.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    others_share: float = 0.0


def vit_l_14_shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a ViT-L/14 classifier with 1000 classes: 304 million elements."""
    width, layers = 1024, 24
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (257, width),
        "visual.proj": (width, 768),
        "visual.conv1.weight": (width, 3, 14, 14),
        "classification_head.weight": (1000, 768),
        "classification_head.bias": (1000,),
    }
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    for layer in range(layers):
        block = f"visual.transformer.resblocks.{layer}."
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}{name}.{kind}": (width,) for kind in ("weight", "bias")}
        shapes |= {
            f"{block}attn.in_proj_weight": (3 * width, width),
            f"{block}attn.in_proj_bias": (3 * width,),
            f"{block}attn.out_proj.weight": (width, width),
            f"{block}attn.out_proj.bias": (width,),
            f"{block}mlp.c_fc.weight": (4 * width, width),
            f"{block}mlp.c_fc.bias": (4 * width,),
            f"{block}mlp.c_proj.weight": (width, 4 * width),
            f"{block}mlp.c_proj.bias": (width,),
        }
    return shapes


def smaller(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the first three blocks: 161 MB in float32."""
    pattern = re.compile(r"\.resblocks\.([3-9]|\d\d)\.")
    return {name: shape for name, shape in shapes.items() if not pattern.search(name)}


def write_pair(folder: Path, dtype: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Path]:
    return write_models(folder, dtype, shapes, count=2)


def write_models(
    folder: Path, dtype: str, shapes: Mapping[str, tuple[int, ...]], *, count: int
) -> list[Path]:
    """Write foreign safetensors files; all but the first differ from it as after fine-tuning."""
    numpy_type = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    header, position = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * np.dtype(numpy_type).itemsize
        offsets = [position, position + size]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position += size
    text = json.dumps(header).encode()
    paths = [folder / f"{dtype}-{side}.safetensors" for side in range(count)]
    for side, path in enumerate(paths):
        base, moved = np.random.default_rng(0), np.random.default_rng(side)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in shapes.values():
                weights = 0.02 * base.standard_normal(shape, np.float32)
                if side:
                    weights += 0.001 * moved.standard_normal(shape, np.float32)
                file.write(weights.astype(numpy_type).tobytes())
            os.fsync(file.fileno())
    return paths


def run_once(command: Sequence[str], outputs: Sequence[Path]) -> Measured:
    """Run a program until its outputs are on the disk."""
    for output in outputs:
        output.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    to_flush = os.pathsep.join(map(str, outputs))
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, to_flush, *command],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    code, *figures = done.stdout.split()
    if code != "0":
        raise RuntimeError(f"{command[:4]} ended with {code}")
    return Measured(*map(float, figures))


def run_quietly(command: Sequence[str], outputs: Sequence[Path], *, tries: int) -> Measured:
    """Repeat a run until no other program disturbed it; keep the least disturbed of `tries`."""
    best: Measured | None = None
    for _ in range(tries):
        run = run_once(command, outputs)
        if best is None or run.others_share < best.others_share:
            best = run
        if best.others_share <= QUIET_SHARE:
            break
        time.sleep(2)
    assert best is not None
    return best


def race(
    programs: Mapping[str, tuple[Sequence[str], Sequence[Path]]], runs: Runs
) -> dict[str, Measured]:
    """Run all programs in turn and return medians."""
    results: dict[str, list[Measured]] = {name: [] for name in programs}
    for _ in range(runs.repeat):
        for name, (command, outputs) in programs.items():
            results[name].append(run_quietly(command, outputs, tries=runs.tries))
            for output in outputs:
                output.unlink(missing_ok=True)
    return {
        name: Measured(
            statistics.median(run.seconds for run in measured),
            statistics.median(run.cpu_seconds for run in measured),
            max(run.peak_mib for run in measured),
            max(run.others_share for run in measured),
        )
        for name, measured in results.items()
    }


def wiseft(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "wiseft_cli", *map(str, arguments)]


def wiseft_without_digests(*arguments: object) -> list[str]:
    return [sys.executable, "-c", WITHOUT_DIGESTS, *map(str, arguments)]


def show(title: str, measured: Mapping[str, Measured], reference: str) -> None:
    """Print a table with every time as a multiple of the reference's."""
    print(f"\n{title}\n| program | seconds | CPU seconds | peak MiB | times {reference} |", end="")
    print(" others, % |\n|---|---|---|---|---|---|")
    base = measured[reference].seconds
    for name, one in measured.items():
        figures = f"{one.seconds:.2f} | {one.cpu_seconds:.2f} | {one.peak_mib:.0f}"
        ratio = one.seconds / base
        print(f"| {name} | {figures} | {ratio:.2f} | {100 * one.others_share:.0f} |", flush=True)


def mergekit_program(
    program: str, pair: Sequence[Path], folder: Path
) -> tuple[list[str], list[Path]]:
    config = folder / "mergekit.json"  # JSON is YAML
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in pair]
    config.write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": "float32"}))
    out = folder / "mergekit"
    return [program, str(config), str(out), "--quiet"], [out / "model.safetensors"]


def bench_programs(folder: Path, pair: Sequence[Path], runs: Runs, mergekit: str | None) -> None:
    """Compare with torch, mergekit and a plain copy."""
    out = folder / "out.safetensors"
    merge = ("merge", *pair, "-o", out)
    files = [*map(str, pair), str(out)]
    programs: dict[str, tuple[Sequence[str], Sequence[Path]]] = {
        "wiseft merge": (wiseft(*merge), [out]),
        "wiseft merge, digests off": (wiseft_without_digests(*merge), [out]),
        "copy": ([sys.executable, "-c", COPY, *files], [out]),
    }
    if importlib.util.find_spec("torch"):
        programs["torch"] = ([sys.executable, "-c", TORCH, *files], [out])
    if mergekit:
        programs["mergekit-pytorch"] = mergekit_program(mergekit, pair, folder)
    show("One alpha, float32", race(programs, runs), "wiseft merge")


def bench_alphas(folder: Path, pair: Sequence[Path], runs: Runs) -> None:
    """Compare five alphas with one."""
    alphas = ("0.1", "0.3", "0.5", "0.7", "0.9")
    template = str(folder / "out-{alpha}.safetensors")
    programs = {}
    for count in (1, 5):
        outputs = [Path(template.replace("{alpha}", alpha)) for alpha in alphas[:count]]
        command = wiseft("merge", *pair, "-o", template, "--alpha", ",".join(alphas[:count]))
        programs[f"{count} alpha"] = (command, outputs)
    show("Several alphas, float32", race(programs, runs), "1 alpha")


def bench_dtypes(
    folder: Path, pair: Sequence[Path], runs: Runs, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare narrow dtypes with float32 for the same number of elements."""
    out = folder / "out.safetensors"
    programs = {"F32": (wiseft("merge", *pair, "-o", out), [out])}
    for dtype in ("BF16", "F16"):
        narrow = write_pair(folder, dtype, shapes)
        programs[dtype] = (wiseft("merge", *narrow, "-o", out), [out])
    show("The same number of elements in every dtype", race(programs, runs), "F32")


def bench_inputs(folder: Path, runs: Runs, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare methods and numbers of inputs; a whole file is read and hashed for comparison."""
    base, *tuned = write_models(folder, "F32", shapes, count=9)
    out = folder / "out.safetensors"
    programs: dict[str, tuple[Sequence[str], Sequence[Path]]] = {}
    for method in ("linear", "task-arithmetic", "ties", "dare", "model-stock"):
        for count in (2, 8):
            command = wiseft("merge", base, *tuned[:count], "--method", method, "-o", out)
            programs[f"{method}, {count} fine-tuned"] = (command, [out])
    for count in (1, 9):
        command = [sys.executable, "-c", READ_AND_HASH, *map(str, (base, *tuned)[:count])]
        programs[f"read and hash {count}"] = (command, [])
    show("Several inputs, float32", race(programs, runs), "linear, 2 fine-tuned")


def bench_small_tensors(folder: Path, runs: Runs, n_tensors: int = 100_000) -> None:
    """Merge files of many small tensors."""
    pair = write_pair(folder, "F32", {f"layers.{i}.weight": (64,) for i in range(n_tensors)})
    out = folder / "out.safetensors"
    programs = {
        f"{n_tensors} tensors": (wiseft("merge", *pair, "-o", out), [out]),
        f"{n_tensors} tensors, 2 threads": (
            wiseft("merge", *pair, "-o", out, "--threads", 2),
            [out],
        ),
    }
    show("Many small tensors", race(programs, runs), f"{n_tensors} tensors")


def bench_start_up(folder: Path, runs: Runs) -> None:
    """Compare the start-up time with that of the imported libraries alone."""
    small = write_pair(folder, "F32", {"w": (50, 50)})
    out = folder / "out.safetensors"
    programs: dict[str, tuple[Sequence[str], Sequence[Path]]] = {
        LIGHT_IMPORTS: ([sys.executable, "-c", LIGHT_IMPORTS], []),
        "wiseft --help": (wiseft("--help"), []),
        "wiseft merge, 10 kB": (wiseft("merge", *small, "-o", out), [out]),
    }
    show("Start-up", race(programs, replace(runs, repeat=max(runs.repeat, 9))), LIGHT_IMPORTS)


def bench_memory(folder: Path, gigabytes: int) -> None:
    """Measure the peak memory of a merge of two sparse files with one huge tensor."""
    count = gigabytes * 10**9 // 4
    header = {"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    text = json.dumps(header).encode()
    paths = [folder / f"large-{side}.safetensors" for side in (0, 1)]
    for path in paths:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 4 * count)
    out = folder / "large-out.safetensors"
    run = run_once(wiseft("merge", *paths, "-o", out), [out])
    for path in (*paths, out):
        path.unlink()
    print(f"\n{gigabytes} GB in one tensor: {run.seconds:.1f} s, peak {run.peak_mib:.0f} MiB")


@contextmanager
def work_folder(named: Path | None) -> Iterator[Path]:
    if named:
        named.mkdir(parents=True, exist_ok=True)
        yield named
    else:
        with TemporaryDirectory() as folder:
            yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--mergekit", help="path of mergekit-pytorch, if installed")
    parser.add_argument("--large", action="store_true", help="also measure the memory of 10 GB")
    parser.add_argument(
        "--only", choices=("programs", "alphas", "dtypes", "inputs", "small", "start-up")
    )
    parser.add_argument("--quiet", action="store_true", help="repeat disturbed runs")
    options = parser.parse_args()
    runs = Runs(options.repeat, tries=40 if options.quiet else 1)
    with work_folder(options.folder) as folder:
        shapes = vit_l_14_shapes()
        pair = write_pair(folder, "F32", shapes)
        parts: dict[str, Callable[[], None]] = {
            "programs": lambda: bench_programs(folder, pair, runs, options.mergekit),
            "alphas": lambda: bench_alphas(folder, pair, runs),
            "dtypes": lambda: bench_dtypes(folder, pair, runs, shapes),
            "inputs": lambda: bench_inputs(folder, runs, smaller(shapes)),
            "small": lambda: bench_small_tensors(folder, runs),
            "start-up": lambda: bench_start_up(folder, runs),
        }
        for name, part in parts.items():
            if options.only in (None, name):
                part()
        if options.large:
            bench_memory(folder, 10)


@pytest.mark.benchmark
def test_every_part_of_the_benchmark_runs(tmp_path: Path) -> None:
    shapes = {"w": (300, 1000), "b": (7,)}
    pair = write_pair(tmp_path, "F32", shapes)
    bench_programs(tmp_path, pair, Runs(1), None)
    bench_alphas(tmp_path, pair, Runs(1))
    bench_dtypes(tmp_path, pair, Runs(1), shapes)
    bench_inputs(tmp_path, Runs(1), shapes)
    bench_small_tensors(tmp_path, Runs(1), 100)
    bench_memory(tmp_path, 1)


if __name__ == "__main__":
    main()

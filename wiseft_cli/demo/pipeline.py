"""`wiseft demo`: run the whole pipeline on handwritten digits.

The demo writes its inputs (image folders, class names, templates, the tiny CLIP), runs the commands
that a user would type, each in its own process, and computes the effect from the results file.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.demo.effect import IN_DISTRIBUTION, describe, read_curve
from wiseft_cli.demo.embedded import embedded_model_folder
from wiseft_cli.demo.image_folders import demo_paths, write_image_folders
from wiseft_cli.errors import OutputError, WiseftError
from wiseft_cli.reporting.results import read_result_lines

MODEL_FOLDER = "tiny-clip"
CHECKPOINTS = ("zeroshot.safetensors", "finetuned.safetensors", "merged.safetensors")
RESULTS, PICTURE = "results.jsonl", "curve.png"
IMAGE_PATTERN = "[0-9][0-9][0-9][0-9].png"

LEARNING_RATE = "4e-3"
RECIPE = ("--epochs", "10", "--batch-size", "64", "--batch-norm", "frozen")
"""320 steps on 2,000 images, with BatchNorm frozen at the statistics of pretraining. docs/demo.md
describes how the learning rate was chosen. Every other option that affects the result has the
default value of `wiseft finetune`, which is the paper's."""
ONE_THREAD = ("--workers", "0", "--threads", "1")
"""Decoding such small images is faster than sending them between processes, and a second thread
gains little. One thread gives the same bytes for any number of cores."""

OnProgress = Callable[[str], None]


class DemoStepError(WiseftError):
    """A command of the demo failed; the demo exits with the same exit code."""

    def __init__(self, command: Sequence[str], exit_code: int) -> None:
        super().__init__(f"`{show_command(command)}` ended with exit code {exit_code}")
        self.exit_code = exit_code


@dataclass(frozen=True)
class DemoReport:
    """Results of a demo.

    Attributes:
        table: Output of `wiseft eval`.
        picture: The plot.
        sentences: The effect in words.
    """

    table: str
    picture: Path
    sentences: tuple[str, str]


def run_demo(
    out: Path, *, force: bool = False, on_progress: OnProgress = lambda line: None
) -> DemoReport:
    """Write the inputs below `out`, run every command there, and return the results.

    Args:
        out: Created if missing.
        force: Accept a folder that is not empty. Files that the demo writes are replaced; all
            others are kept.
        on_progress: Called with one line of text before each step.
    Raises:
        OutputError: `out` cannot be used; nothing was written.
        DemoStepError: A command failed; the outputs of earlier steps are kept.
    """
    check_out(out, force=force)
    remove_own_files(out)
    on_progress(f"writing image folders, class names, templates and the embedded model below {out}")
    try:
        data = write_image_folders(out)
        shutil.copytree(
            embedded_model_folder(),
            out / MODEL_FOLDER,
            copy_function=shutil.copyfile,
            dirs_exist_ok=True,
        )
    except OSError as error:
        raise OutputError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}",
            hint="choose another folder with --out",
        ) from None
    zeroshot, finetuned, merged = (out / name for name in CHECKPOINTS)
    results, picture = out / RESULTS, out / PICTURE
    for command in (
        zeroshot_head_command(
            out / MODEL_FOLDER, classes=data.classes, templates=data.templates, out=zeroshot
        ),
        finetune_command(zeroshot, train=data.train, validation=data.validation, out=finetuned),
        merge_command(zeroshot, finetuned, out=merged),
    ):
        run_command(command, on_progress=on_progress)
    evaluation = eval_command(
        zeroshot, finetuned, test=data.test, shifts=data.shifts, results=results
    )
    table = run_command(evaluation, on_progress=on_progress)
    run_command(plot_command(results, out=picture), on_progress=on_progress)
    curve = read_curve(read_result_lines(results))
    return DemoReport(table, picture, describe(curve))


def check_out(out: Path, *, force: bool) -> None:
    """Check that the demo may write into a folder.

    Raises:
        OutputError: `out` is a file; it is not empty and `force` is false; or its `data/` contains
            files that the demo did not write and would evaluate.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} is not a folder", hint="choose a new folder with --out")
    if any(out.iterdir()) and not force:
        raise OutputError(
            f"{out} is not empty",
            hint="choose a new folder with --out, or replace the demo's own files with --force",
        )
    data = {path for path in (out / "data").rglob("*") if not path.is_dir()}
    foreign = sorted(data - set(_own_files(out)))
    if foreign:
        raise OutputError(
            f"{out}: {len(foreign)} files were not written by the demo",
            faults=[str(path.relative_to(out)) for path in foreign],
            hint="they would be evaluated as data; move them, or choose another folder with --out",
        )


def remove_own_files(out: Path) -> None:
    """Delete the files of an earlier demo below `out`, and folders that become empty."""
    for path in _own_files(out):
        path.unlink()
    for folder in (*demo_paths(out).class_folders, out / MODEL_FOLDER):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _own_files(out: Path) -> list[Path]:
    """Return the existing files below `out` whose names the demo writes."""
    paths = demo_paths(out)
    files = [out / name for name in (*CHECKPOINTS, RESULTS, PICTURE)]
    files += [paths.classes, paths.templates]
    files += [out / MODEL_FOLDER / path.name for path in embedded_model_folder().iterdir()]
    images = [path for folder in paths.class_folders for path in folder.glob(IMAGE_PATTERN)]
    return [path for path in files if path.is_file()] + images


def show_command(command: Sequence[str]) -> str:
    """Return a command as a user would type it."""
    return shlex.join(["wiseft", *command])


def run_command(command: Sequence[str], *, on_progress: OnProgress) -> str:
    """Run `wiseft` with the given arguments in its own process and return its stdout.

    Its stderr is inherited. If this process is interrupted, the command is terminated and awaited,
    so that it can delete its partial output.

    Raises:
        DemoStepError: The exit code is not 0.
    """
    on_progress(f"$ {show_command(command)}")
    process = subprocess.Popen(
        [sys.executable, "-m", "wiseft_cli", *command], stdout=subprocess.PIPE, text=True
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    code = process.returncode
    if code != 0:
        raise DemoStepError(command, code if code > 0 else 128 - code)
    return output


def zeroshot_head_command(
    model: Path, *, classes: Path, templates: Path, out: Path
) -> tuple[str, ...]:
    """Return the command that builds the zero-shot classifier of a model folder."""
    return (
        "zeroshot-head",
        *("--model", f"local-dir:{model}"),
        *("--classes", str(classes)),
        *("--templates", str(templates)),
        *("-o", str(out)),
    )


def finetune_command(
    zeroshot: Path,
    *,
    train: Path,
    validation: Path,
    out: Path,
    learning_rate: str = LEARNING_RATE,
    seed: int = 0,
) -> tuple[str, ...]:
    """Return the command that fine-tunes with the demo's recipe."""
    return (
        *("finetune", str(zeroshot)),
        *("--train", str(train)),
        *("--val", str(validation)),
        *RECIPE,
        *ONE_THREAD,
        *("--lr", learning_rate),
        *("--seed", str(seed)),
        *("-o", str(out)),
    )


def merge_command(zeroshot: Path, finetuned: Path, *, out: Path) -> tuple[str, ...]:
    """Return the command that merges at alpha 0.5, the paper's default."""
    return ("merge", "--alpha", "0.5", str(zeroshot), str(finetuned), "-o", str(out))


def eval_command(
    zeroshot: Path, finetuned: Path, *, test: Path, shifts: Mapping[str, Path], results: Path
) -> tuple[str, ...]:
    """Return the command that evaluates eleven alphas on every set, the test set first."""
    sets = {IN_DISTRIBUTION: test, **shifts}
    data = [word for name, folder in sets.items() for word in ("--data", f"{name}={folder}")]
    return (
        *("eval", str(zeroshot), str(finetuned)),
        *data,
        *("--alpha", "0:1:0.1"),
        *ONE_THREAD,
        *("--results", str(results)),
    )


def plot_command(results: Path, *, out: Path) -> tuple[str, ...]:
    """Return the command that plots the curve."""
    return ("plot", str(results), "-o", str(out))

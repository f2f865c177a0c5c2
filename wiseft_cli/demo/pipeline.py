"""`wiseft demo`: the whole pipeline on real digits, as the commands a user would type.

It writes the inputs (image folders, class names, templates, the embedded model), runs the four
commands and the plot as processes of their own, and reads the effect off the results file. The
commands share nothing with it but files.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.demo import commands
from wiseft_cli.demo.captions import DIGIT_NAMES
from wiseft_cli.demo.commands import Say, run_command
from wiseft_cli.demo.effect import CurvePoint, describe, read_curve
from wiseft_cli.demo.image_folders import DemoData, demo_paths, write_image_folders
from wiseft_cli.demo.tiny_clip import embedded_model_folder
from wiseft_cli.errors import OutputError, list_some
from wiseft_cli.reporting.results import read_result_lines

MODEL_FOLDER = "tiny-clip"
OUTPUTS = ("zeroshot.safetensors", "finetuned.safetensors", "merged.safetensors")
RESULTS, PICTURE = "results.jsonl", "curve.png"
IMAGE_PATTERN = "[0-9][0-9][0-9][0-9].png"


@dataclass(frozen=True)
class DemoReport:
    """What the demo found.

    Attributes:
        table: What `wiseft eval` printed.
        picture: The plot.
        curve: Accuracies over alpha.
        sentences: What was seen, in words.
    """

    table: str
    picture: Path
    curve: tuple[CurvePoint, ...]
    sentences: tuple[str, str]


def run_demo(out: Path, *, force: bool = False, say: Say = lambda line: None) -> DemoReport:
    """Write the inputs below `out`, run the pipeline there, and report.

    Args:
        out: Created if need be.
        force: Take a folder that is not empty; files that the demo writes are replaced, all
            others stay.
        say: Called with a line of text before each step.
    Raises:
        OutputError: `out` is in use; nothing was written.
        DemoStepError: A command failed; what was written before it stays.
    """
    check_out(out, force=force)
    remove_own_files(out)
    say(f"writing image folders, class names, templates and the embedded model below {out}")
    model = out / MODEL_FOLDER
    try:
        data = write_image_folders(out)
        shutil.copytree(
            embedded_model_folder(), model, copy_function=shutil.copyfile, dirs_exist_ok=True
        )
    except OSError as error:
        raise OutputError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}",
            hint="name another folder with --out",
        ) from None
    zeroshot, finetuned, merged = (out / name for name in OUTPUTS)
    results, picture = out / RESULTS, out / PICTURE
    for command in (
        commands.zeroshot_head_command(
            model=model, classes=data.classes, templates=data.templates, out=zeroshot
        ),
        commands.finetune_command(
            zeroshot, train=data.train, validation=data.validation, out=finetuned
        ),
        commands.merge_command(zeroshot, finetuned, out=merged),
    ):
        run_command(command, say=say)
    evaluation = commands.eval_command(
        zeroshot, finetuned, test=data.test, shifts=data.shifts, results=results
    )
    table = run_command(evaluation, say=say)
    run_command(commands.plot_command(results, out=picture), say=say)
    curve = read_curve(read_result_lines(results))
    return DemoReport(table, picture, curve, describe(curve))


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a path that the demo may not fill.

    Raises:
        OutputError: It is a file; it is not empty and `force` is off; or a folder that the demo
            reads as data holds files that the demo did not write.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} is not a folder", hint="name a new folder with --out")
    if any(out.iterdir()) and not force:
        raise OutputError(
            f"{out} is not empty",
            hint="name a new folder with --out, or replace the demo's own files with --force",
        )
    foreign = sorted(_files_below_data(out) - set(_own_files(out)))
    if foreign:
        listed = list_some([str(path.relative_to(out)) for path in foreign])
        raise OutputError(
            "\n  ".join([f"{out}: {len(foreign)} files that the demo does not write", *listed]),
            hint="they would be evaluated as data; move them away or name another --out",
        )


def remove_own_files(out: Path) -> None:
    """Remove what an earlier demo wrote below `out`: its files, and folders left empty."""
    for path in _own_files(out):
        path.unlink()
    own_folders = {folder for folder in _class_folders(demo_paths(out)) if folder.is_dir()}
    own_folders |= {folder for folder in (out / MODEL_FOLDER,) if folder.is_dir()}
    for folder in sorted(own_folders):
        if not any(folder.iterdir()):
            folder.rmdir()


def _own_files(out: Path) -> list[Path]:
    """The files below `out` that have a name the demo writes."""
    paths = demo_paths(out)
    named = [out / name for name in (*OUTPUTS, RESULTS, PICTURE)]
    named += [paths.classes, paths.templates]
    named += [out / MODEL_FOLDER / path.name for path in embedded_model_folder().iterdir()]
    images = [path for folder in _class_folders(paths) for path in folder.glob(IMAGE_PATTERN)]
    return [path for path in named if path.is_file()] + images


def _class_folders(paths: DemoData) -> list[Path]:
    sets = (paths.train, paths.validation, paths.test, *paths.shifts.values())
    return [folder / name for folder in sets for name in DIGIT_NAMES]


def _files_below_data(out: Path) -> set[Path]:
    return {path for path in (out / "data").rglob("*") if not path.is_dir()}

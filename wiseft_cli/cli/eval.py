"""`wiseft eval`: checkpoints, and the points between two, on labelled image sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wiseft_cli.cli.console import print_json, print_result, progress, talk, warn
from wiseft_cli.data.workers import MAX_DEFAULT_WORKERS, default_workers

if TYPE_CHECKING:
    from wiseft_cli.evaluation.plan import Job
    from wiseft_cli.reporting.results import ResultLine


def eval_command(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints that wiseft wrote.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]SPEC",
            help="Image set: a folder with one subfolder a class, a manifest (.csv, .tsv, .jsonl),"
            " shards (data-{000..127}.tar), or a suite of several (.yaml); repeatable. The first"
            " one is the in-distribution set.",
            show_default=False,
        ),
    ],
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluate the points between two checkpoints, ZEROSHOT FINETUNED, at these"
            " weights of the fine-tuned one: 0.5, a list 0,0.5,1 or a range 0:1:0.1; repeatable."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Name of the in-distribution set.  [default: the first]"),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="File of JSON lines to add to; what it holds already is not run again."),
    ] = None,
    max_bad: Annotated[int, typer.Option(min=0, help="Unreadable images a set to leave out.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images; 0 decodes in this one.  [default: one a CPU,"
            f" at most {MAX_DEFAULT_WORKERS}]",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.  [default: torch's choice]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run again what RESULTS holds, and overwrite it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results lines as a JSON list.")
    ] = False,
) -> None:
    """Measure checkpoints on image sets, joined by class id or name, in one pass over the images.

    The table on stdout has a row for each checkpoint or alpha and a column for each set; a set
    with some of the head's classes is scored over those.
    """
    jobs = _plan(checkpoints, data, alpha or [], reference, results)
    if workers is None:
        workers = default_workers()
    run = _RunOptions(batch_size, workers, device, threads, max_bad)
    _report(_reuse_or_run(jobs, run, results, force=force), as_json=as_json)


@dataclass(frozen=True)
class _RunOptions:
    """The options that say how to run. The batch size and the device touch rounding alone."""

    batch_size: int
    workers: int
    device: str
    threads: int | None
    max_bad: int


def _plan(
    paths: Sequence[Path],
    data: Sequence[str],
    alpha: Sequence[str],
    reference: str | None,
    results: Path | None,
) -> tuple[Job, ...]:
    """Find every mistake that needs no model and no pixel."""
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.checkpoint.atomic import check_output
    from wiseft_cli.data.spec import open_image_sets
    from wiseft_cli.evaluation import plan
    from wiseft_cli.merging.alpha import parse_alphas

    alphas = parse_alphas(alpha) if alpha else ()
    checkpoints = plan.read_checkpoints(paths)
    if results is not None:
        check_output(results, force=True, inputs=paths)
    weight_sets = plan.plan_weight_sets(checkpoints, alphas)
    image_sets = [image_set for spec in data for image_set in open_image_sets(spec)]
    notes = [note for image_set in image_sets for note in image_set.notes]
    if alphas:
        notes += plan.doubts_about_pair(*checkpoints)
    jobs = plan.plan_jobs(weight_sets, image_sets, reference=reference)
    for note in notes:
        warn(note)
    return jobs


def _reuse_or_run(
    jobs: Sequence[Job], run: _RunOptions, results: Path | None, *, force: bool
) -> list[ResultLine]:
    """Return the lines of all jobs, in their order, from the results file where it has them."""
    # lazy: as above
    from wiseft_cli.evaluation.plan import split_held
    from wiseft_cli.reporting.results import add_result_lines, read_result_lines

    held = read_result_lines(results) if results is not None and results.exists() else ()
    done, to_do = split_held(jobs, () if force else held, max_unreadable=run.max_bad)
    if done:
        talk(f"{results} holds {len(done)} of {len(jobs)} results already; --force runs them again")
    if results is not None and any(line not in held for line in done.values()):
        add_result_lines(results, list(done.values()))  # names or the reference have changed
    if to_do:
        done |= _run(to_do, run, results)
    return [done[job] for job in jobs]


def _run(jobs: Sequence[Job], run: _RunOptions, results: Path | None) -> dict[Job, ResultLine]:
    """Evaluate the jobs; each set's lines are in the file before the next set begins."""
    # lazy: torch costs seconds
    import torch

    from wiseft_cli.evaluation.sweep import SweepSettings, sweep
    from wiseft_cli.model.devices import resolve_device
    from wiseft_cli.reporting.results import add_result_lines

    if run.threads is not None:
        torch.set_num_threads(run.threads)
    settings = SweepSettings(
        run.batch_size, run.workers, resolve_device(run.device), max_unreadable=run.max_bad
    )
    done: dict[Job, ResultLine] = {}
    total = sum(len(job.image_set.records) for job in jobs)
    with progress(total, "evaluating (images times weights)") as advance:
        for lines in sweep(jobs, settings, on_progress=advance):
            done |= lines
            if results is not None:
                add_result_lines(results, list(lines.values()))
    return done


def _report(lines: Sequence[ResultLine], *, as_json: bool) -> None:
    # lazy: as above
    from wiseft_cli.reporting.results import result_document
    from wiseft_cli.reporting.suspicion import suspicious
    from wiseft_cli.reporting.table import render_table

    if as_json:
        print_json([result_document(line) for line in lines])
    else:
        print_result(render_table(lines))
    for warning in suspicious(lines):
        warn(warning)

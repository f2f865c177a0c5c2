"""The run of `wiseft eval`: what RESULTS holds is taken from there, the rest is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.cli.console import print_message, progress
from wiseft_cli.cli.eval_plan import EvalPlan
from wiseft_cli.cli.torchrun import report_on_this_rank
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.errors import WiseftError
from wiseft_cli.evaluation.plan import Job, split_held
from wiseft_cli.reporting.results import ResultLine, add_result_lines, read_result_lines


@dataclass(frozen=True)
class RunOptions:
    """The options that say how to run. The batch size and the device touch rounding alone."""

    batch_size: int
    workers: int
    device: str
    threads: int | None
    max_bad: int


def evaluate(plan: EvalPlan, options: RunOptions, launch: Launch) -> list[ResultLine]:
    """Return the lines of all jobs, in their order, from the results file where it has them.

    Process 0 reads and writes that file, and says what is to do; the others return nothing.
    """
    results = plan.request.results if launch.is_first else None
    held = read_result_lines(results) if results is not None and results.exists() else ()
    # Predictions are of this run: a line alone does not have them.
    is_reused = not plan.request.force and not plan.predictions
    done, to_do = split_held(plan.jobs, held if is_reused else (), max_unreadable=options.max_bad)
    if done:
        n_jobs = len(plan.jobs)
        print_message(
            f"{results} holds {len(done)} of {n_jobs} results already; --force runs them again"
        )
    # Names, the reference or the primary metric may have changed.
    if results is not None and any(line not in held for line in done.values()):
        add_result_lines(results, list(done.values()))
    if to_do or launch.world_size > 1:  # the others wait to hear what is to do
        with report_on_this_rank(WiseftError):
            done |= _run(to_do, plan, options, launch, results)
    return [done[job] for job in plan.jobs] if launch.is_first else []


def _run(
    jobs: Sequence[Job],
    plan: EvalPlan,
    options: RunOptions,
    launch: Launch,
    results: Path | None,
) -> dict[Job, ResultLine]:
    """Evaluate the jobs of process 0; each set's lines are in the file before the next begins."""
    # lazy: torch costs seconds
    import torch

    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.compute.process_group import join_process_group
    from wiseft_cli.evaluation.sweep import SweepSettings, sweep

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device, launch)
    done: dict[Job, ResultLine] = {}
    with join_process_group(launch, device) as processes:
        settings = SweepSettings(
            options.batch_size,
            options.workers,
            device,
            max_unreadable=options.max_bad,
            predictions=plan.predictions,
            force=plan.request.force,
            processes=processes,
        )
        wanted = set(jobs)
        positions = [at for at, job in enumerate(plan.jobs) if job in wanted]
        jobs = [plan.jobs[at] for at in processes.broadcast(positions)]
        total = sum(
            sum(
                map(
                    len,
                    processes.share_of_batches(len(job.image_set.records), options.batch_size),
                )
            )
            for job in jobs
        )
        with progress(total, "evaluating (images times weights)") as advance:
            for lines in sweep(jobs, settings, on_progress=advance):
                done |= lines
                if results is not None:
                    add_result_lines(results, list(lines.values()))
    return done

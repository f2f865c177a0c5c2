"""How the checkpoints of a report came to be: their history as a tree, and commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.card import HistoryEntry, closed_history
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.reporting.comparison import Row
from wiseft_cli.reporting.report_data import Report, first_line

MAX_COMMAND_ALPHAS = 40


@dataclass(frozen=True)
class Step:
    """A step of a checkpoint's history, with the steps that made its inputs.

    Attributes:
        command: The command of wiseft.
        role: What the next step used the output as; empty for the checkpoint itself.
        version: Version of wiseft.
        digest: Content digest of the output.
        options: The options that affected the result, and their values as text.
        inputs: The steps that made the inputs.
    """

    command: str
    role: str
    version: str
    digest: str
    options: tuple[tuple[str, str], ...]
    inputs: tuple[Step, ...]


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file of the report: its path, digest and history."""

    path: Path
    digest: str
    step: Step | None


def read_checkpoint_files(paths: Sequence[Path]) -> tuple[CheckpointFile, ...]:
    """Read the cards of checkpoints.

    Raises:
        CheckpointError: A file is not a checkpoint, or has no card.
    """
    files = []
    for path in paths:
        card = read_card(path)
        entries = {entry.output: entry for entry in closed_history(card)}
        step = _step(card.digest, "", entries) if card.digest in entries else None
        files.append(CheckpointFile(path, card.digest or "", step))
    return tuple(files)


def _step(digest: str | None, role: str, entries: Mapping[str | None, HistoryEntry]) -> Step:
    entry = entries.get(digest)
    if entry is None:
        return Step("a file from elsewhere", role, "", digest or "", (), ())
    others = {output: at for output, at in entries.items() if output != digest}  # ends in any case
    return Step(
        command=entry.command,
        role=role,
        version=entry.version,
        digest=digest or "",
        options=tuple(_flatten(entry.options)),
        inputs=tuple(_step(item.digest, item.role, others) for item in entry.inputs),
    )


def _flatten(options: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for name, value in sorted(options.items()):
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", str(value)))
    return flat


def checkpoint_paths(report: Report, files: Sequence[CheckpointFile]) -> dict[str, str]:
    """Return the path of each checkpoint by its digest: a file that is given, else its name."""
    paths = {
        checkpoint.digest: f"{checkpoint.name}.safetensors"
        for line in report.lines
        for checkpoint in line.checkpoints
    }
    return paths | {file.digest: str(file.path) for file in files}


def merge_command(row: Row, paths: Mapping[str, str]) -> str | None:
    """Return the command that writes the weights of a row; None if it is not a plain merge."""
    line = first_line(row)
    if line.alpha is None or line.merged_by is not None or "seeds" in line.extra:
        return None
    inputs = [paths[checkpoint.digest] for checkpoint in line.checkpoints]
    return shlex.join(["wiseft", "merge", "--alpha", line.alpha, *inputs])


def eval_commands(report: Report, paths: Mapping[str, str]) -> list[str]:
    """Return the commands that measure the rows again, with FOLDER for the path of each set."""
    sets = [
        word for name in report.sets for word in ("--data", f"{name}=FOLDER" if name else "FOLDER")
    ]
    selected = [name for name, lines in report.sets.items() if lines[0].selection]
    options = [*sets, *(word for name in selected for word in ("--select-on", name))]
    by_inputs: dict[tuple[str, ...], list[str | None]] = {}
    for row in report.rows:
        line = first_line(row)
        if "seeds" in line.extra or line.merged_by is not None:
            continue
        inputs = tuple(paths[checkpoint.digest] for checkpoint in line.checkpoints)
        by_inputs.setdefault(inputs, []).append("ensemble" if line.ensemble else line.alpha)
    commands = []
    for inputs, alphas in by_inputs.items():
        numbers = [alpha for alpha in alphas if alpha not in (None, "ensemble")]
        words = ["wiseft", "eval", *inputs]
        if numbers:
            shown = ",".join(map(str, numbers[:MAX_COMMAND_ALPHAS]))
            words += ["--alpha", shown + ",..." * (len(numbers) > MAX_COMMAND_ALPHAS)]
        words += ["--output-ensemble"] * ("ensemble" in alphas)
        commands.append(shlex.join([*words, *options, "--results", "results.jsonl"]))
    return commands

"""Decide where a run starts: at its first step, at a saved state, or at its end.

A state belongs to a run if its card equals the card of the run's output, wiseft's version aside.
No torch is needed here.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.atomic import remove_abandoned_versions
from wiseft_cli.checkpoint.card import Card, card_document
from wiseft_cli.checkpoint.digest import sha256_of_json
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.errors import CheckpointError, OutputError, RecipeError
from wiseft_cli.training.kept import RESULTS
from wiseft_cli.training.state_dir import (
    SavedState,
    find_newest_intact,
    list_states,
    remove_states,
    state_folder,
)


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        state: The state to resume from; None for the first step.
        digest: Content digest of the output, if this run has written it already.
        warnings: Differences from the run that saved the state, one sentence each.
    """

    state: SavedState | None = None
    digest: str | None = None
    warnings: tuple[str, ...] = ()


def find_start(
    output: Path,
    card: Card,
    *,
    resume: bool,
    force: bool,
    threads: int | None = None,
    world_size: int = 1,
) -> Start:
    """Return where a run starts. Nothing on disk is changed.

    Args:
        output: Path of the run's output.
        card: The output's card.
        resume: Whether the run continues from an earlier part of it, if there is one.
        force: Whether an existing output or state may be replaced.
        threads: CPU threads of torch; None accepts those of the state.
        world_size: Number of processes of the run.
    Raises:
        OutputError: This run would have to overwrite a state or an output.
        RecipeError: The state belongs to another run, or has another number of threads.
    """
    if not resume:
        _reject_existing_states(output, force)
        return Start()
    if digest := _digest_if_finished(output, card, force):
        return Start(digest=digest)
    state, warnings = find_newest_intact(output)
    if state is None:
        return Start(warnings=warnings)
    _reject_other_run(state, card, threads)
    return Start(state, warnings=(*warnings, *_list_differences(state, card, world_size)))


def clear_finished_run(output: Path, card: Card, *, keep_states: bool) -> None:
    """Remove the files of a run that was killed after it had written its output.

    States of another run that was going to overwrite the output stay, so that it can resume.
    """
    remove_abandoned_versions(output)
    if not keep_states and not any(_is_of_another_run(at, card) for at in list_states(output)):
        remove_states(output)


def torch_version() -> str:
    """Return the version of torch, without importing it."""
    return importlib.metadata.version("torch")


def _reject_existing_states(output: Path, force: bool) -> None:
    states = list_states(output)
    if states and not force:
        raise OutputError(
            f"{state_folder(output)}: holds the state of an unfinished run ({states[0].name})",
            hint="continue with --resume, or discard it and start again with --force",
        )


def reject_other_output(path: Path, card: Card, *, force: bool) -> None:
    """Reject a file that another run wrote where this run writes besides its output.

    Raises:
        OutputError: It exists, was made by another run, and `force` is not set.
    """
    _digest_if_finished(path, card, force)


def _digest_if_finished(output: Path, card: Card, force: bool) -> str | None:
    if not output.exists():
        return None
    try:
        found = read_card(output)
    except CheckpointError:
        found = None
    if found and found.digest and not list_changes(found, card):
        return found.digest
    if force:
        return None
    raise OutputError(
        f"{output}: exists already and was made by another run",
        hint="name another output with -o, or overwrite with --force",
    )


def _is_of_another_run(state: Path, card: Card) -> bool:
    try:
        with open_checkpoint(state) as reader:
            return reader.card is not None and bool(list_changes(reader.card, card))
    except CheckpointError:
        return False


def _reject_other_run(state: SavedState, card: Card, threads: int | None) -> None:
    changes = list_changes(state.card, card)
    recorded = state.record.threads
    if threads is not None and threads != recorded:
        changes.append(f"--threads: {recorded} there, {threads} now")
    if changes:
        raise RecipeError(
            f"{state.path}: is the state of another run",
            faults=changes,
            hint="use the options and data of that run, or start again with --force in place of"
            " --resume",
        )


def _list_differences(state: SavedState, card: Card, world_size: int) -> list[str]:
    """Return a warning for each difference that may change the last digits of the result."""
    pairs = {
        "wiseft": (state.card.history[-1].version, card.history[-1].version),
        "torch": (state.record.torch_version, torch_version()),
        "processes": (state.record.world_size, world_size),
    }
    return [
        f"the state was saved with {name} {then}, this is {now}: the result may differ in the"
        " last digits from that of an uninterrupted run"
        for name, (then, now) in pairs.items()
        if then != now
    ]


def list_changes(found: Card, wanted: Card) -> list[str]:
    """Return the differences between the cards of two runs, one line per value.

    Versions of wiseft and content digests are ignored.

    Args:
        found: Card of a file.
        wanted: Card of the run that is about to start.
    """
    then, now = _describe(found), _describe(wanted)
    return [
        f"{name}: {then.get(name, 'unknown')} there, {now.get(name, 'unknown')} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _describe(card: Card) -> dict[str, Any]:
    """Return a run's options by dotted name, and digests of the other fields of its card."""
    document = card_document(card)
    *earlier, last = document.pop("history") or [{}]
    # The recipe and the seed are also among the last entry's options.
    for name in ("digest", "recipe", "seed"):
        document.pop(name, None)
    described = {name: sha256_of_json(value)[:19] for name, value in document.items()}
    described["earlier history"] = sha256_of_json(earlier)[:19]
    described["command"] = last.get("command")
    for source in last.get("inputs", ()):
        described[f"digest of the {source['role']} checkpoint"] = source["digest"]
    options = _flatten(last.get("options", {}))
    # A finished run records the images that it used; a planned one counts all of them.
    if n_unreadable := options.get("train.n_unreadable"):
        options["train.n_images"] += n_unreadable
    return described | {name: of for name, of in options.items() if name not in RESULTS}


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.loads(json.dumps(value))  # tuples become lists
    return flat

"""Redo the merge that made a file, from inputs that are found by their digests.

The card of a merged file states the method, its options and the digest of every input. This
module finds the inputs in a folder, merges them again into a temporary file, and compares.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.card import Card, HistoryEntry
from wiseft_cli.checkpoint.digest import algorithm_of
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint, read_card, read_content
from wiseft_cli.checkpoint.shards import FILE_SUFFIX, INDEX_NAME
from wiseft_cli.errors import CheckpointError, WiseftError
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.layers import layer_alpha
from wiseft_cli.merging.merge import merge_checkpoints, soup_checkpoints
from wiseft_cli.merging.methods import DEFAULT_METHOD
from wiseft_cli.merging.settings import resolve_settings

_COMMANDS = ("merge", "soup")
_KNOWN_OPTIONS = frozenset(
    {
        "adapters",
        "alpha",
        "dtype",
        "match_names",
        "method",
        "method_options",
        "missing",
        "selection",
        "weights",
    }
)


@dataclass(frozen=True)
class Verification:
    """Result of redoing a merge.

    Attributes:
        path: The file that was verified.
        digest: Content digest of its tensors as they are now.
        stated: Content digest in its card.
        redone: Content digest of the merge that was done again.
        inputs: The file of every input, by digest.
        has_equal_bytes: Whether the two files are equal as a whole, card included.
    """

    path: Path
    digest: str
    stated: str | None
    redone: str
    inputs: Mapping[str, Path]
    has_equal_bytes: bool

    def find_faults(self) -> list[str]:
        """Return one line for each digest that differs."""
        faults = []
        if self.stated != self.digest:
            faults.append(f"content digest {self.digest}, expected {self.stated} as in the card")
        if self.redone != self.digest:
            faults.append(
                f"content digest {self.digest}, but the merge of its inputs has {self.redone}"
            )
        return faults


def verify_merge(
    path: Path, folder: Path, *, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Redo the last merge of a file's history and compare the result with the file.

    Args:
        folder: Searched for the inputs, at any depth. Files with a card are recognized by the
            digest in it, which the merge checks; of other files all data is read.
        on_progress: As in `merge_checkpoints`.
    Raises:
        CheckpointError: The file was not made by a merge, an input is missing, or the merge
            cannot be done.
    """
    card = read_card(path)
    entry = _last_merge(path, card)
    with open_checkpoint(path, allow_shards=True) as reader:
        digest = read_content(reader).digest
        own_files = {file.resolve() for file in reader.files}
    wanted = [item.digest for item in entry.inputs]
    inputs = _find_inputs(folder, wanted, own_files)
    missing = [f"{item.role} {item.digest}" for item in entry.inputs if item.digest not in inputs]
    if missing:
        raise CheckpointError(
            f"{folder}: contains no checkpoint with the digest of {len(missing)} of"
            f" {len(wanted)} inputs of {path}",
            faults=missing,
            hint=_hint_of_missing(entry),
        )
    with tempfile.TemporaryDirectory(prefix="wiseft-verify-") as scratch:
        output = Path(scratch) / "redone.safetensors"
        _redo(entry, inputs, output, on_progress)
        with open_checkpoint(output) as reader:
            redone = read_content(reader, algorithm=algorithm_of(card.digest)).digest
        has_equal_bytes = path.is_file() and _have_equal_bytes(path, output)
    return Verification(path, digest, card.digest, redone, inputs, has_equal_bytes)


def _hint_of_missing(entry: HistoryEntry) -> str:
    """Return how to find inputs; tensors that were computed in memory need a file first."""
    hints = []
    if adapters := entry.options.get("adapters"):
        hints.append(
            f"an input was a LoRA adapter ({', '.join(map(str, adapters))}) that was merged in "
            "memory: write it with wiseft convert ADAPTER --base ZEROSHOT -o FILE.safetensors"
        )
    if entry.options.get("match_names"):
        hints.append(
            "an input was renamed in memory by --match-names, and its digest is that of the "
            "renamed tensors: write it with wiseft convert under the names of the merged file"
        )
    return "; ".join([*hints, "name the folder that holds the inputs with --inputs"])


def _last_merge(path: Path, card: Card) -> HistoryEntry:
    if not card.history:
        raise CheckpointError(f"{path}: its card has no history")
    entry = card.history[-1]
    if entry.command not in _COMMANDS:
        raise CheckpointError(
            f"{path}: was made by wiseft {entry.command}, expected a file that wiseft merge made",
            hint="`wiseft inspect --verify` checks its tensors, and `wiseft inspect --commands`"
            " prints the commands that made it",
        )
    unknown = sorted(set(entry.options) - _KNOWN_OPTIONS)
    if unknown:
        raise CheckpointError(
            f"{path}: was made with options that this version cannot redo: {', '.join(unknown)}"
        )
    return entry


def _find_inputs(folder: Path, wanted: Sequence[str], skipped: set[Path]) -> dict[str, Path]:
    """Return the file of each digest that occurs below a folder."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder")
    found: dict[str, Path] = {}
    unnamed: list[Path] = []
    for path in _checkpoints_below(folder):
        if path.resolve() in skipped:
            continue
        # A damaged or foreign file beside the inputs is not an input.
        with suppress(WiseftError), open_checkpoint(path, allow_shards=True) as reader:
            if reader.card is None:
                unnamed.append(path)
            elif reader.card.digest in wanted:
                found.setdefault(reader.card.digest or "", path)
    for path in unnamed:
        if len(found) < len(set(wanted)):
            with suppress(WiseftError), open_checkpoint(path, allow_shards=True) as reader:
                found |= {name: path for name in _digests(reader, wanted) if name in wanted}
    return found


def _checkpoints_below(folder: Path) -> Iterator[Path]:
    names = sorted(folder.rglob("*.safetensors*"))
    return (p for p in names if p.name.endswith(FILE_SUFFIX) or INDEX_NAME.search(p.name))


def _digests(reader: CheckpointReader, wanted: Sequence[str]) -> list[str]:
    """Return the content digest by each algorithm that occurs among the wanted ones."""
    algorithms = {algorithm_of(digest) for digest in wanted}
    return [read_content(reader, algorithm=algorithm).digest for algorithm in sorted(algorithms)]


def _redo(
    entry: HistoryEntry,
    inputs: Mapping[str, Path],
    output: Path,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    options = entry.options
    paths = [inputs[item.digest] for item in entry.inputs if item.role != "fisher"]
    fishers = [inputs[item.digest] for item in entry.inputs if item.role == "fisher"]
    weights = [text for text in options.get("weights", ()) if "/" not in text]
    shared: dict[str, Any] = {
        "dtype": options.get("dtype"),
        "copies_missing": options.get("missing") == "copy",
        "selection": options.get("selection"),
        "on_progress": on_progress,
    }
    if entry.command == "soup":
        soup_checkpoints(paths, output, weights=weights, **shared)
        return
    given = dict(options.get("method_options", {}))
    settings = resolve_settings(
        options.get("method", DEFAULT_METHOD),
        n_finetuned=len(paths) - 1,
        weights=weights,
        layer_alphas=[
            layer_alpha(pattern, alpha) for pattern, alpha in given.pop("layer_alpha", ())
        ],
        options=given,
    )
    alphas = parse_alphas([options["alpha"]], extrapolate=True) if "alpha" in options else (None,)
    outputs = [(alpha, output) for alpha in alphas]
    merge_checkpoints(paths[0], paths[1:], outputs, settings=settings, fishers=fishers, **shared)


def _have_equal_bytes(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as x, b.open("rb") as y:
        while block := x.read(1 << 20):
            if block != y.read(1 << 20):
                return False
    return True

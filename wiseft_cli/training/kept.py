"""The weights of a run that are written, and the names of the files.

    OUT                 the weights after the last step, or with `--keep best:VAL` those after the
                        epoch that has the highest accuracy on the validation set VAL
    OUT-epoch-N         with `--keep epochs`, the weights after each epoch
    OUT-probe           with the recipe key `lp_ft`, the linear classifier
    OUT-ema             with the recipe key `ema`, the moving average after the last step

No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.errors import UsageError

LAST, BEST, EPOCHS = "last", "best", "epochs"
EMA = "ema"
SELECTION = "selection"
"""Key of a history entry's options: the validation set that chose the weights."""

RESULTS = (
    "train.n_unreadable",
    f"{SELECTION}.epoch",
    f"{SELECTION}.top1",
    "epoch",
    "weights",
)
"""Options in the history of a written file that a planned run does not know, by dotted name."""


@dataclass(frozen=True)
class Keep:
    """The value of `--keep`.

    Attributes:
        kind: `last`, `best` or `epochs`.
        set_name: Name of the validation set of `best`; None if there is only one.
    """

    kind: str = LAST
    set_name: str | None = None


@dataclass(frozen=True)
class TextSource:
    """The CLIP model that provides the text tower of a method, as options name it.

    Attributes:
        model: An open_clip name, `hf-hub:ORG/REPO` or `local-dir:DIR`.
        pretrained: Tag or weights file of an open_clip name.
        random_weights: Whether its weights are the random ones of zeroshot-head.
    """

    model: str
    pretrained: str | None = None
    random_weights: bool = False


def parse_keep(text: str) -> Keep:
    """Return the value of `--keep`.

    Args:
        text: `last`, `best`, `best:NAME` or `epochs`.
    Raises:
        UsageError: The text is none of these.
    """
    kind, _, name = text.partition(":")
    if text in (LAST, BEST, EPOCHS) or (kind == BEST and name):
        return Keep(kind, name or None)
    raise UsageError(f"--keep {text!r}, expected last, best:VAL or epochs")


def find_selection_set(keep: Keep, names: Sequence[str]) -> str | None:
    """Return the name of the validation set that chooses the weights; None for no choice.

    Args:
        names: Names of the validation sets.
    Raises:
        UsageError: There is no such set, or several and none is named.
    """
    if keep.kind != BEST:
        return None
    if not names:
        raise UsageError(
            "--keep best needs a validation set", hint="add --val SPEC or --val-fraction FRACTION"
        )
    listed = ", ".join(names)
    if keep.set_name is None and len(names) > 1:
        raise UsageError(
            "--keep best with several validation sets", hint=f"add one of them: {listed}"
        )
    if keep.set_name not in (None, *names):
        raise UsageError(
            f"--keep best:{keep.set_name}: not a validation set of this run",
            hint=f"the validation sets are {listed}",
        )
    return keep.set_name or names[0]


def epoch_path(output: Path, epoch: int) -> Path:
    """Return the path of the checkpoint of an epoch, counted from 1."""
    return output.with_stem(f"{output.stem}-epoch-{epoch}")


def probe_path(output: Path) -> Path:
    """Return the path of the linear classifier that the run fine-tunes."""
    return output.with_stem(f"{output.stem}-probe")


def ema_path(output: Path) -> Path:
    """Return the path of the moving average of the weights."""
    return output.with_stem(f"{output.stem}-{EMA}")


def written_card(card: Card, *, n_unreadable: int = 0, **results: Any) -> Card:
    """Return the card of a written file, from the card of the planned run.

    Args:
        card: The planned card.
        n_unreadable: Training images that could not be read.
        results: Values of `RESULTS`; mappings are merged into those of the card.
    """
    *earlier, entry = card.history
    options = dict(entry.options)
    for name, value in results.items():
        is_merged = isinstance(value, Mapping) and name in options
        options[name] = {**options[name], **value} if is_merged else value
    if n_unreadable:
        train = options["train"]
        used = {"n_images": train["n_images"] - n_unreadable, "n_unreadable": n_unreadable}
        options["train"] = {**train, **used}
    return replace(card, history=(*earlier, replace(entry, options=options)))

"""Finds data set cards: those that ship go by name, a person's own by path, torchvision's are made.

What a card says is `card_form.py`'s; it opens no set, `carded_set.py` does.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from wiseft_cli.data.card_file import cards_folder, is_card_file, read_card_file
from wiseft_cli.data.card_form import TORCHVISION_PREFIX, DatasetCard
from wiseft_cli.data.from_torchvision.card import OWN_CARDS, torchvision_card
from wiseft_cli.errors import UsageError
from wiseft_cli.prompts.documents import YAML_SUFFIXES


def dataset_card_names() -> tuple[str, ...]:
    """Return the names of the cards that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in cards_folder().iterdir() if path.suffix == ".yaml"))


def near_card_names(text: str) -> tuple[str, ...]:
    """Return the cards that ship whose names are nearest to a text, the nearest first; or none."""
    spelt = text.lower().replace("_", "-")
    return tuple(difflib.get_close_matches(spelt, dataset_card_names(), n=3, cutoff=0.7))


def is_dataset_card_name(source: str) -> bool:
    """Return whether a text names a card that ships with the package, or a set of torchvision's."""
    return source in dataset_card_names() or source.startswith(TORCHVISION_PREFIX)


def is_dataset_card(source: str) -> bool:
    """Return whether a text names a card, or is the path of the file of one."""
    return is_dataset_card_name(source) or is_card_file(Path(source))


def read_dataset_card(source: str) -> DatasetCard:
    """Read a card.

    Args:
        source: The name of a card that ships with the package, `torchvision:NAME`, or the path of
            a YAML file.
    Raises:
        UsageError: No card has that name.
        DatasetError: Unreadable, not YAML, or not of a card's form.
    """
    if source.startswith(TORCHVISION_PREFIX):
        own = OWN_CARDS.get(source.removeprefix(TORCHVISION_PREFIX))
        if own is None:
            return torchvision_card(source)
        source = own
    if source in dataset_card_names():
        return read_card_file(cards_folder() / f"{source}.yaml")
    if not source.lower().endswith(YAML_SUFFIXES):
        near = near_card_names(source)
        raise UsageError(
            f"no data set card is called {source!r}; there are {', '.join(dataset_card_names())}",
            hint=(f"did you mean {' or '.join(near)}? " if near else "")
            + "a card of your own is named by its path, with .yaml at the end",
        )
    return read_card_file(Path(source))

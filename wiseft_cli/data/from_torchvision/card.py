"""Cards for `torchvision:NAME`: made from what torchvision itself knows of a set.

Sets that have a card of their own are that card's (`dataset_card.py`). Counts, licence and citation
of the others are not known here.
"""

from __future__ import annotations

from collections.abc import Mapping

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.card_form import TORCHVISION_PREFIX, DatasetCard, Part
from wiseft_cli.data.from_torchvision.sets import find_torchvision_set
from wiseft_cli.errors import ClassNamesError
from wiseft_cli.prompts.class_names import ClassList

OWN_CARDS: Mapping[str, str] = {
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "DTD": "dtd",
    "EuroSAT": "eurosat",
    "Flowers102": "flowers102",
    "Food101": "food101",
    "SUN397": "sun397",
    "StanfordCars": "stanford-cars",
}
"""Sets of torchvision's that have a card that ships."""


def torchvision_card(source: str) -> DatasetCard:
    """Return the card of a set of torchvision's.

    Args:
        source: `torchvision:` and the name of torchvision's class.
    Returns:
        Its card; without class ids where torchvision knows them from the data alone.
    Raises:
        UsageError: torchvision has no such set, or it is none of classes.
        MissingDependencyError: torchvision is needed for the names and not installed.
    """
    class_name = source.removeprefix(TORCHVISION_PREFIX)
    facts = find_torchvision_set(class_name)
    names = _known_names(class_name)
    parts = [
        Part(
            split,
            folders=(facts.place,) if facts.place else (),
            n_images=None,
            n_classes=len(names) or None,
            primary="top1",
            options={"class": class_name},
        )
        for split in facts.splits
    ]
    return DatasetCard(
        name=source,
        title=f"{class_name} as torchvision reads it",
        source=f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{class_name}.html",
        licence="not known here; see its owner's page",
        citation="not known here; see its owner's page",
        layout="torchvision",
        classes=source,
        class_ids=tuple(names),
        label_map=None,
        templates="simple",
        parts=tuple(parts),
    )


def torchvision_classes(source: str) -> ClassList:
    """Return the classes of a set that torchvision names without its data.

    Raises:
        ClassNamesError: It does not name them.
    """
    class_name = source.removeprefix(TORCHVISION_PREFIX)
    names = _known_names(class_name)
    if not names:
        raise ClassNamesError(
            f"{source}: torchvision does not know the names of its classes without the data",
            hint="write them into a file, ID<TAB>NAME a line, where ID is what torchvision calls"
            " the class, or its number where it has no names; and give that as --classes FILE",
        )
    entries = tuple(ClassEntry(class_id, name) for class_id, name in names.items())
    return ClassList(entries, "built-in")


def _known_names(class_name: str) -> Mapping[str, str]:
    facts = find_torchvision_set(class_name)
    if facts.known_names is None:
        return {}
    from wiseft_cli.data.from_torchvision.reader import torchvision_class  # lazy: it needs numpy

    return facts.known_names(torchvision_class(class_name))

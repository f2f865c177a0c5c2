"""The parts of a spec: a set's name, its data, and the options that say how to take it.

On the command line options stand behind `?`, in a suite beside the name; both come here as
texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wiseft_cli.data.manifest_rows import Columns
from wiseft_cli.errors import UsageError, WiseftError
from wiseft_cli.prompts.documents import YAML_SUFFIXES

OPTION_NAMES = (
    "split",
    "path",
    "label",
    "group",
    "map",
    "labels_are_indices",
    "all_classes",
    "primary",
    "crop_border",
    "card",
)
_OF_MANIFESTS = ("split", "path", "label", "group")


@dataclass(frozen=True)
class SetOptions:
    """The options of one image set.

    Attributes:
        given: Their names, in the order given.
        split: The split of a manifest or of a published set.
        columns: What a manifest calls its columns.
        map: A label map's file.
        labels_are_indices: Whether labels are positions among the head's classes.
        all_classes: Whether to score over every class of the head.
        primary: The metric that reports show first.
        crop_border: Pixels to cut from each side of an image before anything else.
        card: A data set card, by name or path; `none` for no card whatever the set's name.
    """

    given: tuple[str, ...] = ()
    split: str | None = None
    columns: Columns = field(default_factory=Columns)
    map: Path | None = None
    labels_are_indices: bool = False
    all_classes: bool = False
    primary: str | None = None
    crop_border: int = 0
    card: str | None = None

    @property
    def of_manifests(self) -> tuple[str, ...]:
        """Those given that only a manifest has a use for."""
        return tuple(name for name in self.given if name in _OF_MANIFESTS)


@dataclass(frozen=True)
class SetSpec:
    """A spec in its parts.

    Attributes:
        name: What reports call the set; None takes it from the data.
        data: Where it is: a path, or a pattern of paths.
        options: What else was said.
    """

    name: str | None
    data: str
    options: SetOptions

    @property
    def title(self) -> str:
        """What reports will call the set, as far as the spec says."""
        return self.name or self.options.card or Path(self.data).stem


def parse_set_options(
    texts: Mapping[str, str],
    *,
    where: str,
    error_type: type[WiseftError] = UsageError,
    folder: Path | None = None,
) -> SetOptions:
    """Check the options of a set and read their values.

    Args:
        texts: Each option's name and value as written.
        where: What the message begins with.
        error_type: A mistake on the command line is another one than in a file.
        folder: Where the path of a map starts; by default the working directory.
    Raises:
        error_type: An option is unknown, empty, no boolean, or contradicts another.
    """
    unknown = [repr(name) for name in texts if name not in OPTION_NAMES]
    if unknown:
        raise error_type(
            f"{where}: unknown option {', '.join(unknown)}",
            hint=f"there are {', '.join(OPTION_NAMES)}",
        )
    for name, value in texts.items():
        if not value:
            raise error_type(f"{where}: {name} is empty")
    flags = {
        name: _flag(name, texts[name], where, error_type)
        for name in ("labels_are_indices", "all_classes")
        if name in texts
    }
    contradicting = [name for name, is_set in flags.items() if is_set and "map" in texts]
    if contradicting:
        raise error_type(
            f"{where}: map and {contradicting[0]} contradict each other",
            hint="a map names the classes itself, and is scored over those it names",
        )
    return SetOptions(
        given=tuple(texts),
        split=texts.get("split"),
        columns=Columns(
            **{name: texts[name] for name in ("path", "label", "group") if name in texts}
        ),
        map=(folder or Path()) / texts["map"] if "map" in texts else None,
        primary=texts.get("primary"),
        crop_border=_pixels(texts.get("crop_border", "0"), where, error_type),
        card=_card(texts.get("card"), folder),
        **flags,
    )


def _card(text: str | None, folder: Path | None) -> str | None:
    """Return a card's name, or its path from the folder of the file that names it."""
    if text is None or folder is None or not text.lower().endswith(YAML_SUFFIXES):
        return text
    return str(folder / text)


def _pixels(text: str, where: str, error_type: type[WiseftError]) -> int:
    if not (text.isascii() and text.isdigit()):
        raise error_type(f"{where}: crop_border is {text!r}; expected a number of pixels")
    return int(text)


def _flag(name: str, text: str, where: str, error_type: type[WiseftError]) -> bool:
    if text not in ("true", "false"):
        raise error_type(f"{where}: {name} is {text!r}; expected true or false")
    return text == "true"

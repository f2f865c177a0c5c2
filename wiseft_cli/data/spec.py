"""Parse what names an image set: `[NAME=]SPEC[?OPTION=VALUE,...]`, and the options of a suite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wiseft_cli.checkpoint.card import EXIF_ORIENTATIONS
from wiseft_cli.data.files import expand_home
from wiseft_cli.data.manifest import Columns
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
    "exif_orientation",
    "card",
)
NO_CARD = "none"
"""Value of the option `card` that ignores the card of a published set."""
_MANIFEST_OPTIONS = ("split", "path", "label", "group")
_FORM = "expected [NAME=]SPEC[?OPTION=VALUE,...]"


@dataclass(frozen=True)
class SetOptions:
    """The options of one image set.

    Attributes:
        given: Names of the options given, in order.
        split: Split of a manifest or of a published set.
        columns: Column names of a manifest.
        map: File of a label map.
        labels_are_indices: Labels are positions among the head's classes.
        all_classes: Score over every class of the head.
        primary: Metric that reports show first.
        crop_border: Pixels to cut from each side of an image before the transform.
        exif_orientation: `apply` or `ignore`; None for what the set's card or the checkpoint
            states.
        card: Name or path of a data set card; `none` for no card, whatever the name of the set.
    """

    given: tuple[str, ...] = ()
    split: str | None = None
    columns: Columns = field(default_factory=Columns)
    map: Path | None = None
    labels_are_indices: bool = False
    all_classes: bool = False
    primary: str | None = None
    crop_border: int = 0
    exif_orientation: str | None = None
    card: str | None = None

    @property
    def of_manifests(self) -> tuple[str, ...]:
        """Names of the given options that apply to manifests only."""
        return tuple(name for name in self.given if name in _MANIFEST_OPTIONS)


@dataclass(frozen=True)
class SetSpec:
    """A parsed spec.

    Attributes:
        name: Name of the set in reports; None to derive it from the data.
        data: A path, or a pattern of paths.
        options: The options given.
    """

    name: str | None
    data: str
    options: SetOptions

    @property
    def title(self) -> str:
        """Name of the set in reports, as far as the spec determines it."""
        return self.name or self.options.card or Path(self.data).stem

    @property
    def is_suite(self) -> bool:
        """Whether the data is a file that lists image sets."""
        return self.data.lower().endswith(YAML_SUFFIXES)


def parse_spec(spec: str, *, option: str = "--data") -> SetSpec:
    """Parse `[NAME=]SPEC[?OPTION=VALUE,...]`.

    The part before the first `=` is a name if it contains neither `/` nor `?`: write `./a=b` for a
    folder called `a=b`. The part after the last `?` contains options if it begins with a word and
    `=`.

    Args:
        option: Command-line option that the spec belongs to, for messages.
    Raises:
        UsageError: A part is empty, or an option is unknown or has an invalid value.
    """
    where = f"{option} {spec!r}"
    name, equals, rest = spec.partition("=")
    if not equals or "/" in name or "?" in name:
        name, rest = "", spec
    elif not name.strip():
        raise UsageError(f"{where} has an empty name; {_FORM}")
    data, mark, text = rest.rpartition("?")
    if not mark or not re.match(r"\w+=", text):
        data, text = rest, ""
    if not data:
        raise UsageError(f"{where} has no data; {_FORM}")
    if re.search(rf"&({'|'.join(OPTION_NAMES)})=", text):
        raise UsageError(
            f"{where}: options are separated by a comma, not by &",
            hint=f"write ?{text.replace('&', ',')}",
        )
    options = parse_options(split_options(text, where=where), where=where)
    return SetSpec(name.strip() or None, expand_home(data), options)


def split_options(text: str, *, where: str) -> dict[str, str]:
    """Return the options in `OPTION=VALUE,...` by name.

    Raises:
        UsageError: An option is given more than once.
    """
    options: dict[str, str] = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if name.strip() in options:
            raise UsageError(f"{where}: {name.strip()} is given more than once")
        options[name.strip()] = value.strip()
    return options


def parse_options(
    texts: Mapping[str, str],
    *,
    where: str,
    error_type: type[WiseftError] = UsageError,
    folder: Path | None = None,
) -> SetOptions:
    """Check the options of an image set and convert their values.

    Args:
        texts: Value of each option as text.
        where: Beginning of messages.
        error_type: Raised for mistakes; the command line and files raise different errors.
        folder: Folder that the paths of maps and cards are relative to; by default the working
            directory.
    Raises:
        error_type: An option is unknown, empty, invalid, or contradicts another.
    """
    unknown = [repr(name) for name in texts if name not in OPTION_NAMES]
    if unknown:
        raise error_type(
            f"{where}: unknown option {', '.join(unknown)}",
            hint=f"the options are {', '.join(OPTION_NAMES)}",
        )
    for name, value in texts.items():
        if not value:
            raise error_type(f"{where}: {name} is empty")
        if name in ("labels_are_indices", "all_classes") and value not in ("true", "false"):
            raise error_type(f"{where}: {name} is {value!r}; expected true or false")
        if name == "crop_border" and not (value.isascii() and value.isdigit()):
            raise error_type(f"{where}: crop_border is {value!r}; expected a number of pixels")
        if name == "exif_orientation" and value not in EXIF_ORIENTATIONS:
            expected = " or ".join(EXIF_ORIENTATIONS)
            raise error_type(f"{where}: exif_orientation is {value!r}; expected {expected}")
    flags = {name: texts.get(name) == "true" for name in ("labels_are_indices", "all_classes")}
    contradicting = [name for name, is_set in flags.items() if is_set and "map" in texts]
    if contradicting:
        raise error_type(
            f"{where}: map and {contradicting[0]} contradict each other",
            hint="a map determines the classes, and which of them are scored",
        )
    return SetOptions(
        given=tuple(texts),
        split=texts.get("split"),
        columns=Columns(
            **{name: texts[name] for name in ("path", "label", "group") if name in texts}
        ),
        map=(folder or Path()) / expand_home(texts["map"]) if "map" in texts else None,
        primary=texts.get("primary"),
        crop_border=int(texts.get("crop_border", "0")),
        exif_orientation=texts.get("exif_orientation"),
        card=_card(texts.get("card"), folder),
        **flags,
    )


def _card(text: str | None, folder: Path | None) -> str | None:
    """Return the name of a card, or its path, which is relative to the folder."""
    if text is None or not text.lower().endswith(YAML_SUFFIXES):
        return text
    return str((folder or Path()) / expand_home(text))

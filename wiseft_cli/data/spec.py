"""Opens an image set from what stands on the command line: `[NAME=]SPEC[?OPTION=VALUE,...]`.

It decides which kind a spec is; the listing is done by the module of that kind, and lists of
sets in a file are read by `suite.py`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.carded_set import open_carded_set
from wiseft_cli.data.dataset_card import (
    dataset_card_names,
    is_dataset_card_name,
    read_dataset_card,
)
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_map import read_label_map
from wiseft_cli.data.lookup import is_folder, is_regular_file, is_there
from wiseft_cli.data.manifest import MANIFEST_SUFFIXES, list_manifest
from wiseft_cli.data.set_options import OPTION_NAMES, SetOptions, SetSpec, parse_set_options
from wiseft_cli.data.shards import list_shards
from wiseft_cli.data.suite import SUITE_SUFFIXES, find_suite, read_suite, suite_names
from wiseft_cli.errors import DatasetError, UsageError, list_some

NO_CARD = "none"
_BESIDE_A_CARD = ("card", "split", "primary", "all_classes", "crop_border")
"""Options that say what no card says."""
_BESIDE_NO_CLASSES = ("labels_are_indices", "map")
"""Those that a card takes, too, which cannot say what its labels are."""
FORMS = "a folder, a manifest (.csv, .tsv, .jsonl) or shards (data-{000..127}.tar)"


def parse_data_spec(spec: str, *, option: str = "--data") -> SetSpec:
    """Split `[NAME=]SPEC[?OPTION=VALUE,...]`.

    The part before the first `=` is a name where it contains neither `/` nor `?`: a folder
    called `a=b` is given as `./a=b`. What follows the last `?` are options where it begins
    with a word and `=`.

    Args:
        option: The option that the spec was given with, for messages.
    Raises:
        UsageError: A part is empty, or an option unknown.
    """
    form = "expected [NAME=]SPEC[?OPTION=VALUE,...]"
    name, equals, rest = spec.partition("=")
    if not equals or "/" in name or "?" in name:
        name, rest = "", spec
    elif not name.strip():
        raise UsageError(f"{option} {spec!r} has an empty name; {form}")
    data, mark, text = rest.rpartition("?")
    if not mark or not re.match(r"\w+=", text):
        data, text = rest, ""
    if not data:
        raise UsageError(f"{option} {spec!r} names no data; {form}")
    if re.search(rf"&({'|'.join(OPTION_NAMES)})=", text):
        raise UsageError(
            f"{option} {spec!r}: options are separated by a comma, not by &",
            hint=f"write ?{text.replace('&', ',')}",
        )
    pairs = [part.partition("=")[::2] for part in text.split(",")] if text else []
    repeated = sorted({key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1})
    if repeated:
        raise UsageError(f"{option} {spec!r}: {', '.join(repeated)} is given more than once")
    options = parse_set_options(
        {key.strip(): value.strip() for key, value in pairs}, where=f"{option} {spec!r}"
    )
    return SetSpec(name.strip() or None, data, options)


def open_image_set(spec: str, *, option: str = "--data") -> ImageSet:
    """List the one image set that a spec names.

    Args:
        spec: `[NAME=]SPEC[?OPTION=VALUE,...]`.
        option: The option that the spec was given with, for messages.
    Raises:
        UsageError: The spec is malformed, or names a suite.
        DatasetError: The set cannot be listed.
    """
    parsed = parse_data_spec(spec, option=option)
    if is_suite(parsed):
        raise UsageError(f"{option} {spec!r} is a suite of several sets; expected one set: {FORMS}")
    return open_parsed(parsed)


def open_training_set(spec: str) -> ImageSet:
    """List the image set that `--train` names.

    A published set's first split is the one to test on: to train, a split is named.

    Raises:
        UsageError: The spec is malformed, names a suite, or leaves out which split trains.
        DatasetError: The set cannot be listed.
    """
    option = "--train"
    parsed = parse_data_spec(spec, option=option)
    source = _card_of(parsed)
    if source is None or parsed.options.split is not None:
        return open_image_set(spec, option=option)
    splits = [part.split for part in read_dataset_card(source).parts]
    if "train" in splits:
        behind = f"{spec}{',' if parsed.options.given else '?'}split=train"
        raise UsageError(
            f"{option} {spec!r} names no split of {source}, which has {', '.join(splits)}",
            hint=f"name the one to train on: {behind!r}",
        )
    images = open_image_set(spec, option=option)
    doubt = (
        f"image set {images.name!r} has no split to train on: whatever trains here cannot be"
        " evaluated on it"
    )
    return replace(images, warnings=(*images.warnings, doubt))


def open_image_sets(spec: str, *, option: str = "--data") -> tuple[ImageSet, ...]:
    """List the image sets that a spec names: one, or those of a suite.

    Raises:
        UsageError: The spec is malformed.
        DatasetError: A set cannot be listed, or the suite not be read.
    """
    parsed = parse_data_spec(spec, option=option)
    if not is_suite(parsed):
        return (open_parsed(parsed),)
    if parsed.name is not None or parsed.options.given:
        raise UsageError(
            f"{option} {spec!r}: a suite has names and options of its own",
            hint=f"write them into {parsed.data}",
        )
    return tuple(open_parsed(entry) for entry in read_suite(Path(parsed.data)))


def open_suite(source: str, root: Path | None) -> tuple[ImageSet, ...]:
    """List the image sets of a suite.

    Args:
        source: The name of a suite that ships with the package, or the path of a file.
        root: The folder that holds a folder a set, called as the suite says; a suite's own
            folder where None.
    Raises:
        UsageError: No suite has that name, or it needs a root.
        DatasetError: The suite cannot be read, or a set not be listed; those that are not
            there are all named.
    """
    path = find_suite(source)
    specs = [_as_unpacked(spec) for spec in read_suite(path, root=root)]
    places = [Path(spec.data) for spec in specs]
    if source in suite_names() and root is None:
        names = ", ".join(dict.fromkeys(place.name for place in places))
        raise UsageError(
            f"the suite {source!r} needs --root", hint=f"name the folder that holds {names}"
        )
    if root is not None and not is_folder(root):
        found = "is no folder" if is_there(root) else "does not exist"
        raise DatasetError(f"suite {source}: the root {root} {found}")
    missing = [
        f"  {spec.title}: {place}"
        for spec, place in zip(specs, places, strict=True)
        if not is_there(place)
    ]
    if missing:
        raise DatasetError(
            "\n".join(
                [f"suite {source}: {len(missing)} of {len(specs)} sets are not there:", *missing]
            ),
            hint="`wiseft datasets show NAME` says where to get one, and what its folders are"
            " called; for fewer sets name each with --data, or write a suite of your own",
        )
    return tuple(map(open_parsed, specs))


def _as_unpacked(spec: SetSpec) -> SetSpec:
    """Take a published set from the folder above where its download was unpacked there."""
    place, source = Path(spec.data), spec.options.card
    if is_there(place) or source is None or source == NO_CARD:
        return spec
    part = read_dataset_card(source).part(spec.options.split)
    if not any(is_folder(place.parent / folder) for folder in part.folders):
        return spec
    return replace(spec, data=str(place.parent))


def is_suite(spec: SetSpec) -> bool:
    """Return whether a spec names a file that lists sets."""
    return spec.data.lower().endswith(SUITE_SUFFIXES)


def open_parsed(spec: SetSpec) -> ImageSet:
    """List the set of a spec in its parts.

    Raises:
        DatasetError: The set cannot be listed.
        UsageError: An option does not belong to this kind of set.
    """
    path, options = Path(spec.data), spec.options
    card = _card_of(spec)
    if card is not None:
        return _open_carded(spec, card)
    ending = path.suffix.lower()
    is_manifest = ending in MANIFEST_SUFFIXES and not is_folder(path)
    if options.of_manifests and not is_manifest:
        raise UsageError(
            f"{spec.data}: only a manifest ({', '.join(MANIFEST_SUFFIXES)}) takes"
            f" {', '.join(options.of_manifests)}"
        )
    if is_manifest:
        name = spec.name or "-".join(filter(None, [path.stem, options.split]))
        images = list_manifest(path, name=name, split=options.split, columns=options.columns)
    elif ending == ".tar" and not is_folder(path):
        images = list_shards(spec.data, name=spec.name)
    elif is_regular_file(path):
        raise DatasetError(f"{path} is a file of no known kind; expected {FORMS}")
    else:
        _refuse_names_of_suites(spec)
        images = list_image_folder(path, name=spec.name)
        images = replace(images, notes=(*_nearly_a_card(spec), *images.notes))
    return _with_join_options(images, options)


def _refuse_names_of_suites(spec: SetSpec) -> None:
    if spec.data in suite_names() and not Path(spec.data).exists():
        raise UsageError(
            f"{spec.data} is a suite of several sets, and no folder of that name is here",
            hint=f"wiseft eval --suite {spec.data} --root DIR",
        )


def _card_of(spec: SetSpec) -> str | None:
    """Return the card that a spec names: as an option, or by the name of a folder's set."""
    if spec.options.card is not None:
        return None if spec.options.card == NO_CARD else spec.options.card
    name = spec.name or ""
    return name if _means_folder(spec) and is_dataset_card_name(name) else None


def _means_folder(spec: SetSpec) -> bool:
    return not Path(spec.data).suffix or is_folder(Path(spec.data))


def _nearly_a_card(spec: SetSpec) -> tuple[str, ...]:
    """Say that a folder is called nearly as a published set is, whose card is not taken then."""
    name = spec.name or ""
    meant = name.lower().replace("_", "-")
    if (
        spec.options.card is not None
        or not _means_folder(spec)
        or meant not in dataset_card_names()
    ):
        return ()
    return (
        f"image set {name!r} is taken as a plain folder; ?card={meant} behind it takes it as the"
        f" published set {meant}",
    )


def _open_carded(spec: SetSpec, source: str) -> ImageSet:
    card = read_dataset_card(source)
    allowed = _BESIDE_A_CARD if card.labels else (*_BESIDE_A_CARD, *_BESIDE_NO_CLASSES)
    extra = [name for name in spec.options.given if name not in allowed]
    if extra:
        raise UsageError(
            f"{spec.data}: the card {source!r} says what {', '.join(extra)} would",
            hint="leave it out, or add card=none to take the data without its card",
        )
    images = open_carded_set(card, Path(spec.data), name=spec.name, split=spec.options.split)
    return _with_join_options(images, spec.options)


def _with_join_options(images: ImageSet, options: SetOptions) -> ImageSet:
    """Attach how labels find classes, and leave out the images that a map leaves out."""
    label_map = None if options.map is None else read_label_map(options.map)
    own = images.join_options
    join_options = replace(
        own,
        labels_are_indices=options.labels_are_indices,
        all_classes=options.all_classes,
        label_map=label_map or own.label_map,
        primary=options.primary or own.primary,
        competing=own.competing if label_map is None else (),
    )
    images = replace(images, join_options=join_options, crop_border=options.crop_border)
    if label_map is None or not label_map.leave_out:
        return images
    absent = set(label_map.leave_out)
    kept = tuple(record for record in images.records if record.label not in absent)
    if not kept:
        raise DatasetError(
            f"{label_map.path}: leaves out every label of image set {images.name!r}:"
            f" {', '.join(list_some([repr(label) for label in images.labels]))}"
        )
    n_left_out = len(images.records) - len(kept)
    note = f"image set {images.name!r}: {label_map.path} leaves out {n_left_out} images"
    return replace(images, records=kept, notes=(*images.notes, note))

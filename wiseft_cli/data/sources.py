"""Open the image sets that specs name: folders, manifests, shards, published sets and suites.

A new kind of data is a module that returns an `ImageSet`, called from `open_spec`.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.clip_benchmark import find_splits, list_clip_benchmark
from wiseft_cli.data.dataset_card import (
    dataset_card_names,
    is_dataset_card_name,
    read_dataset_card,
)
from wiseft_cli.data.files import is_folder, is_regular_file, is_tar_file, path_exists
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_join import to_nfc
from wiseft_cli.data.label_map import LabelMap, read_label_map
from wiseft_cli.data.manifest import MANIFEST_SUFFIXES, list_manifest
from wiseft_cli.data.published_set import open_published_set
from wiseft_cli.data.records import ImageRecords
from wiseft_cli.data.shards import list_shards
from wiseft_cli.data.spec import NO_CARD, SetOptions, SetSpec, parse_spec
from wiseft_cli.data.suggestions import published_set_of
from wiseft_cli.data.suite import find_suite_sets, read_suite, suite_names
from wiseft_cli.errors import DatasetError, UsageError, counted, did_you_mean_path, list_some

_KINDS = "a folder, a manifest (.csv, .tsv, .jsonl) or shards (data-{000..127}.tar)"
_COMPRESSED_TAR = r"(?i)\.(tar\.\w+|tgz|tbz2?|txz|tzst)$"
_ALLOWED_WITH_CARD = (
    "card",
    "split",
    "primary",
    "all_classes",
    "crop_border",
    "exif_orientation",
)
_ALLOWED_WITH_CARD_WITHOUT_LABELS = (*_ALLOWED_WITH_CARD, "labels_are_indices", "map")


def open_image_set(spec: str, *, option: str = "--data") -> ImageSet:
    """Open the one image set that a spec names.

    Args:
        spec: `[NAME=]SPEC[?OPTION=VALUE,...]`.
        option: Command-line option that the spec belongs to, for messages.
    Raises:
        UsageError: The spec is malformed, or names a suite.
        DatasetError: The set cannot be listed.
    """
    return open_spec(_parse_single(spec, option))


def open_training_set(spec: str) -> ImageSet:
    """Open the image set given with `--train`.

    The default split of a published set is its test split, so that training requires the name of
    a split.

    Raises:
        UsageError: The spec is malformed, names a suite, or does not name a split to train on.
        DatasetError: The set cannot be listed.
    """
    parsed = _parse_single(spec, "--train")
    source = _card_of(parsed)
    if source is None or parsed.options.split is not None:
        return open_spec(parsed)
    splits = [split.name for split in read_dataset_card(source).splits]
    if "train" in splits:
        with_split = f"{spec}{',' if parsed.options.given else '?'}split=train"
        raise UsageError(
            f"--train {spec!r} does not name a split of {source}; the splits are"
            f" {', '.join(splits)}",
            hint=f"name the split to train on: {with_split!r}",
        )
    images = open_spec(parsed)
    warning = (
        f"image set {images.name!r} has no training split: a model trained on it cannot be"
        " evaluated on it"
    )
    return replace(images, warnings=(*images.warnings, warning))


def open_image_sets(spec: str) -> tuple[ImageSet, ...]:
    """Open the image sets that a spec names: one, or all sets of a suite.

    Raises:
        UsageError: The spec is malformed.
        DatasetError: A set cannot be listed, or the suite cannot be read.
    """
    parsed = parse_spec(spec, option="--data")
    if not parsed.is_suite:
        return (open_spec(parsed),)
    if parsed.name is not None or parsed.options.given:
        raise UsageError(
            f"--data {spec!r}: the sets of a suite have their own names and options",
            hint=f"write them into {parsed.data}",
        )
    return tuple(map(open_spec, read_suite(Path(parsed.data))))


def open_suite(source: str, root: Path | None) -> tuple[ImageSet, ...]:
    """Open the image sets of a suite.

    Args:
        source: As in `find_suite_sets`.
        root: As in `find_suite_sets`.
    Raises:
        UsageError: No suite has that name, or it needs a root.
        DatasetError: The suite cannot be read, or a set is missing or cannot be listed.
    """
    return tuple(map(open_spec, find_suite_sets(source, root)))


def open_spec(spec: SetSpec) -> ImageSet:
    """Open the image set of a parsed spec.

    Raises:
        DatasetError: The set cannot be listed.
        UsageError: An option does not apply to this kind of data.
    """
    card = _card_of(spec)
    images = _list_images(spec) if card is None else _open_published(spec, card)
    images = _with_join_options(images, spec.options)
    label_map = None if spec.options.map is None else images.join_options.label_map
    return images if label_map is None else _without_left_out(images, label_map)


def _parse_single(spec: str, option: str) -> SetSpec:
    parsed = parse_spec(spec, option=option)
    if parsed.is_suite:
        raise UsageError(
            f"{option} {spec!r} is a suite of several sets; expected one set: {_KINDS}"
        )
    return parsed


def _list_images(spec: SetSpec) -> ImageSet:
    _reject_remote(spec.data)
    path, options = Path(spec.data), spec.options
    suffix = path.suffix.lower()
    if suffix in (*MANIFEST_SUFFIXES, ".tar") and is_folder(path):
        suffix = ""
    is_benchmark = not suffix and bool(find_splits(path))
    if is_benchmark and set(options.of_manifests) <= {"split"}:
        return list_clip_benchmark(path, name=spec.name, split=options.split)
    if options.of_manifests and suffix not in MANIFEST_SUFFIXES:
        raise UsageError(
            f"{spec.data}: {', '.join(options.of_manifests)} applies only to manifests"
            f" ({', '.join(MANIFEST_SUFFIXES)})"
        )
    if suffix in MANIFEST_SUFFIXES and not path_exists(path):
        raise DatasetError(f"manifest {path} does not exist", hint=did_you_mean_path(path))
    if suffix in MANIFEST_SUFFIXES:
        name = spec.name or "-".join(filter(None, [path.stem, options.split]))
        return list_manifest(path, name=name, split=options.split, columns=options.columns)
    if suffix == ".tar":
        return list_shards(spec.data, name=spec.name)
    if is_regular_file(path) or re.search(_COMPRESSED_TAR, spec.data):
        raise _unknown_file(path)
    if spec.data in suite_names() and not path.exists():
        raise UsageError(
            f"{spec.data} is a suite of several sets, and no folder of that name exists",
            hint=f"wiseft eval --suite {spec.data} --root DIR",
        )
    try:
        images = list_image_folder(path, name=spec.name)
    except DatasetError as error:
        card = published_set_of(path)
        hint = card and f"did you mean the published set {card}? Give it as {card}={path}"
        raise DatasetError(error.message, hint=hint or error.hint) from None
    return replace(images, notes=(*_note_similar_card(spec), *images.notes))


def _reject_remote(data: str) -> None:
    """Reject URLs and commands, which webdataset reads."""
    if data.startswith("pipe:"):
        raise UsageError(
            f"{data} is a command; expected {_KINDS}",
            hint="write its output to files first, and name these",
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", data):
        raise UsageError(
            f"{data} is a URL; expected {_KINDS}", hint="download the files first, and name these"
        )


def _unknown_file(path: Path) -> DatasetError:
    if re.search(_COMPRESSED_TAR, path.name):
        return DatasetError(
            f"{path} is a compressed tar file; shards are plain tar files",
            hint="decompress it, for example with gunzip, unxz or unzstd",
        )
    if is_tar_file(path):
        return DatasetError(
            f"{path} is a tar file, but its name does not end in .tar", hint="rename the shard"
        )
    return DatasetError(f"{path} is not a known kind of file; expected {_KINDS}")


def _card_of(spec: SetSpec) -> str | None:
    """Return the card that a spec names, by option or by the name of a set in a folder."""
    if spec.options.card is not None:
        return None if spec.options.card == NO_CARD else spec.options.card
    name = spec.name or ""
    return name if _may_be_folder(spec) and is_dataset_card_name(name) else None


def _may_be_folder(spec: SetSpec) -> bool:
    return not Path(spec.data).suffix or is_folder(Path(spec.data))


def _note_similar_card(spec: SetSpec) -> tuple[str, ...]:
    """Note that a set is named almost like a published set, whose card is not used."""
    name = spec.name or os.path.basename(os.path.abspath(spec.data))
    similar = name.lower().replace("_", "-")
    is_open = spec.options.card is None and _may_be_folder(spec)
    if not is_open or similar not in dataset_card_names():
        return ()
    return (
        f"image set {name!r} is read as a plain folder; add ?card={similar} to read it as the"
        f" published set {similar}",
    )


def _open_published(spec: SetSpec, source: str) -> ImageSet:
    card = read_dataset_card(source)
    allowed = _ALLOWED_WITH_CARD if card.labels else _ALLOWED_WITH_CARD_WITHOUT_LABELS
    extra = [name for name in spec.options.given if name not in allowed]
    if extra:
        raise UsageError(
            f"{spec.data}: the card {source!r} already determines {', '.join(extra)}",
            hint="omit the option, or add card=none to read the data without its card",
        )
    return open_published_set(card, Path(spec.data), name=spec.name, split=spec.options.split)


def _with_join_options(images: ImageSet, options: SetOptions) -> ImageSet:
    own = images.join_options
    label_map = None if options.map is None else read_label_map(options.map)
    join_options = replace(
        own,
        labels_are_indices=options.labels_are_indices,
        all_classes=options.all_classes,
        label_map=label_map or own.label_map,
        primary=options.primary or own.primary,
        competing=own.competing if label_map is None else (),
    )
    return replace(
        images,
        join_options=join_options,
        crop_border=options.crop_border,
        exif_orientation=options.exif_orientation or images.exif_orientation,
    )


def _without_left_out(images: ImageSet, label_map: LabelMap) -> ImageSet:
    """Remove the images whose labels are under `leave_out:` in a label map."""
    absent = {to_nfc(label) for label in label_map.leave_out}
    if not absent:
        return images
    kept = ImageRecords(record for record in images.records if to_nfc(record.label) not in absent)
    if not kept:
        raise DatasetError(
            f"{label_map.path}: leaves out every label of image set {images.name!r}:"
            f" {', '.join(list_some([repr(label) for label in images.labels]))}"
        )
    left_out = counted(len(images.records) - len(kept), "image")
    note = f"image set {images.name!r}: {label_map.path} leaves out {left_out}"
    return replace(images, records=kept, notes=(*images.notes, note))

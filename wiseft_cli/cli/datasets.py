"""`wiseft datasets`: the published image sets that wiseft knows, and copies of them on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wiseft_cli.cli.completion import complete_classes
from wiseft_cli.cli.console import print_block, print_json, print_result, progress, warn
from wiseft_cli.cli.options import Json
from wiseft_cli.errors import DatasetError, UsageError, list_some

if TYPE_CHECKING:
    from wiseft_cli.data.dataset_card import DatasetCard

EXAMPLES = """wiseft datasets show imagenet-r
wiseft datasets check imagenet-r /data/imagenet-r"""

_FORMS = {"list": "list", "show": "show NAME", "check": "check NAME ROOT"}


def datasets(
    action: Annotated[
        Literal["list", "show", "check"],
        typer.Argument(
            metavar="list|show|check",
            help="List the sets and suites, show the card of a set, or check a copy on disk.",
        ),
    ] = "list",
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=complete_classes,
            metavar="NAME",
            help="A set or suite of the list, torchvision:CLASS for another set that torchvision"
            " reads, or the path of your own card (.yaml).",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Argument(
            metavar="ROOT",
            help="The folder that the download was unpacked into.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Split to check.  [default: the card's first]",
            rich_help_panel="Check",
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Number of images to decode, spread over the set.",
            rich_help_panel="Check",
        ),
    ] = 100,
    as_json: Json = False,
) -> None:
    """List published image sets, show their cards, check copies on disk.

    `check` verifies layout and counts, decodes a sample of the images, and exits with 1 if
    anything differs from the card.
    """
    if _FORMS[action].count(" ") != sum(word is not None for word in (name, root)):
        raise UsageError(
            f"expected: wiseft datasets {_FORMS[action]}",
            hint="`wiseft datasets` lists the names",
        )
    if split is not None and action != "check":
        raise UsageError("--split is only for wiseft datasets check")
    if name is None:
        _list(as_json=as_json)
    elif root is None:
        _show(name, as_json=as_json)
    else:
        _check(name, root, split, sample, as_json=as_json)


def _list(*, as_json: bool) -> None:
    # lazy: yaml takes time to import, and --help does not need it
    from wiseft_cli.data.dataset_card import dataset_card_names, read_dataset_card
    from wiseft_cli.data.suite import find_suite, read_suite, suite_names

    cards = [read_dataset_card(name) for name in dataset_card_names()]
    suites = {name: [spec.title for spec in read_suite(find_suite(name))] for name in suite_names()}
    if as_json:
        print_json({"sets": [_document(card) for card in cards], "suites": suites})
        return
    width = max(map(len, (*suites, *(card.name for card in cards))))
    for card in cards:
        counts = f"{card.split().n_images:>9,} images  {len(card.labels):>5,} classes"
        print_result(f"{card.name:<{width}}  {counts}  {card.title}")
    print_block("\nsuites, for wiseft eval --suite NAME --root DIR:")
    for name, sets in suites.items():
        print_result(f"{name:<{width}}  {', '.join(sets)}")
    print_block("\ntorchvision:CLASS names any other set of classes that torchvision reads")


def _document(card: DatasetCard) -> dict[str, Any]:
    """Return a card as a JSON object."""
    document = asdict(card)
    document["parts"] = [{"split": split.pop("name"), **split} for split in document.pop("splits")]
    if card.label_map is not None:
        document["label_map"]["path"] = str(card.label_map.path)
    return document


def _show(name: str, *, as_json: bool) -> None:
    from wiseft_cli.data.dataset_card import read_dataset_card
    from wiseft_cli.data.suite import suite_names

    if name in suite_names():
        _show_suite(name, as_json=as_json)
        return
    card = read_dataset_card(name)
    if as_json:
        print_json(_document(card))
        return
    for key, value in _facts(card):
        print_result(f"{key:<10} {value}")


def _facts(card: DatasetCard) -> Iterator[tuple[str, str]]:
    """Yield the lines of `datasets show`."""
    for key in ("name", "title", "source", "licence", "citation", "layout"):
        yield key, getattr(card, key)
    if card.exif_orientation is not None:
        yield "exif", f"orientation: {card.exif_orientation}"
    for split in card.splits:
        if split.name:
            yield "split", split.name
        yield "folders", ", ".join(split.folders) or "the root"
        yield "n_images", "unknown" if split.n_images is None else f"{split.n_images:,}"
        yield "n_classes", "unknown" if split.n_classes is None else f"{split.n_classes:,}"
        if split.n_anchors is not None:
            yield "n_anchors", f"{split.n_anchors:,}"
        yield "primary", split.primary
        if split.options:
            yield "options", ", ".join(f"{key}: {of}" for key, of in split.options.items())
    yield "classes", card.classes
    yield "class_ids", ", ".join(list_some(card.class_ids, limit=5)) or "known from the data only"
    if card.label_map is not None:
        yield "map", str(card.label_map.path)
    yield "templates", card.templates
    for note in card.notes:
        yield "note", note


def _show_suite(name: str, *, as_json: bool) -> None:
    """Print one line per set of a suite: its name in reports, its card, split and folder."""
    from wiseft_cli.data.suite import find_suite, read_suite

    rows = [
        {
            "name": spec.title,
            "card": spec.options.card,
            "split": spec.options.split,
            "folder": spec.data,
        }
        for spec in read_suite(find_suite(name), root=Path())
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        split = f", split {row['split']}" if row["split"] else ""
        print_result(f"{row['name']}: the set {row['card']}{split}, in ROOT/{row['folder']}")


def _check(name: str, root: Path, split: str | None, sample: int, *, as_json: bool) -> None:
    from wiseft_cli.checkpoint.card import APPLY_ORIENTATION
    from wiseft_cli.data.dataset_card import read_dataset_card
    from wiseft_cli.data.images import decode_sample
    from wiseft_cli.data.published_set import open_published_set
    from wiseft_cli.evaluation.metrics import METRIC_NAMES

    images = open_published_set(read_dataset_card(name), root, split=split)
    for note in images.notes:
        warn(note)
    faults = list(images.warnings)
    primary = images.join_options.primary
    if primary not in METRIC_NAMES:
        faults.append(f"primary is {primary!r}, expected one of {', '.join(METRIC_NAMES)}")
    n_images, n_classes = len(images.records), len(images.accepted_labels)
    n_tried = min(sample, n_images)
    with progress(n_tried, "decoding a sample") as advance:
        decoded = decode_sample(images, n_tried, advance)
    faults += decoded.unreadable
    n_decoded = decoded.n_decoded
    if decoded.n_rotated and images.exif_orientation != APPLY_ORIENTATION:
        warn(
            f"{decoded.n_rotated:,} of {n_decoded:,} decoded images carry an EXIF orientation; it"
            " is applied only if the checkpoint's preprocessing says so or with"
            " ?exif_orientation=apply"
        )
    if as_json:
        print_json(
            {
                "name": images.name,
                "root": str(images.root),
                "n_images": n_images,
                "n_classes": n_classes,
                "n_decoded": n_decoded,
                "n_rotated": decoded.n_rotated,
                "faults": faults,
            }
        )
    else:
        print_result(
            f"{images.name}: {images.root}: {n_images:,} images of {n_classes:,} classes;"
            f" {n_decoded:,} decoded"
        )
    if faults:
        raise DatasetError(f"{images.root} differs from the card", faults=faults)

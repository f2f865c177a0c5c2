"""`wiseft datasets`: what is known of published image sets, and whether a copy on disk is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wiseft_cli.cli.console import print_json, print_result, progress, warn
from wiseft_cli.errors import DatasetError, UsageError, list_some

if TYPE_CHECKING:
    from wiseft_cli.data.card_form import DatasetCard
    from wiseft_cli.data.image_set import ImageSet

_NEEDS = {"list": 0, "show": 1, "check": 2}
_WORDS = ("NAME", "ROOT")


def datasets(
    action: Annotated[
        Literal["list", "show", "check"],
        typer.Argument(
            metavar="[list|show|check]",
            help="List the sets, show the card of one, or check a copy of it on disk.",
        ),
    ] = "list",
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A set of the list, torchvision:CLASS for another set that torchvision reads, or"
            " the path of a card of your own (.yaml).",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ROOT]",
            help="The folder that the download was unpacked into.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="The split that check looks at.  [default: the card's first]"),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="How many images check decodes, spread over the set.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show the published image sets that go by name, and check copies of them.

    `check` verifies the layout and the counts, decodes a sample of the images, and exits with 1
    where something differs, before an evaluation does.
    """
    _check_words(action, (name, None if root is None else str(root)))
    if split is not None and action != "check":
        raise UsageError("--split is for wiseft datasets check")
    if name is None:
        _list(as_json=as_json)
    elif root is None:
        _show(name, as_json=as_json)
    else:
        _check(name, root, split, sample, as_json=as_json)


def _check_words(action: str, given: tuple[str | None, ...]) -> None:
    needs = _NEEDS[action]
    form = " ".join(["wiseft datasets", action, *_WORDS[:needs]])
    if sum(word is not None for word in given) != needs:
        raise UsageError(f"expected: {form}", hint="`wiseft datasets` lists the names")


def _list(*, as_json: bool) -> None:
    # lazy: yaml costs a while, and --help needs none of it
    from wiseft_cli.data.dataset_card import dataset_card_names, read_dataset_card
    from wiseft_cli.data.suite import find_suite, read_suite, suite_names

    cards = [read_dataset_card(name) for name in dataset_card_names()]
    suites = {name: read_suite(find_suite(name)) for name in suite_names()}
    if as_json:
        sets = {name: [spec.title for spec in specs] for name, specs in suites.items()}
        print_json({"sets": [_document(card) for card in cards], "suites": sets})
        return
    width = max(map(len, (*suites, *(card.name for card in cards))))
    for card in cards:
        counts = f"{card.part().n_images:>9,} images  {len(card.labels):>5,} classes"
        print_result(f"{card.name:<{width}}  {counts}  {card.title}")
    print_result("\nsuites, for wiseft eval --suite NAME --root DIR:")
    for name, specs in suites.items():
        print_result(f"{name:<{width}}  {', '.join(spec.title for spec in specs)}")
    print_result("\ntorchvision:CLASS names any other set of classes that torchvision reads")


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
    for key in ("name", "title", "source", "licence", "citation", "layout"):
        _print_fact(key, getattr(card, key))
    for part in card.parts:
        if part.split:
            _print_fact("split", part.split)
        _print_fact("folders", ", ".join(part.folders) or "the root")
        for key, count in (("n_images", part.n_images), ("n_classes", part.n_classes)):
            _print_fact(key, "unknown" if count is None else f"{count:,}")
        if part.n_anchors is not None:
            _print_fact("n_anchors", f"{part.n_anchors:,}")
        _print_fact("primary", part.primary)
        if part.options:
            _print_fact("options", ", ".join(f"{key}: {of}" for key, of in part.options.items()))
    _print_fact("classes", card.classes)
    known = ", ".join(list_some(card.class_ids, limit=5))
    _print_fact("class_ids", known or "as torchvision finds them in the data")
    if card.label_map is not None:
        _print_fact("map", str(card.label_map.path))
    _print_fact("templates", card.templates)
    for note in card.notes:
        _print_fact("note", note)


def _show_suite(name: str, *, as_json: bool) -> None:
    """Print a line for each set of a suite: its name in reports, its card, split and folder."""
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


def _print_fact(key: str, value: str) -> None:
    print_result(f"{key:<10} {value}")


def _check(name: str, root: Path, split: str | None, sample: int, *, as_json: bool) -> None:
    from wiseft_cli.data.carded_set import open_carded_set
    from wiseft_cli.data.dataset_card import read_dataset_card

    images = open_carded_set(read_dataset_card(name), root, split=split)
    for note in images.notes:
        warn(note)
    n_decoded, unreadable = _decode_sample(images, sample)
    faults = [*_unknown_metric(images.join_options.primary), *images.warnings, *unreadable]
    n_images, n_classes = len(images.records), len(images.accepted_labels)
    if as_json:
        print_json(
            {
                "name": images.name,
                "root": str(images.root),
                "n_images": n_images,
                "n_classes": n_classes,
                "n_decoded": n_decoded,
                "faults": faults,
            }
        )
    else:
        print_result(
            f"{images.name}: {images.root}: {n_images:,} images of {n_classes:,} classes;"
            f" {n_decoded:,} decoded"
        )
    if faults:
        raise DatasetError(f"{images.root}: not as the card says\n  " + "\n  ".join(faults))


def _unknown_metric(primary: str | None) -> list[str]:
    from wiseft_cli.evaluation.metrics import METRIC_NAMES  # lazy: scipy costs a while

    if primary is None or primary in METRIC_NAMES:
        return []
    return [f"primary is {primary!r}, expected one of {', '.join(METRIC_NAMES)}"]


def _decode_sample(images: ImageSet, sample: int) -> tuple[int, list[str]]:
    """Return how many images of an even spread decode, and what is wrong with the others."""
    from wiseft_cli.data.images import find_unreadable_images  # lazy: numpy costs a while

    taken = min(sample, len(images.records))
    with progress(taken, "decoding a sample") as advance:
        unreadable = find_unreadable_images(images, taken, advance)
    return taken - len(unreadable), unreadable


def _document(card: DatasetCard) -> dict[str, object]:
    document = asdict(card)
    if card.label_map is not None:
        document["label_map"]["path"] = str(card.label_map.path)
    return document

"""`wiseft inspect`: what a checkpoint is, from its header, and with --verify from its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_cli.cli.console import print_json, print_result, progress
from wiseft_cli.errors import CheckpointError, list_some

if TYPE_CHECKING:
    from wiseft_cli.checkpoint.card import Card
    from wiseft_cli.checkpoint.reader import CheckpointReader, ContentReport
    from wiseft_cli.checkpoint.summary import Summary


def inspect(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A safetensors file, an index of shards, or a folder."),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor: name, dtype, shape.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read the data: check the content digest, and that it is finite."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what a checkpoint is and how it came to be.

    Reads the header only, unless --verify asks for the data.
    """
    # lazy: numpy costs a tenth of a second, and --help needs none
    from wiseft_cli.checkpoint.reader import open_checkpoint
    from wiseft_cli.checkpoint.summary import summarize

    with open_checkpoint(file, allow_shards=True) as source:
        summary = summarize(source)
        content = _read_content(source) if verify else None
        if json:
            print_json(_document(source, summary, content, lists_tensors=tensors))
        else:
            _print(source, summary, content, lists_tensors=tensors)
        if content:
            _require_sound(source, content)


def _read_content(source: CheckpointReader) -> ContentReport:
    from wiseft_cli.checkpoint.reader import read_content

    with progress(source.size_bytes, "verifying (bytes)") as advance:
        return read_content(source, on_progress=advance)


def _require_sound(source: CheckpointReader, content: ContentReport) -> None:
    faults = []
    if source.card is not None and source.card.digest != content.digest:
        faults.append(f"content digest {content.digest}, the card says {source.card.digest}")
    faults += [
        f"{name}: {count} numbers are infinite or NaN" for name, count in content.not_finite.items()
    ]
    if faults:
        raise CheckpointError("\n  ".join([f"{source.path}: not sound", *list_some(faults)]))


def _document(
    source: CheckpointReader,
    summary: Summary,
    content: ContentReport | None,
    *,
    lists_tensors: bool,
) -> dict[str, Any]:
    # lazy: as above
    from wiseft_cli.checkpoint.card import METADATA_KEY, card_document

    document: dict[str, Any] = {
        "path": str(source.path),
        **vars(summary),
        "card": card_document(source.card) if source.card else None,
        "metadata": {k: v for k, v in source.metadata.items() if k != METADATA_KEY},
    }
    if lists_tensors:
        document["tensors"] = [
            {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}
            for info in source.tensors.values()
        ]
    if content:
        document["content"] = {
            "digest": content.digest,
            "matches_card": source.card.digest == content.digest if source.card else None,
            "not_finite": content.not_finite,
        }
    return document


def _print(
    source: CheckpointReader,
    summary: Summary,
    content: ContentReport | None,
    *,
    lists_tensors: bool,
) -> None:
    # lazy: as above
    from wiseft_cli.checkpoint.summary import draw_history

    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in summary.dtypes.items())
    rows = [
        *(_card_rows(source.card) if source.card else [("role", "no wiseft card")]),
        ("tensors", f"{summary.n_tensors} ({dtypes})" if dtypes else "0"),
        ("parameters", f"{summary.n_parameters:,}"),
        ("size", f"{summary.size_bytes:,} bytes"),
    ]
    if content:
        rows.append(("verified", content.digest))
    print_result(str(source.path))
    for label, text in rows:
        print_result(f"  {label:<11} {text}")
    if source.card and source.card.history:
        print_result("  history")
        for line in draw_history(source.card):
            print_result(f"    {line}")
    if lists_tensors:
        print_result("  tensors")
        for info in source.tensors.values():
            print_result(f"    {info.name}  {info.dtype}  {list(info.shape)}")


def _card_rows(card: Card) -> list[tuple[str, str]]:
    """Return what the card says, as label and text, leaving out what it does not say."""
    names = [entry.name for entry in card.classes]
    is_shared = isinstance(card.templates, tuple)
    rows = [
        ("role", f"{card.role}, alpha {card.alpha}" if card.alpha else card.role),
        ("digest", card.digest or "unknown"),
    ]
    if card.model:
        rows.append(("model", f"{card.model.name} ({card.model.source or 'random weights'})"))
    if card.preprocess:
        rows.append(("preprocess", _settings(card.preprocess)))
    if names:
        rows.append(("classes", f"{len(names)}: {', '.join(list_some(names, limit=5))}"))
    if is_shared and card.templates:
        texts = list_some([repr(text) for text in card.templates], limit=2)
        rows.append(("templates", f"{len(card.templates)}: {', '.join(texts)}"))
    elif card.templates:
        rows.append(("templates", "each class has its own"))
    if card.recipe:
        rows.append(("recipe", _settings(card.recipe)))
    if card.seed is not None:
        rows.append(("seed", str(card.seed)))
    return rows


def _settings(settings: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))

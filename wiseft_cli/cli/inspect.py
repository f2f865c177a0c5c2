"""`wiseft inspect`: describe a checkpoint from its header, and with --verify check its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_cli.cli.console import print_json, print_result, progress
from wiseft_cli.cli.options import Json
from wiseft_cli.errors import CheckpointError, UsageError, list_some

if TYPE_CHECKING:
    from wiseft_cli.checkpoint.card import Card
    from wiseft_cli.checkpoint.reader import CheckpointReader, ContentReport

EXAMPLES = """
wiseft inspect finetuned.safetensors
wiseft inspect finetuned.safetensors --verify --json
"""


def inspect(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A safetensors file, an index of shards, or a folder."),
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            rich_help_panel="Content",
            help="Read all data; check the content digest and that all values are finite.",
        ),
    ] = False,
    tensors: Annotated[
        bool,
        typer.Option(
            "--tensors",
            rich_help_panel="Content",
            help="List every tensor with its dtype and shape.",
        ),
    ] = False,
    commands: Annotated[
        bool,
        typer.Option(
            "--commands",
            rich_help_panel="Content",
            help="Print the commands that made the checkpoint, as a shell script. Its inputs are "
            "named by their digests.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Describe a checkpoint: model, classes, tensors and history.

    Only the header is read, except with --verify.
    """
    # lazy: numpy takes a tenth of a second, and --help does not need it
    from wiseft_cli.checkpoint.reader import open_checkpoint, read_content
    from wiseft_cli.cli.history_script import history_script
    from wiseft_cli.merging.fisher_file import fisher_info, is_fisher_file, require_own_digest

    with open_checkpoint(file, allow_shards=True) as reader:
        if commands:
            if verify or tensors or json:
                raise UsageError(
                    "--commands prints a script, and takes no --verify, --tensors or --json"
                )
            if reader.card is None or not reader.card.history:
                raise CheckpointError(f"{reader.path}: has no card with a history")
            for line in history_script(reader.card):
                print_result(line)
            return
        content = None
        if verify:
            with progress(reader.size_bytes, "verifying (bytes)") as advance:
                content = read_content(reader, on_progress=advance)
        if json:
            print_json(_document(reader, content, lists_tensors=tensors))
        else:
            _print(reader, content, lists_tensors=tensors)
        if content and is_fisher_file(reader):
            require_own_digest(reader, fisher_info(reader), content.digest)
        if content and (faults := content.find_faults(reader.card)):
            raise CheckpointError(f"{reader.path}: verification failed", faults=faults)


def _document(
    reader: CheckpointReader, content: ContentReport | None, *, lists_tensors: bool
) -> dict[str, Any]:
    # lazy: as above
    from wiseft_cli.checkpoint.card import METADATA_KEY, card_document
    from wiseft_cli.checkpoint.summary import summarize

    document: dict[str, Any] = {
        "path": str(reader.path),
        **vars(summarize(reader)),
        # As stored, the schema included; fields that are missing there have their defaults.
        "card": {**card_document(reader.card), **json.loads(reader.metadata[METADATA_KEY])}
        if reader.card
        else None,
        "partial": reader.partial[0] if reader.partial else None,
        "metadata": {k: v for k, v in reader.metadata.items() if k != METADATA_KEY},
    }
    if lists_tensors:
        document["tensors"] = [
            {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}
            for info in reader.tensors.values()
        ]
    if content:
        document["content"] = {
            "digest": content.digest,
            "matches_card": reader.card.digest == content.digest if reader.card else None,
            "not_finite": content.not_finite,
        }
    return document


def _print(reader: CheckpointReader, content: ContentReport | None, *, lists_tensors: bool) -> None:
    # lazy: as above
    from wiseft_cli.checkpoint.summary import draw_history, summarize

    summary = summarize(reader)
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in summary.dtypes.items())
    rows = [
        *_role_rows(reader),
        ("tensors", f"{summary.n_tensors} ({dtypes})" if dtypes else "0"),
        ("parameters", f"{summary.n_parameters:,}"),
        ("size", f"{summary.size_bytes:,} bytes"),
    ]
    if content:
        rows.append(("verified", content.digest))
    print_result(str(reader.path))
    for label, text in rows:
        print_result(f"  {label:<11} {text}")
    if reader.card and reader.card.history:
        print_result("  history")
        for line in draw_history(reader.card):
            print_result(f"    {line}")
    if lists_tensors:
        print_result("  tensors")
        for info in reader.tensors.values():
            print_result(f"    {info.name}  {info.dtype}  {list(info.shape)}")


def _role_rows(reader: CheckpointReader) -> list[tuple[str, str]]:
    # lazy: as above
    from wiseft_cli.merging.fisher_file import ROLE, fisher_info, is_fisher_file

    if is_fisher_file(reader):
        return [("role", ROLE), ("note", fisher_info(reader).describe())]
    if reader.partial is not None:
        what, remedy = reader.partial
        return [("role", what), ("note", remedy)]
    return _card_rows(reader.card) if reader.card else [("role", "no wiseft card")]


def _card_rows(card: Card) -> list[tuple[str, str]]:
    """Return a label and a text for every entry that the card has."""
    # lazy: as above
    from wiseft_cli.checkpoint.summary import describe_role

    rows = [
        ("role", describe_role(card)),
        ("digest", card.digest or "unknown"),
    ]
    if card.model:
        rows.append(("model", f"{card.model.name} ({card.model.source or 'random weights'})"))
    if card.preprocess:
        rows.append(("preprocess", _settings(card.preprocess)))
    if card.classes:
        names = list_some([entry.name for entry in card.classes], limit=5)
        rows.append(("classes", f"{len(card.classes)}: {', '.join(names)}"))
    if isinstance(card.templates, tuple) and card.templates:
        texts = list_some([repr(text) for text in card.templates], limit=2)
        rows.append(("templates", f"{len(card.templates)}: {', '.join(texts)}"))
    elif card.templates:
        rows.append(("templates", "each class has its own"))
    if card.recipe:
        rows.append(("recipe", _settings(card.recipe)))
    if card.seed is not None:
        rows.append(("seed", str(card.seed)))
    return rows


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))

"""Open the source of a conversion: its tensors, and the folder with its config and tokenizer.

Every form of source ends here as a `Source`; the conversion does not know where tensors lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint, require_whole_checkpoint
from wiseft_cli.checkpoint.shards import is_adapter
from wiseft_cli.convert.adapted import finetuned_card, open_adapted
from wiseft_cli.convert.torch_files import find_torch_file, open_torch_weights
from wiseft_cli.errors import UsageError


@dataclass(frozen=True)
class Source:
    """What a conversion reads.

    Attributes:
        reader: The tensors, as they are stored.
        folder: The folder with config.json and so on; None if there is none.
        notes: What was chosen and left out, for the user.
        keeps_names: Whether the names stay as they are unless a library is given.
        inputs: Files that it is read from, besides those of the reader.
        card: Card of the result, if it is a checkpoint of wiseft.
    """

    reader: CheckpointReader
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    keeps_names: bool = False
    inputs: tuple[Path, ...] = ()
    card: Card | None = None


@contextmanager
def open_source(
    source: str | Path, *, key: str | None = None, base: Path | None = None
) -> Iterator[Source]:
    """Open a file, an index of shards, or a folder; a file of torch.save; or a LoRA adapter.

    Args:
        key: Where the weights are in a file of torch.save that holds several.
        base: The model that an adapter was trained on.
    Raises:
        NotACheckpointError: It is not a whole checkpoint.
        CheckpointError: An index and its shards do not agree, or an adapter does not fit `base`.
        UsageError: `key` or `base` is missing, or does not apply.
    """
    path = Path(source)
    if is_adapter(path):
        _require_unused(path, "a LoRA adapter", key=key)
        if base is None:
            raise UsageError(
                f"{path}: is a LoRA adapter, which changes a model",
                hint="name the model that it was trained on with --base",
            )
        with (
            open_checkpoint(base, allow_shards=True) as model,
            open_adapted(path, model) as adapted,
        ):
            yield Source(
                adapted,
                base if base.is_dir() else base.parent,
                keeps_names=True,
                inputs=model.files,
                card=finetuned_card(model, path),
            )
        return
    _require_unused(path, "not a LoRA adapter", base=base)
    if (file := find_torch_file(path)) is not None:
        saved, notes = open_torch_weights(file, key=key)
        with saved:
            yield Source(saved, file.parent, tuple(notes), True)
        return
    _require_unused(path, "not a file of torch.save", key=key)
    with open_checkpoint(path, allow_shards=True) as reader:
        require_whole_checkpoint(reader)
        yield Source(reader, path if path.is_dir() else path.parent)


def _require_unused(path: Path, what: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name} does not apply: {path} is {what}")

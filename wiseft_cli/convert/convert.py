"""Convert a checkpoint to the tensor names of another library, tensor by tensor.

Nothing is computed: bytes are moved, in bounded memory, so that the reverse conversion gives
the same tensors. A tensor that the tables do not know stops the conversion before anything is
written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wiseft_cli.checkpoint.atomic_folder import AtomicFolder
from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.format import TensorSpec, plan_layout
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.convert.configs import (
    CONFIG_NAME,
    check_config_against_tensors,
    read_transformers_config,
)
from wiseft_cli.convert.folder import WEIGHTS_NAMES, read_model_files, write_model_files
from wiseft_cli.convert.foreign import reject_foreign, reject_quantized
from wiseft_cli.convert.names import LIBRARIES, Library, Naming
from wiseft_cli.convert.plain_names import read_plainly, rename
from wiseft_cli.convert.source import Source, open_source
from wiseft_cli.convert.view import ConvertedReader, NamePlan, plan_names
from wiseft_cli.errors import CheckpointError, UsageError, counted, list_some

MANIFEST_NAME = "wiseft_convert.json"
CONVERTED_FROM = "converted_from"
"""Entry of `__metadata__` with the naming that a file had before."""

_CHUNK_BYTES = 4 << 20
_VISION_MODEL = "vision_model."
"""Prefix that transformers omits in the file of an image encoder alone, since version 5.6."""


@dataclass(frozen=True)
class Conversion:
    """A file under the names of another library.

    Attributes:
        reader: The tensors under their new names.
        source: The naming of the file; None if it is unknown and names are kept.
        target: The naming of `reader`; None as above.
        notes: What was removed or left out, for the user.
        card: The card to write, if the result is a checkpoint of wiseft.
    """

    reader: CheckpointReader
    source: Naming | None
    target: Naming | None
    notes: tuple[str, ...]
    card: Card | None = None


@dataclass(frozen=True)
class ConvertedFile:
    """A file that `convert_checkpoint` wrote; `digest` is its content digest."""

    path: Path
    digest: str
    source: Naming | None
    target: Naming | None
    n_tensors: int
    notes: tuple[str, ...]


def convert_names(reader: CheckpointReader, to: Library) -> Conversion:
    """Return a checkpoint's tensors under the names of a library; only headers are read.

    Raises:
        CheckpointError: The file is not a CLIP or SigLIP model, or has tensors that the table
            does not know, or lacks some; all are listed.
    """
    reject_quantized(reader)
    plain, source, removed = read_plainly(reader)
    if source is None:
        raise reject_foreign(reader)
    notes = [f"removed from the names: {removed}"] if removed else []
    view = plain
    dropped: list[str] = []
    other = _other_naming(reader, source, to)
    if source.library != "open_clip":
        plan = _checked(reader, source, plan_names(view, source, to_open_clip=True))
        view, dropped = ConvertedReader(view, plan.derived), [*plan.dropped]
    else:  # checked, so that the same file is accepted whatever it is converted to
        _checked(reader, source, plan_names(view, other, to_open_clip=False))
    if to != "open_clip":
        plan = _checked(reader, source, plan_names(view, other, to_open_clip=False))
        view, dropped = ConvertedReader(view, plan.derived), [*dropped, *plan.dropped]
        if all(name.startswith(_VISION_MODEL) for name in view.tensors):
            view = rename(view, {name: name.removeprefix(_VISION_MODEL) for name in view.tensors})
    if dropped:
        shown = ", ".join(list_some(dropped, limit=3))
        notes.append(f"{counted(len(dropped), 'tensor')} left out: {shown}")
    target = Naming("open_clip", source.family.rstrip("2")) if to == "open_clip" else other
    return Conversion(view, source, target, tuple(notes))


def keep_names(reader: CheckpointReader) -> Conversion:
    """Return a checkpoint with the names that it has, whatever model it is."""
    _, naming, _ = read_plainly(reader)
    notes: tuple[str, ...] = ()
    if naming is not None and naming.library != "open_clip":
        notes = (f"names are kept; --to open_clip converts the {naming}",)
    return Conversion(reader, naming, naming, notes)


def _other_naming(reader: CheckpointReader, source: Naming, to: Library) -> Naming:
    """Return the naming to convert to, or for open_clip's names one to check them with."""
    family = source.family
    origin = str(reader.metadata.get(CONVERTED_FROM, ""))
    library: Library = "transformers" if to == "open_clip" else to
    if library == "timm":
        return Naming("timm", family.rstrip("2"))
    if source.library == "open_clip" and origin == "transformers/siglip2":
        family = "siglip2"
    return Naming(library, family)


def _checked(reader: CheckpointReader, naming: Naming, plan: NamePlan) -> NamePlan:
    """Reject a file whose tensors the table does not know or does not find."""
    faults = [f"{name}: not in the table of {naming}" for name in plan.unknown]
    faults += [f"{name}: missing from the file" for name in plan.missing]
    faults += plan.faults
    if not faults:
        return plan
    raise CheckpointError(
        f"{reader.path}: cannot be converted; it has {naming}, except\n  " + "\n  ".join(faults),
        hint=_likely_remedy(plan),
    )


def _likely_remedy(plan: NamePlan) -> str:
    names = (*plan.unknown, *plan.faults)
    if any(name.startswith("classification_head.") for name in names):
        return "for a checkpoint of wiseft use `wiseft export --format`"
    if any(name.startswith(("classifier.", "head.", "fc_norm.")) for name in names):
        return (
            "its head is a classifier on features that are not normalized, which the other "
            "libraries cannot hold; save the model without it, or merge it with a file that has "
            "the same names"
        )
    if plan.missing and not names:
        return "the file is incomplete; fetch it again, or name the index or folder of all shards"
    return "convert the state dict of the plain model, without additional modules"


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    to: Library | None = None,
    key: str | None = None,
    base: str | Path | None = None,
    writes_folder: bool = False,
    force: bool = False,
    on_progress: Callable[[int, int], object] = lambda total, n: None,
) -> ConvertedFile:
    """Convert a checkpoint to another library, and write it as one file or as a model folder.

    Args:
        source: A safetensors file, an index of shards, or a folder with one of them; a file of
            torch.save; or the folder of a LoRA adapter.
        output: The file or folder to write.
        to: The library. None stands for open_clip; a file of torch.save and an adapter then keep
            their names.
        key: Where the weights are in a file of torch.save that holds several.
        base: The model that an adapter was trained on.
        writes_folder: Write a folder with the config, preprocessing and tokenizer of the files
            beside the source's weights.
        force: Whether an existing output may be replaced.
        on_progress: Called with the number of bytes of the output, and the number just written.
    Raises:
        UsageError: `to` is not a library, or an option is missing or does not apply.
        CheckpointError: The source cannot be read or converted.
        ModelError: The config beside the weights is missing, contradicts them, or cannot be
            expressed in the library.
        OutputError: The output cannot be written, or is also an input.
    """
    if to is not None and to not in LIBRARIES:
        raise UsageError(f"to {to!r}: expected one of {', '.join(LIBRARIES)}")
    with open_source(source, key=key, base=None if base is None else Path(base)) as opened:
        if to is None and opened.keeps_names:
            found = replace(keep_names(opened.reader), card=opened.card)
        else:
            found = convert_names(opened.reader, to or "open_clip")
        inputs = (*opened.reader.files, *opened.inputs)
        more: tuple[str, ...] = ()
        if writes_folder:
            digest, more = _write_folder(
                found, opened, Path(output), force=force, inputs=inputs, on_progress=on_progress
            )
        else:
            digest = write_converted(
                found, Path(output), force=force, inputs=inputs, on_progress=on_progress
            )
    notes = (*opened.notes, *found.notes, *more)
    return ConvertedFile(
        Path(output), digest, found.source, found.target, len(found.reader.tensors), notes
    )


def _write_folder(
    found: Conversion,
    opened: Source,
    output: Path,
    *,
    force: bool,
    inputs: tuple[Path, ...],
    on_progress: Callable[[int, int], object],
) -> tuple[str, tuple[str, ...]]:
    if found.source is None or found.target is None or opened.folder is None:
        raise CheckpointError(
            f"{opened.reader.path}: not a CLIP or SigLIP model, so no model folder can be made",
            hint="write its weights alone: -o FILE.safetensors",
        )
    files = read_model_files(opened.folder, found.source)
    _check_config(opened, found.source)
    weights = WEIGHTS_NAMES[found.target.library]
    with AtomicFolder(output, manifest=MANIFEST_NAME, force=force, inputs=inputs) as folder:
        notes = write_model_files(folder.temporary, files, found.target)
        digest = write_converted(found, folder.temporary / weights, on_progress=on_progress)
        origin = f"{found.source.library}/{found.source.family}"
        folder.commit({"schema": 1, "digest": digest, CONVERTED_FROM: origin})
    return digest, notes


def _check_config(opened: Source, naming: Naming) -> None:
    if naming.library == "transformers" and opened.folder is not None:
        tensors = read_plainly(opened.reader)[0].tensors
        config = read_transformers_config(opened.folder)
        check_config_against_tensors(config, tensors, opened.folder / CONFIG_NAME)


def write_converted(
    found: Conversion,
    path: Path,
    *,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    on_progress: Callable[[int, int], object] = lambda total, n: None,
) -> str:
    """Write the tensors of a conversion as a safetensors file and return its content digest.

    Raises:
        OutputError: The output cannot be written, or is also an input.
    """
    reader = found.reader
    specs = [TensorSpec(info.name, info.dtype, info.shape) for info in reader.tensors.values()]
    metadata = {"format": "pt"}
    if found.source is not None and found.card is None:
        metadata[CONVERTED_FROM] = f"{found.source.library}/{found.source.family}"
    buffer = np.empty(_CHUNK_BYTES, np.uint8).data
    with CheckpointWriter(
        path, specs, found.card, force=force, inputs=inputs, metadata=metadata
    ) as writer:
        for info in plan_layout(specs):
            for offset in range(0, info.nbytes, _CHUNK_BYTES):
                data = buffer[: min(_CHUNK_BYTES, info.nbytes - offset)]
                reader.read_into(info.name, data, offset)
                writer.append(info.name, data)
                on_progress(reader.size_bytes, data.nbytes)
        return writer.commit()

"""The files of a checkpoint: one file, an index and its shards, or a folder with one of them.

The names and the index of shards are those of transformers. The card of a checkpoint in shards
is in the index, in the object `metadata`. Only names and indices are read here; `reader.py` opens
the files, and `sharded_writer.py` writes them.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

from wiseft_cli.checkpoint.card import METADATA_KEY
from wiseft_cli.checkpoint.format import (
    MAX_HEADER_BYTES,
    TensorSpec,
    convert_command,
    open_regular_file,
)
from wiseft_cli.errors import CheckpointError, NotACheckpointError, UsageError

INDEX_SUFFIX = ".safetensors.index.json"
FILE_SUFFIX = ".safetensors"

INDEX_NAME = re.compile(r"\.safetensors\.index(?:\.[\w-]+)?\.json$")
"""Name of an index of shards, the variants of transformers included."""

_SHARD_NAME = re.compile(r"^(.*?)[-_.]?(\d+)-of-(\d+)(.*)\.safetensors$")
ADAPTER_CONFIG = "adapter_config.json"
"""Settings of an adapter of PEFT; its folder holds a change of a model, not a model."""

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

TORCH_NAMES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
"""Files of torch.save that hold the weights of a model folder."""

WHOLE_NAME = "model.safetensors"
"""The file that transformers loads from a folder even if an index lies beside it."""

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?B)")


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint.

    Attributes:
        files: The safetensors files.
        index: The index that names them, if there is one.
        shard_of: The file of each tensor by name, as the index says.
        card: The card in the index, if it has one; not checked.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    shard_of: Mapping[str, str] | None = None
    card: str | None = None


def find_checkpoint_files(path: Path) -> CheckpointFiles:
    """Return the files of the checkpoint at a path: a file, an index of shards, or a folder.

    Raises:
        NotACheckpointError: The folder does not hold exactly one whole checkpoint, or the index
            cannot be read.
        CheckpointError: The index places a tensor outside its folder.
    """
    if path.is_dir():
        return _only_checkpoint_in(path)
    if path.name.endswith(".json"):
        return _read_index(path)
    return CheckpointFiles((path,))


def is_adapter(path: Path) -> bool:
    """Return whether a path is the folder of a PEFT adapter, or the weights file in one."""
    return (path / ADAPTER_CONFIG).is_file() or (
        path.name in ADAPTER_WEIGHTS and (path.parent / ADAPTER_CONFIG).is_file()
    )


def shard_number(path: Path) -> tuple[int, int] | None:
    """Return which of how many shards a file is by its name, or None for a whole checkpoint."""
    match = _SHARD_NAME.match(path.name)
    return (int(match[2]), int(match[3])) if match and int(match[3]) > 1 else None


def whole_name(files: Sequence[Path]) -> str:
    """Return the file name of a checkpoint as one file, given its files, an index first."""
    name = INDEX_NAME.sub(FILE_SUFFIX, files[0].name)
    match = _SHARD_NAME.match(name)
    return f"{match[1] or 'model'}{match[4]}{FILE_SUFFIX}" if match and len(files) > 1 else name


def _only_checkpoint_in(folder: Path) -> CheckpointFiles:
    """Return the files of the only checkpoint in a folder.

    A file that an index in the folder does not list is a checkpoint of its own: it may be newer
    than the index and its shards.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise NotACheckpointError(f"{folder}: cannot be opened: {error.strerror}") from None
    files = [name for name in names if name.endswith(FILE_SUFFIX)]
    indices = [name for name in names if INDEX_NAME.search(name)]
    if not indices and not files:
        saved = [name for name in names if name in TORCH_NAMES]
        raise NotACheckpointError(
            f"{folder}: contains no *{FILE_SUFFIX} and no *{INDEX_SUFFIX} file",
            hint=f"write the weights as safetensors first: {convert_command(folder / saved[0])}"
            if saved
            else None,
        )
    found = {name: _read_index(folder / name) for name in indices}
    listed = {file for index in found.values() for file in index.files}
    sets: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in files:
        if folder / name not in listed:
            match = _SHARD_NAME.match(name)
            sets[match.group(1, 3, 4) if match else (name,)].append(name)
    for members in sets.values():
        found[members[0]] = CheckpointFiles(tuple(folder / name for name in members))
    if len(found) > 1:
        raise _several_checkpoints(folder, found)
    ((name, checkpoint),) = found.items()
    if checkpoint.index is None and shard_number(Path(name)):
        _require_all_shards(folder, [file.name for file in checkpoint.files])
    return checkpoint


def _several_checkpoints(folder: Path, found: Mapping[str, CheckpointFiles]) -> NotACheckpointError:
    hint = "name one of them"
    if WHOLE_NAME in found and any(checkpoint.index for checkpoint in found.values()):
        hint += f"; transformers loads {WHOLE_NAME}, and the index may be an older one"
    return NotACheckpointError(
        f"{folder}: contains {len(found)} checkpoints, expected one",
        faults=[
            name
            if len(checkpoint.files) == 1 and not checkpoint.index
            else f"{name} ({len(checkpoint.files)} files)"
            for name, checkpoint in found.items()
        ],
        hint=hint,
    )


def _require_all_shards(folder: Path, names: Sequence[str]) -> None:
    """Reject shards without an index unless their names say that all of them are there."""
    numbers = [number for name in names if (number := shard_number(Path(name)))]
    total = numbers[0][1]
    found = {number for number, _ in numbers}
    if len(found) != len(names) or found not in (set(range(1, total + 1)), set(range(total))):
        raise NotACheckpointError(
            f"{folder}: contains {len(names)} of {total} shards, and no index",
            faults=names,
            hint="fetch the other shards and the *.safetensors.index.json file",
        )


def _read_index(path: Path) -> CheckpointFiles:
    """Read an index of shards; nothing in it is trusted."""
    with os.fdopen(open_regular_file(path), "rb") as file:
        text = file.read(MAX_HEADER_BYTES + 1)
    if len(text) > MAX_HEADER_BYTES:
        raise NotACheckpointError(
            f"{path}: has more than {MAX_HEADER_BYTES} bytes, too long for an index of shards"
        )
    try:
        document: Any = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise NotACheckpointError(f"{path}: not a JSON index of shards: {error}") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise NotACheckpointError(
            f"{path}: not an index of shards: expected an object weight_map from tensors to files"
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_inside(shard):
            raise CheckpointError(
                f"{path}: tensor {name!r}: shard {shard!r}, expected a file name inside the folder"
            )
    shards = sorted(set(weight_map.values()))
    metadata = document.get("metadata")
    card = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if card is not None and not isinstance(card, str):
        raise CheckpointError(f"{path}: damaged card (metadata key {METADATA_KEY!r}): not a string")
    return CheckpointFiles(tuple(path.parent / shard for shard in shards), path, weight_map, card)


def is_inside(shard: str) -> bool:
    """Return whether a relative file name stays inside its folder."""
    try:
        shard.encode()  # JSON can spell half a surrogate pair, a file name cannot
    except UnicodeEncodeError:
        return False
    parts = PurePosixPath(shard).parts
    return bool(parts) and not shard.startswith("/") and ".." not in parts and "\0" not in shard


def parse_size(size: int | str) -> int:
    """Return a size such as `5GB`, or a number of bytes, in bytes.

    Raises:
        UsageError: It is not a positive number, or a text without a unit.
    """
    if isinstance(size, int):
        size_bytes = size
    else:
        match = _SIZE.fullmatch(size)
        size_bytes = int(Decimal(match[1]) * _UNITS[match[2]]) if match else 0
    if size_bytes < 1:
        raise UsageError(
            f"maximum shard size {size!r}: expected a positive number and a unit, as in 5GB",
            hint=f"units are {', '.join(_UNITS)}; 1KB is 1,000 and 1KiB is 1,024 bytes",
        )
    return size_bytes


def plan_shards(specs: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    """Distribute tensors over shards, in the order of their names.

    Args:
        max_bytes: Maximum size of the tensors of a shard; a larger tensor has a shard of its own.
    """
    shards: list[list[TensorSpec]] = []
    room = 0
    for spec in sorted(specs, key=lambda spec: spec.name.encode()):
        if not shards or spec.nbytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(spec)
        room -= spec.nbytes
    return shards

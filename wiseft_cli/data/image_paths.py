"""Resolve the inputs of `wiseft predict` to image paths: files, folders, manifests, standard input.

The images need no label. Only manifests are opened, and standard input is not read ahead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from wiseft_cli.data.files import expand_home, walk_files
from wiseft_cli.data.image_formats import IMAGE_EXTENSIONS, has_image_content, is_picture_name
from wiseft_cli.data.manifest import MANIFEST_SUFFIXES, Columns, RowFaults, locate_rows, read_rows
from wiseft_cli.data.spec import parse_options, split_options
from wiseft_cli.errors import DatasetError, UsageError, list_some

STANDARD_INPUT = "-"
MAX_PATH_BYTES = 2**20
"""Longest line of standard input; no system opens paths of this length."""


@dataclass(frozen=True)
class PathStream:
    """Standard input as a list of paths.

    Attributes:
        read: Returns up to the given number of bytes as soon as any have arrived; no bytes at the
            end.
        separator: One byte: a newline, or NUL as written by `find -print0`.
    """

    read: Callable[[int], bytes]
    separator: bytes = b"\n"


def image_paths(inputs: Sequence[str], stream: PathStream) -> Iterator[str]:
    """Yield the paths of the images that inputs name, in their order.

    A folder stands for all pictures below it, sorted by name, including those in formats that
    cannot be read; a manifest (`.csv`, `.tsv`, `.jsonl`, with `?split=` and `?path=`) for its
    rows; `-` for the paths of the stream; any other input is the path of an image. Faults of
    folders and manifests are found before the first path.

    Raises:
        UsageError: No inputs are given, `-` is given more than once, or shards are given.
        DatasetError: A folder or the stream contains no images, or a manifest cannot be used.
    """
    if not inputs:
        raise UsageError("no images; expected images, folders, manifests, or - for standard input")
    if inputs.count(STANDARD_INPUT) > 1:
        raise UsageError("- stands for standard input and can be given only once")
    return chain.from_iterable([_paths_of(name, stream) for name in inputs])


def _paths_of(name: str, stream: PathStream) -> Iterator[str]:
    if name == STANDARD_INPUT:
        return _paths_in_stream(stream)
    name = expand_home(name)
    if name.lower().endswith(".tar") and not os.path.isdir(name):
        raise UsageError(
            f"{name}: predict reads images, not shards",
            hint="unpack the shard (tar xf) and name the folder; for shards with labels, wiseft"
            " eval --save-predictions DIR writes the predictions",
        )
    if os.path.isdir(name):
        return _paths_in_folder(name)
    file, mark, options = name.rpartition("?")
    if not mark or os.path.exists(name):
        file, options = name, ""
    if not file.lower().endswith(MANIFEST_SUFFIXES):
        return iter([name])
    return iter(_paths_in_manifest(file, options))


def _paths_in_folder(folder: str) -> Iterator[str]:
    paths = (
        path
        for path, size in walk_files(Path(folder), folder.rstrip("/"))
        if is_picture_name(path) or (size and has_image_content(path))
    )
    first = next(paths, None)
    if first is None:
        extensions = " ".join(sorted(IMAGE_EXTENSIONS))
        raise DatasetError(f"folder {folder} contains no images ({extensions})")
    return chain([first], paths)


def _paths_in_manifest(file: str, text: str) -> list[str]:
    options = parse_options(split_options(text, where=file), where=file)
    unused = [name for name in options.given if name not in ("split", "path")]
    if unused:
        raise UsageError(f"{file}: images without labels do not use {', '.join(unused)}")
    faults = RowFaults(Path(file))
    rows = read_rows(Path(file), Columns(path=options.columns.path, label=None), faults)
    faults.raise_if_any()
    chosen = [row for row in rows if options.split in (None, row.split)]
    if not chosen:
        splits = sorted({row.split for row in rows if row.split})
        known = f"; its splits are {', '.join(list_some(splits))}" if splits else ""
        which = "" if options.split is None else f" of split {options.split!r}{known}"
        raise DatasetError(f"{file}: contains no images{which}")
    folder = os.path.dirname(file)
    chosen, _, _ = locate_rows(Path(folder), chosen)
    return [os.path.join(folder, row.path) for row in chosen]


def _paths_in_stream(stream: PathStream) -> Iterator[str]:
    is_empty = True
    for name in _split(stream):
        if stream.separator == b"\n":
            name = name.removesuffix(b"\r")
        if name:
            is_empty = False
            yield os.fsdecode(name)
    if is_empty:
        raise DatasetError("standard input contains no paths", hint="write one path per line")


def _split(stream: PathStream) -> Iterator[bytes]:
    """Yield the texts between separators, each as soon as it has arrived."""
    rest = b""
    while piece := stream.read(2**16):
        *whole, rest = (rest + piece).split(stream.separator)
        yield from whole
        if len(rest) > MAX_PATH_BYTES:
            raise DatasetError(
                "standard input is not a list of paths", hint="write one path per line"
            )
    yield rest

"""From what a person names to the paths of images: files, folders, manifests, standard input.

The images need no label. Nothing is opened but manifests, and standard input is read no further
than its paths are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from wiseft_cli.data.image_folder import IMAGE_EXTENSIONS, walk_images
from wiseft_cli.data.manifest import MANIFEST_SUFFIXES
from wiseft_cli.data.manifest_rows import Columns, read_rows
from wiseft_cli.data.set_options import parse_set_options
from wiseft_cli.errors import DatasetError, UsageError, list_some

STANDARD_INPUT = "-"
MAX_PATH_BYTES = 2**20
"""Far beyond what any system opens; standard input that has more in a line is no list of paths."""


@dataclass(frozen=True)
class PathStream:
    """Standard input as a list of paths.

    Attributes:
        read: Returns at most that many bytes, those that have arrived, none at the end.
        separator: One byte: a newline, or NUL as `find -print0` writes.
    """

    read: Callable[[int], bytes]
    separator: bytes = b"\n"


def image_paths(words: Sequence[str], stream: PathStream) -> Iterator[str]:
    """Yield the images that words name, in their order, as paths that open from here.

    A folder stands for the images anywhere below it, by name; a manifest (`.csv`, `.tsv`,
    `.jsonl`, with `?split=` and `?path=`) for its rows; `-` for the paths of the stream; anything
    else for itself. What is wrong with a folder or a manifest is found before the first path.

    Raises:
        UsageError: No word, or `-` more than once.
        DatasetError: A folder or the stream holds no image, or a manifest cannot be used.
    """
    if not words:
        raise UsageError("no image; expected images, folders, manifests, or - for standard input")
    if words.count(STANDARD_INPUT) > 1:
        raise UsageError("- stands for standard input and can be given once")
    return chain.from_iterable([_paths_of(word, stream) for word in words])


def _paths_of(word: str, stream: PathStream) -> Iterator[str]:
    if word == STANDARD_INPUT:
        return _paths_in_stream(stream)
    if os.path.isdir(word):
        return _paths_in_folder(word)
    file, mark, options = word.rpartition("?")
    if not mark or os.path.exists(word):
        file, options = word, ""
    if not file.lower().endswith(MANIFEST_SUFFIXES):
        return iter([word])
    return iter(_paths_in_manifest(file, options))


def _paths_in_folder(folder: str) -> Iterator[str]:
    paths = (path for path, _ in walk_images(Path(folder), folder.rstrip("/")))
    first = next(paths, None)
    if first is None:
        raise DatasetError(f"folder {folder} holds no image ({' '.join(sorted(IMAGE_EXTENSIONS))})")
    return chain([first], paths)


def _paths_in_manifest(file: str, text: str) -> list[str]:
    pairs = dict(part.partition("=")[::2] for part in text.split(",")) if text else {}
    options = parse_set_options(pairs, where=file)
    useless = [name for name in options.given if name not in ("split", "path")]
    if useless:
        raise UsageError(f"{file}: images without labels take no {', '.join(useless)}")
    faults: list[str] = []
    rows = read_rows(Path(file), Columns(path=options.columns.path, label=None), faults)
    if faults:
        raise DatasetError(
            "\n".join([f"{file}: {len(faults)} rows cannot be used:", *list_some(faults)])
        )
    chosen = [row for row in rows if options.split in (None, row.split)]
    if not chosen:
        splits = sorted({row.split for row in rows if row.split})
        known = f"; its splits are {', '.join(list_some(splits))}" if splits else ""
        which = "" if options.split is None else f" of split {options.split!r}{known}"
        raise DatasetError(f"{file}: holds no image{which}")
    return [os.path.join(os.path.dirname(file), row.path) for row in chosen]


def _paths_in_stream(stream: PathStream) -> Iterator[str]:
    is_empty = True
    for name in _split(stream):
        if stream.separator == b"\n":
            name = name.removesuffix(b"\r")
        if name:
            is_empty = False
            yield os.fsdecode(name)
    if is_empty:
        raise DatasetError("standard input holds no path", hint="write one path a line")


def _split(stream: PathStream) -> Iterator[bytes]:
    """Yield what stands between the separators, each as soon as it has arrived."""
    rest = b""
    while piece := stream.read(2**16):
        *whole, rest = (rest + piece).split(stream.separator)
        yield from whole
        if len(rest) > MAX_PATH_BYTES:
            raise DatasetError("standard input is no list of paths", hint="write one path a line")
    yield rest

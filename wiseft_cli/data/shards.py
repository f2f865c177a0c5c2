"""Image sets in WebDataset shards: tar files of samples, each with one image and one label.

Every shard is indexed when the set is opened, so that each image can be read on its own; order and
counts do not depend on the number of workers or processes. The `webdataset` library expands brace
patterns and groups members into samples. A damaged or truncated shard is rejected as a whole,
because some of its samples would be missing silently.

Source: https://github.com/webdataset/webdataset, and the layout of LAION's CLIP_benchmark, which
stores the names of integer labels in `classnames.txt`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from wiseft_cli.data.files import IMAGE_EXTENSIONS
from wiseft_cli.data.image_set import ImageRecord, ImageSet
from wiseft_cli.errors import DatasetError, counted, list_some
from wiseft_cli.prompts.documents import read_text

CLASS_NAMES_FILE = "classnames.txt"
_LABEL_SUFFIXES = ("cls", "json", "txt")
"""Members that hold a label, by priority."""
_REMEDY = "download or write the shard again"


def list_shards(pattern: str, *, name: str | None = None) -> ImageSet:
    """List the images of the shards that a pattern names.

    Args:
        pattern: Path of a tar file; `{000..127}` and `{a,b}` stand for several.
        name: Name of the set; by default the fixed part of the pattern, or else the name of the
            folder.
    Raises:
        DatasetError: A shard is missing or damaged, or samples cannot be used; all are listed.
    """
    name = name or _default_name(pattern)
    paths = _expand(pattern)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise DatasetError(
            f"image set {name!r}: {len(missing)} of {counted(len(paths), 'shard')} do not exist or"
            " are not files",
            faults=missing,
            hint="a pattern names each shard: 'data-{000..127}.tar' stands for 128 shards",
        )
    root = Path(os.path.commonpath([os.path.dirname(path) or "." for path in paths]))
    records: list[ImageRecord] = []
    faults: list[str] = []
    for path in paths:
        records += _index_shard(root, os.path.relpath(path, root), faults)
    if faults:
        raise DatasetError(
            f"image set {name!r}: {counted(len(faults), 'sample')} cannot be used",
            faults=faults,
            hint="a sample has an image (key.jpg) and a label: key.cls, key.json with `label`, or"
            " key.txt; a key ends at the first dot",
        )
    if not records:
        raise DatasetError(
            f"image set {name!r}: {counted(len(paths), 'shard')} without a single sample"
        )
    repeated = [path for path, n in Counter(record.path for record in records).items() if n > 1]
    if repeated:
        raise DatasetError(
            f"image set {name!r}: member names repeat within a shard", faults=repeated
        )
    return _with_class_names(ImageSet(name, root, tuple(records)))


def _default_name(pattern: str) -> str:
    path = Path(os.path.abspath(pattern))
    return path.stem.partition("{")[0].rstrip("-_.") or path.parent.name


def _expand(pattern: str) -> list[str]:
    if os.path.exists(pattern):  # a path may contain braces
        return [pattern]
    # lazy: imports torch, which costs seconds
    from webdataset.shardlists import expand_urls

    try:
        paths = [str(path) for path in expand_urls(pattern)]
    except (ValueError, AssertionError) as error:  # braces; an undefined variable
        raise DatasetError(f"{pattern}: not a valid shard pattern: {error}") from None
    repeated = sorted(path for path, n in Counter(paths).items() if n > 1)
    if repeated:
        raise DatasetError(f"{pattern}: names shards more than once", faults=repeated)
    if len({os.path.isabs(path) for path in paths}) > 1:
        paths = [os.path.abspath(path) for path in paths]
    return paths


def _with_class_names(images: ImageSet) -> ImageSet:
    """Replace integer labels by the class names of a file beside the shards, if there is one."""
    if not all(label.isascii() and label.isdigit() for label in images.labels):
        return images
    folder = images.root / os.path.dirname(images.records[0].container or "")
    beside = [folder / CLASS_NAMES_FILE, folder.parent / CLASS_NAMES_FILE]
    path = next((path for path in beside if path.is_file()), None)
    if path is None:
        return images
    names = [line.strip() for line in read_text(path, DatasetError).rstrip().splitlines()]
    repeated = sorted(repr(name) for name, n in Counter(names).items() if n > 1)
    if repeated or not names:
        doubt = f"repeats {', '.join(list_some(repeated))}" if repeated else "is empty"
        note = f"image set {images.name!r}: {path} {doubt}: labels stay numbers"
        return replace(images, notes=(*images.notes, note))
    beyond = [repr(label) for label in images.labels if int(label) >= len(names)]
    if beyond:
        raise DatasetError(
            f"image set {images.name!r}: {counted(len(beyond), 'label')} without a name in {path},"
            f" which has {counted(len(names), 'class name')}",
            faults=beyond,
        )
    records = tuple(replace(record, label=names[int(record.label)]) for record in images.records)
    note = f"image set {images.name!r}: labels are numbers; their names are taken from {path}"
    return replace(images, records=records, notes=(*images.notes, note))


def _index_shard(root: Path, shard: str, faults: list[str]) -> list[ImageRecord]:
    """Return the images of a shard in its order, and append a line to `faults` per bad sample.

    Only headers and labels are read, not images.

    Args:
        shard: Path of the tar file below the root.
    Raises:
        DatasetError: The file cannot be read, is not a plain tar file, or is damaged.
    """
    # lazy: imports torch, which costs seconds
    from webdataset.tariterators import group_by_keys

    path = root / shard
    records: list[ImageRecord] = []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for sample in group_by_keys(_members(path, tar)):
                try:
                    records.append(_record(shard, sample, file))
                except _BadSampleError as error:
                    faults.append(f"{shard}/{sample['__key__']}: {error}")
            _require_end(path, file, tar.offset)
    except tarfile.TarError as error:
        raise DatasetError(
            f"{path}: not a tar file, or damaged: {error}",
            hint="shards are plain tar files: decompress .gz" if _is_gzip(path) else _REMEDY,
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # raised by webdataset for a repeated member
        member = str(error.args[0]).partition(": ")[0]
        raise DatasetError(
            f"{path}: a sample has {member} twice; extensions are not case-sensitive", hint=_REMEDY
        ) from None
    return records


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
    """Yield the files of a shard in the form that webdataset groups."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # the library keeps them all otherwise
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise DatasetError(
                f"{path}: member {member.name} is a link or another special file, expected files",
                hint="write the shard with links followed (tar --dereference)",
            )
        yield {"fname": member.name, "data": member, "__url__": str(path)}


class _BadSampleError(Exception):
    """A sample cannot be used; the message says why."""


def _record(shard: str, sample: Mapping[str, Any], file: BinaryIO) -> ImageRecord:
    members = {
        suffix: value for suffix, value in sample.items() if isinstance(value, tarfile.TarInfo)
    }
    images = [suffix for suffix in members if f".{suffix}" in IMAGE_EXTENSIONS]
    if len(images) != 1:
        found = " and ".join(images) if images else "none"
        raise _BadSampleError(f"expected one image, found {found} among {', '.join(members)}")
    image = members[images[0]]
    label, group = _read_label(members, file)
    return ImageRecord(
        path=f"{shard}/{image.name}",
        label=sys.intern(label),
        size_bytes=image.size,
        group=None if group is None else sys.intern(group),
        container=sys.intern(shard),
        offset=image.offset_data,
    )


def _read_label(members: Mapping[str, tarfile.TarInfo], file: BinaryIO) -> tuple[str, str | None]:
    """Return the label and the group of a sample."""
    texts = {
        suffix: _read(members[suffix], suffix, file)
        for suffix in _LABEL_SUFFIXES
        if suffix in members
    }
    label, group = texts.get("cls"), None
    if "json" in texts:
        try:
            document = json.loads(texts["json"])
        except (json.JSONDecodeError, RecursionError):
            raise _BadSampleError("its .json is not valid JSON") from None
        if isinstance(document, dict):
            label = label if label is not None else _text(document, "label")
            group = _text(document, "group")
    label = label if label is not None else texts.get("txt")
    if label is None:
        raise _BadSampleError(f"found no label among {', '.join(members)}")
    if not label.strip():
        raise _BadSampleError("its label is empty")
    return label.strip(), group


def _read(member: tarfile.TarInfo, suffix: str, file: BinaryIO) -> str:
    file.seek(member.offset_data)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _BadSampleError(f"its .{suffix} is not UTF-8 text") from None


def _text(document: Mapping[str, Any], name: str) -> str | None:
    """Return a value that is text or a whole number, as text."""
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadSampleError(f"{name!r} in its .json is {json.dumps(value)[:40]}, expected text")
    return str(value)


def _require_end(path: Path, file: BinaryIO, offset: int) -> None:
    """Raise unless a shard ends like a tar file: with zeros, and nothing after them.

    `tarfile` stops without an error at an invalid header and at the end of the file.
    """
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise DatasetError(
            f"{path}: ends at byte {offset} without an end-of-archive mark: truncated?",
            hint=_REMEDY,
        )
    while end:
        if end.strip(b"\0"):
            raise DatasetError(
                f"{path}: damaged, or several concatenated tar files: neither a member nor the end"
                f" of the archive at byte {offset}",
                hint=_REMEDY,
            )
        offset = file.tell()
        end = file.read(io.DEFAULT_BUFFER_SIZE)


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"

"""Image sets in WebDataset shards: tar files of samples, each with one image and one label.

Every shard is indexed when the set is opened, so that each image can be read on its own; order and
counts do not depend on the number of workers or processes. The members of a sample need not be
adjacent. A damaged or truncated shard is rejected as a whole, because some of its samples would be
missing silently.

Source: https://github.com/webdataset/webdataset, and the layout of LAION's CLIP_benchmark, which
stores the names of integer labels in `classnames.txt`.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from wiseft_cli.data.image_formats import is_image_name, remedy_for
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.errors import DatasetError, counted, did_you_mean_path, list_some
from wiseft_cli.prompts.documents import read_text

CLASS_NAMES_FILE = "classnames.txt"
_LABEL_SUFFIXES = ("cls", "json", "txt")
"""Members that hold a label, by priority."""
_REMEDY = "download or write the shard again"
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
"""The key of a sample, up to the first dot of the file name, and the extension after it."""
_COMPRESSIONS = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ",
    "Zstandard": b"\x28\xb5\x2f\xfd",
    "zip": b"PK\x03\x04",
}


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
    faults: list[str] = []
    records = ImageRecords(
        record
        for path in paths
        for record in _index_shard(root, os.path.relpath(path, root), faults)
    )
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
    return _with_class_names(ImageSet(name, root, records))


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
    records = ImageRecords(
        replace(record, label=names[int(record.label)]) for record in images.records
    )
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
    path = root / shard
    records: list[ImageRecord] = []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            samples = _samples(path, tar)
            _require_end(path, file, tar.offset)
            for key, members in samples.items():
                try:
                    records.append(_record(shard, members, file))
                except _BadSampleError as error:
                    faults.append(f"{shard}/{key}: {error}")
    except tarfile.TarError as error:
        found, hint = _describe_other_file(path)
        raise DatasetError(f"{path}: {found or f'is damaged: {error}'}", hint=hint) from None
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read: {error.strerror}", hint=did_you_mean_path(path)
        ) from None
    return records


def _samples(path: Path, tar: tarfile.TarFile) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the members of each sample by extension; those of a sample need not be adjacent."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # the library keeps them all otherwise
        if member.isdir() or _is_hidden(member.name):
            continue
        if not member.isreg() or member.issparse():
            raise DatasetError(
                f"{path}: member {member.name} is a link or another special file, expected files",
                hint="write the shard with links followed (tar --dereference)",
            )
        parts = _MEMBER.fullmatch(member.name)
        if parts is None:
            continue
        members = samples.setdefault(parts[1], {})
        extension = parts[2].lower()
        if extension in members:
            raise DatasetError(
                f"{path}: sample {parts[1]} has .{extension} twice, {members[extension].name} and"
                f" {member.name}; extensions are not case-sensitive",
                hint="name each sample differently before the first dot",
            )
        members[extension] = member
    return samples


def _is_hidden(name: str) -> bool:
    """Return whether a member is hidden, as the `._NAME` files that macOS adds are."""
    parts = name.split("/")
    return parts[-1].startswith(".") or "__MACOSX" in parts


def _describe_other_file(path: Path) -> tuple[str, str]:
    """Return what a file is that is not a tar file, empty if unknown, and a remedy."""
    with open(path, "rb") as file:
        header = file.read(60)
    for name, signature in _COMPRESSIONS.items():
        if header.startswith(signature):
            return f"is compressed ({name})", "shards are plain tar files: decompress them"
    if header.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the shard", "git lfs pull"
    try:
        text = header.decode("ascii").split("\n")[0]
    except UnicodeDecodeError:
        return "", _REMEDY
    found = f"is a text file that begins with {text!r}" if text.isprintable() and text else ""
    return found, _REMEDY


class _BadSampleError(Exception):
    """A sample cannot be used; the message says why."""


def _record(shard: str, members: Mapping[str, tarfile.TarInfo], file: BinaryIO) -> ImageRecord:
    images = [at for at in members if "." not in at and is_image_name(f"x.{at}")]
    if len(images) != 1:
        found = " and ".join(images) if images else "none"
        remedies = [remedy_for(f"x.{extension}") for extension in members if not images]
        remedy = next((f"; {remedy}" for remedy in remedies if remedy), "")
        raise _BadSampleError(
            f"expected one image, found {found} among {', '.join(members)}{remedy}"
        )
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

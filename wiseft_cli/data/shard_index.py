"""Indexes one shard: where in the tar file each image lies, and what its label is.

It reads headers and labels, not images. A shard that is damaged or cut off is refused as a
whole: its samples would be missing without a word.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from wiseft_cli.data.image_folder import IMAGE_EXTENSIONS
from wiseft_cli.data.image_set import ImageRecord
from wiseft_cli.errors import DatasetError

_IMAGE_SUFFIXES = frozenset(extension.removeprefix(".") for extension in IMAGE_EXTENSIONS)
_LABEL_SUFFIXES = ("cls", "json", "txt")
"""The members that name a label, in the order in which they are asked."""
_REMEDY = "get or write the shard again"


def index_shard(root: Path, shard: str, faults: list[str]) -> list[ImageRecord]:
    """Return the images of a shard in its order, and add a line to `faults` for each bad sample.

    Args:
        root: The folder that paths start from.
        shard: The tar file's path below it.
    Raises:
        DatasetError: The file cannot be read, is no plain tar file, or is damaged.
    """
    # lazy: imports torch, which costs seconds
    from webdataset.tariterators import group_by_keys

    path = root / shard
    records: list[ImageRecord] = []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for sample in group_by_keys(_members(path, tar)):
                record = _record(shard, sample, file, faults)
                if record is not None:
                    records.append(record)
            _require_end(path, file, tar.offset)
    except tarfile.TarError as error:
        raise DatasetError(
            f"{path}: is no tar file, or a damaged one: {error}",
            hint="shards are plain tar files: unpack .gz" if _is_gzip(path) else _REMEDY,
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # so webdataset tells of a second member with one name
        member = str(error.args[0]).partition(": ")[0]
        raise DatasetError(
            f"{path}: its sample has {member} twice; upper and lower case are alike in endings",
            hint=_REMEDY,
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


def _record(
    shard: str, sample: Mapping[str, Any], file: BinaryIO, faults: list[str]
) -> ImageRecord | None:
    members = {
        suffix: value for suffix, value in sample.items() if isinstance(value, tarfile.TarInfo)
    }
    where = f"  {shard}/{sample['__key__']}"
    images = [suffix for suffix in members if suffix in _IMAGE_SUFFIXES]
    if len(images) != 1:
        found = " and ".join(images) if images else "none"
        faults.append(f"{where}: expected one image, found {found} among {', '.join(members)}")
        return None
    image = members[images[0]]
    try:
        label, group = _read_label(members, file)
    except ValueError as error:
        faults.append(f"{where}: {error}")
        return None
    return ImageRecord(
        path=f"{shard}/{image.name}",
        label=sys.intern(label),
        size_bytes=image.size,
        group=None if group is None else sys.intern(group),
        container=sys.intern(shard),
        offset=image.offset_data,
    )


def _read_label(members: Mapping[str, tarfile.TarInfo], file: BinaryIO) -> tuple[str, str | None]:
    """Return the label and group of a sample.

    Raises:
        ValueError: There is none, or it is no text.
    """
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
            raise ValueError("its .json is not JSON") from None
        if isinstance(document, dict):
            label = label if label is not None else _text(document, "label")
            group = _text(document, "group")
    label = label if label is not None else texts.get("txt")
    if label is None:
        raise ValueError(f"has no label among {', '.join(members)}")
    if not label.strip():
        raise ValueError("its label is empty")
    return label.strip(), group


def _read(member: tarfile.TarInfo, suffix: str, file: BinaryIO) -> str:
    file.seek(member.offset_data)
    data = file.read(member.size)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"its .{suffix} is not UTF-8 text") from None


def _text(document: Mapping[str, Any], name: str) -> str | None:
    """Return a text, or a whole number as text."""
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{name!r} of its .json is {json.dumps(value)[:40]}, expected a text")
    return str(value)


def _require_end(path: Path, file: BinaryIO, offset: int) -> None:
    """Refuse a shard that does not end as a tar file does: with zeros, and nothing after them.

    `tarfile` takes a header that makes no sense, and the end of the file, for the end.
    """
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise DatasetError(
            f"{path}: ends at byte {offset} without an end mark: cut off?", hint=_REMEDY
        )
    while end:
        if end.strip(b"\0"):
            raise DatasetError(
                f"{path}: is damaged, or several tar files in one: no end and no member at byte"
                f" {offset}",
                hint=_REMEDY,
            )
        offset = file.tell()
        end = file.read(io.DEFAULT_BUFFER_SIZE)


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"

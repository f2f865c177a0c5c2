"""Image sets as WebDataset shards: tar files of samples, an image and its label each.

Every shard is indexed when the set is opened, so that each image can be read by itself: order
and counts are the same for any number of workers and processes. Brace patterns and the grouping
of members into samples are the `webdataset` library's own.

Source: https://github.com/webdataset/webdataset, and the layout of LAION's CLIP_benchmark, which
keeps the names of integer labels in a `classnames.txt`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.image_set import ImageRecord, ImageSet
from wiseft_cli.data.shard_index import index_shard
from wiseft_cli.errors import DatasetError, list_some
from wiseft_cli.prompts.documents import read_text

CLASS_NAMES_FILE = "classnames.txt"


def list_shards(pattern: str, *, name: str | None = None) -> ImageSet:
    """List the images of the shards that a pattern names.

    Args:
        pattern: Path of a tar file; `{000..127}` and `{a,b}` stand for several.
        name: Name of the set; by default the pattern's fixed part, else its folder's name.
    Raises:
        DatasetError: A shard is missing or damaged, or samples cannot be used; all are listed.
    """
    name = name or _default_name(pattern)
    paths = _expand(pattern)
    _refuse_missing(name, paths)
    root = Path(os.path.commonpath([os.path.dirname(path) or "." for path in paths]))
    records: list[ImageRecord] = []
    faults: list[str] = []
    for path in paths:
        records += index_shard(root, os.path.relpath(path, root), faults)
    if faults:
        raise DatasetError(
            "\n".join(
                [f"image set {name!r}: {len(faults)} samples cannot be used:", *list_some(faults)]
            ),
            hint="a sample is an image (key.jpg) and a label: key.cls, key.json with `label`, or"
            " key.txt; a key ends at the first dot",
        )
    if not records:
        raise DatasetError(f"image set {name!r}: its {len(paths)} shards hold no sample")
    _refuse_repeated(name, records)
    return _with_class_names(ImageSet(name, root, tuple(records)))


def _default_name(pattern: str) -> str:
    """Return the fixed beginning of the file's name, or else the name of its folder."""
    path = Path(os.path.abspath(pattern))
    return re.split(r"[{]", path.stem)[0].rstrip("-_.") or path.parent.name


def _expand(pattern: str) -> list[str]:
    if os.path.exists(pattern):  # a path may have braces in it
        return [pattern]
    # lazy: imports torch, which costs seconds
    from webdataset.shardlists import expand_urls

    try:
        paths = [str(path) for path in expand_urls(pattern)]
    except (ValueError, AssertionError) as error:  # braces; a variable that is not set
        raise DatasetError(f"{pattern}: is no pattern of shards: {error}") from None
    repeated = sorted(path for path, times in Counter(paths).items() if times > 1)
    if repeated:
        raise DatasetError(
            "\n".join([f"{pattern}: names shards more than once:", *list_some(repeated)])
        )
    if len({os.path.isabs(path) for path in paths}) > 1:
        paths = [os.path.abspath(path) for path in paths]
    return paths


def _refuse_missing(name: str, paths: Sequence[str]) -> None:
    missing = [f"  {path}" for path in paths if not os.path.isfile(path)]
    if missing:
        raise DatasetError(
            "\n".join(
                [
                    f"image set {name!r}: {len(missing)} of {len(paths)} shards do not exist or"
                    " are no files:",
                    *list_some(missing),
                ]
            ),
            hint="a pattern names each shard: 'data-{000..127}.tar' are 128",
        )


def _refuse_repeated(name: str, records: Sequence[ImageRecord]) -> None:
    times = Counter(record.path for record in records)
    repeated = [f"  {path}" for path, count in times.items() if count > 1]
    if repeated:
        raise DatasetError(
            "\n".join(
                [f"image set {name!r}: members of one name in one shard:", *list_some(repeated)]
            )
        )


def _with_class_names(images: ImageSet) -> ImageSet:
    """Put names in the place of integer labels where a file beside the shards has them."""
    if not all(label.isascii() and label.isdigit() for label in images.labels):
        return images
    folder = images.root / os.path.dirname(images.records[0].container or "")
    beside = [folder / CLASS_NAMES_FILE, folder.parent / CLASS_NAMES_FILE]
    path = next((path for path in beside if path.is_file()), None)
    if path is None:
        return images
    names = [line.strip() for line in read_text(path, DatasetError).splitlines()]
    while names and not names[-1]:
        names.pop()
    note = _doubt_about_names(names)
    if note:
        note = f"image set {images.name!r}: {path} {note}: labels stay numbers"
        return replace(images, notes=(*images.notes, note))
    beyond = [f"  {label!r}" for label in images.labels if int(label) >= len(names)]
    if beyond:
        raise DatasetError(
            "\n".join(
                [
                    f"image set {images.name!r}: {path} names {len(names)} classes, and"
                    f" {len(beyond)} labels are beyond them:",
                    *list_some(beyond),
                ]
            )
        )
    records = tuple(replace(record, label=names[int(record.label)]) for record in images.records)
    note = f"image set {images.name!r}: labels are numbers, named by {path}"
    return replace(images, records=records, notes=(*images.notes, note))


def _doubt_about_names(names: Sequence[str]) -> str:
    """Return why a list cannot name labels one each; empty where it can."""
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        return f"has {', '.join(list_some([repr(name) for name in repeated]))} more than once"
    return "" if names else "is empty"

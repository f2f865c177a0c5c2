"""The fingerprint that names the data of a result or a recipe.

It covers paths, sizes, labels and groups, not the pixels and not modification times: it is made
for a million images in seconds, and a copy of a folder has the fingerprint of the original.
"""

from __future__ import annotations

import hashlib
from typing import Any

from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.data.image_set import ImageSet


def data_fingerprint(image_set: ImageSet) -> str:
    """Return `sha256:...` over the set's sorted [relative path, size in bytes, label].

    Each image contributes the canonical JSON of that list and a newline; where it has a group,
    the group is the list's fourth item. A set whose borders are cut off begins with one more
    line, as it is another set of pictures; so do video frames with a line for each neighbourhood.
    The set's name and root do not take part.
    """
    digest = hashlib.sha256()
    if image_set.crop_border:
        digest.update(_line(["crop_border", image_set.crop_border]))
    for anchor, neighbours in sorted(image_set.neighbourhoods.items()):
        digest.update(_line(["neighbourhood", anchor, sorted(neighbours)]))
    for record in sorted(image_set.records, key=lambda record: record.path):
        of_image: list[Any] = [record.path, record.size_bytes, record.label]
        if record.group is not None:
            of_image.append(record.group)
        digest.update(_line(of_image))
    return f"sha256:{digest.hexdigest()}"


def _line(document: list[Any]) -> bytes:
    return canonical_json(document).encode("ascii") + b"\n"

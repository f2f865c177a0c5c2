"""The fingerprint that names the data of a result or a recipe.

It covers paths, sizes and labels, not the pixels and not modification times: it is made for a
million images in a second, and a copy of a folder has the fingerprint of the original.
"""

from __future__ import annotations

import hashlib
import json

from wiseft_cli.data.image_set import ImageSet


def data_fingerprint(image_set: ImageSet) -> str:
    """Return `sha256:...` over the set's sorted (relative path, size in bytes, label).

    Each image contributes the canonical JSON of that triple and a newline. The set's name and
    root do not take part.
    """
    digest = hashlib.sha256()
    for path, size_bytes, label in sorted(
        (record.path, record.size_bytes, record.label) for record in image_set.records
    ):
        line = json.dumps([path, size_bytes, label], separators=(",", ":"), ensure_ascii=True)
        digest.update(line.encode("ascii") + b"\n")
    return f"sha256:{digest.hexdigest()}"

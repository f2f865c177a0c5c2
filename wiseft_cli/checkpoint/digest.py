"""The content digest: one name for a checkpoint's tensors, whatever file they lie in.

SHA-256 over one line a tensor, sorted by UTF-8 name, each line the canonical JSON
`[name, dtype, shape, sha256 of the tensor's bytes]` and a newline. It does not cover the
card and does not depend on the tensors' order in the file or on sharding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

PREFIX = "sha256:"
UNKNOWN_DIGEST = PREFIX + "0" * 64
"""Stands where a digest will be written once it is known; as wide as any digest."""


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces, ASCII only; numbers must be finite."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def sha256_of(data: bytes) -> str:
    """Return `sha256:` and the SHA-256 of some bytes in hexadecimal."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def content_digest(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """Return the content digest of a set of tensors.

    Args:
        tensors: For each tensor its name, safetensors dtype, shape, and the SHA-256 of its
            bytes in hexadecimal, in any order.
    Returns:
        `sha256:` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, dtype, shape, data_sha256 in sorted(tensors, key=lambda t: t[0].encode()):
        digest.update(canonical_json([name, dtype, list(shape), data_sha256]).encode() + b"\n")
    return PREFIX + digest.hexdigest()

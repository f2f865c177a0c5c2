"""The content digest: the identity of a checkpoint's tensors, however they are stored.

SHA-256 over one line per tensor, sorted by UTF-8 name; each line is the canonical JSON
`[name, dtype, shape, sha256 of the tensor's bytes]` and a newline. The digest does not cover
the card and does not depend on the order of the tensors in the file or on sharding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

PREFIX = "sha256:"
UNKNOWN_DIGEST = PREFIX + "0" * 64
"""Placeholder of the same width as a digest, for a digest that is not known yet."""

_SHORT_DIGITS = 12


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, without spaces, ASCII only; numbers must be finite."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def sha256_of(data: bytes) -> str:
    """Return `sha256:` and the hexadecimal SHA-256 of bytes."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return `sha256:` and the hexadecimal SHA-256 of a value's canonical JSON."""
    return sha256_of(canonical_json(value).encode("ascii"))


def content_digest(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """Return the content digest of a set of tensors.

    Args:
        tensors: For each tensor its name, safetensors dtype, shape, and the hexadecimal SHA-256
            of its bytes, in any order.
    Returns:
        `sha256:` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, dtype, shape, data_sha256 in sorted(tensors, key=lambda t: t[0].encode()):
        digest.update(canonical_json([name, dtype, list(shape), data_sha256]).encode() + b"\n")
    return PREFIX + digest.hexdigest()


def shorten(digest: str | None) -> str:
    """Return the first digits of a digest, for display."""
    return (digest or "unknown").removeprefix(PREFIX)[:_SHORT_DIGITS]

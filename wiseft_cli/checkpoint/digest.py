"""The content digest: the identity of a checkpoint's tensors, however they are stored.

A hash over one line per tensor, sorted by UTF-8 name; each line is the canonical JSON
`[name, dtype, shape, hash of the tensor's bytes]` and a newline. The hash is BLAKE3, and SHA-256
in files of card schema 1; the prefix of the digest names it. The digest does not cover the card
and does not depend on the order of the tensors in the file or on sharding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from blake3 import blake3


class Hash(Protocol):
    """A hash of bytes that are passed in order."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Hash the next bytes."""

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far in hexadecimal."""


BLAKE3, SHA256 = "blake3", "sha256"
_HASHES: dict[str, Callable[[], Hash]] = {BLAKE3: blake3, SHA256: hashlib.sha256}

UNKNOWN_DIGEST = f"{BLAKE3}:" + "0" * 64
"""Placeholder of the same width as a digest, for a digest that is not known yet."""

_SHORT_DIGITS = 12
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, without spaces, ASCII only; numbers must be finite."""
    return _ENCODER.encode(value)


def sha256_of(data: bytes) -> str:
    """Return `sha256:` and the hexadecimal SHA-256 of bytes."""
    return f"{SHA256}:{hashlib.sha256(data).hexdigest()}"


def sha256_of_json(value: Any) -> str:
    """Return `sha256:` and the hexadecimal SHA-256 of a value's canonical JSON."""
    return sha256_of(canonical_json(value).encode("ascii"))


def algorithm_of(digest: str | None) -> str:
    """Return the hash that a digest was made with, by its prefix; BLAKE3 if that is unknown."""
    prefix = (digest or "").partition(":")[0]
    return prefix if prefix in _HASHES else BLAKE3


def new_hash(algorithm: str = BLAKE3) -> Hash:
    """Return a new hash; updates with much data release the interpreter's lock."""
    return _HASHES[algorithm]()


def hash_bytes(data: bytes) -> str:
    """Return the hexadecimal BLAKE3 of bytes."""
    return blake3(data).hexdigest()


def content_digest(
    tensors: Iterable[tuple[str, str, Sequence[int], str]], algorithm: str = BLAKE3
) -> str:
    """Return the content digest of a set of tensors.

    Args:
        tensors: For each tensor its name, safetensors dtype, shape, and the hexadecimal hash of
            its bytes, in any order.
        algorithm: The hash of the tensors and of the whole.
    Returns:
        The hash's name, a colon and 64 hexadecimal digits.
    """
    digest = new_hash(algorithm)
    for name, dtype, shape, data_hash in sorted(tensors, key=lambda t: t[0].encode()):
        digest.update(canonical_json([name, dtype, list(shape), data_hash]).encode() + b"\n")
    return f"{algorithm}:{digest.hexdigest()}"


def is_digest(text: str) -> bool:
    """Return whether a text begins like a digest."""
    return text.partition(":")[0] in _HASHES and ":" in text


def shorten(digest: str | None) -> str:
    """Return the first digits of a digest, for display."""
    text = digest or "unknown"
    return (text.partition(":")[2] if is_digest(text) else text)[:_SHORT_DIGITS]

"""Small byte-pair vocabularies, made of the first merges of CLIP's own."""

from __future__ import annotations

import gzip
from pathlib import Path

from open_clip.tokenizer import default_bpe


def write_clip_merges(path: Path, count: int) -> Path:
    """Write the header and the first `count` merges, gzipped; always the same bytes."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    path.write_bytes(gzip.compress("\n".join(lines[: count + 1]).encode("utf-8"), mtime=0))
    return path

"""Write CLIP's byte-pair vocabulary in the files that transformers reads.

open_clip stores merges alone, and derives the vocabulary from them; transformers stores both.
"""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wiseft_cli.errors import ModelError

START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES_NAME = "bpe_simple_vocab_16e6.txt.gz"
_N_MERGES = 49152 - 256 - 2


def default_merges() -> Path:
    """Return CLIP's own merges, which are part of open_clip; open_clip is not imported.

    Raises:
        ModelError: open_clip is not installed.
    """
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("CLIP's vocabulary is part of open_clip_torch, which is not installed")
    return Path(spec.submodule_search_locations[0]) / _MERGES_NAME


def write_clip_tokenizer(folder: Path, merges: Path, *, context_length: int) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json.

    Args:
        folder: The folder.
        merges: open_clip's byte-pair file: a header line, then one merge per line, gzipped.
        context_length: Maximum length of a prompt.
    Raises:
        ModelError: The byte-pair file cannot be read.
    """
    try:
        lines = gzip.decompress(merges.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ModelError(f"{merges}: not a gzipped byte-pair file: {error}") from None
    pairs = [line for line in lines[1 : _N_MERGES + 1] if len(line.split()) == 2]
    characters = _byte_characters()
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    tokens += ["".join(pair.split()) for pair in pairs]
    tokens += [START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    settings: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "model_max_length": context_length,
    }
    _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs]))
    _write(folder / "tokenizer_config.json", json.dumps(settings, indent=2))


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each byte, in the vocabulary's order.

    Source: Radford et al. 2019, the byte-level BPE of GPT-2: printable bytes stand for
    themselves, the others for the characters from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]

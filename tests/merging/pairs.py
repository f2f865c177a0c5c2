"""Small test files: a zero-shot checkpoint, one fine-tuned from it, and foreign files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from wiseft_cli.checkpoint.card import Card, ClassEntry, HistoryEntry, HistoryInput, ModelSpec
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.writer import write_checkpoint

CONFIG = {"embed_dim": 4, "quick_gelu": False, "vision_cfg": {"width": 8}}


def zeroshot_card() -> Card:
    return Card(
        role="zeroshot",
        model=ModelSpec("tiny", "laion2b", CONFIG),
        preprocess={"size": [32, 32], "mode": "RGB"},
        classes=(ClassEntry("n1", "tench"), ClassEntry("n2", "goldfish")),
        templates=("a photo of a {}.",),
        logit_scale=100.0,
        history=(HistoryEntry("zeroshot-head", "0.1.0", {"model": "tiny"}, ()),),
    )


def finetuned_card(parent_digest: str) -> Card:
    parent = replace(zeroshot_card().history[0], output=parent_digest)
    entry = HistoryEntry(
        "finetune", "0.1.0", {"epochs": 2}, (HistoryInput("zeroshot", parent_digest),)
    )
    return replace(
        zeroshot_card(),
        role="finetuned",
        recipe={"epochs": 2, "lr": 3e-5},
        seed=0,
        history=(parent, entry),
    )


def tensors(seed: int) -> dict[str, np.ndarray]:
    """Return tensors of several dtypes and shapes; those of two seeds differ everywhere."""
    random = np.random.default_rng(seed)
    return {
        "visual.conv1.weight": random.standard_normal((8, 3, 2, 2)).astype(np.float32),
        "visual.proj": random.standard_normal((8, 4)).astype(np.float32),
        "visual.bn.num_batches_tracked": np.array(seed, np.int64),
        "visual.empty": np.zeros((0, 3), np.float32),
        "classification_head.weight": random.standard_normal((2, 4)).astype(np.float32),
        "classification_head.bias": random.standard_normal(2).astype(np.float32),
    }


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Write a zero-shot checkpoint and one fine-tuned from it; return both paths."""
    zeroshot, finetuned = folder / "zs.safetensors", folder / "ft.safetensors"
    digest = write_checkpoint(zeroshot, tensors(0), zeroshot_card())
    write_checkpoint(finetuned, tensors(1), finetuned_card(digest))
    return zeroshot, finetuned


def safetensors_name(dtype: np.dtype) -> str:
    names = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
    kinds = {"f": "F", "i": "I", "u": "U", "c": "C"}
    if dtype == np.bool_:
        return "BOOL"
    return names.get(dtype.name) or f"{kinds[dtype.kind]}{8 * dtype.itemsize}"


def write_foreign(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    dtypes: Mapping[str, str] | None = None,
    padding: int = 0,
) -> Path:
    """Write a safetensors file in the order given, without this project's code.

    Args:
        dtypes: Dtypes that numpy lacks, by tensor name; the array holds their bytes.
        padding: Number of spaces after the header, to break the alignment of the tensors.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, array in arrays.items():
        dtype = (dtypes or {}).get(name)
        shape = [array.nbytes * 2] if dtype == "F4" else list(array.shape)
        header[name] = {
            "dtype": dtype or safetensors_name(array.dtype),
            "shape": shape,
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header).encode() + b" " * padding
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def write_sharded(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Write shards and their index; return the path of the index."""
    folder.mkdir(exist_ok=True)
    for name, arrays in shards.items():
        write_foreign(folder / name, arrays, {"format": "pt"})
    weight_map = {tensor: shard for shard, arrays in shards.items() for tensor in arrays}
    index = folder / "model.safetensors.index.json"
    index.write_text(canonical_json({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index

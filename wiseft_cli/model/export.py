"""Export a checkpoint as a whole CLIP model, in a folder that open_clip loads.

The folder holds open_clip's config with the preprocessing, the weights (the checkpoint's image
encoder with the text tower and logit scale of the model it was made from), the tokenizer if it
needs files, and `wiseft_export.json`, the history with digests. The classification head is not
exported: with a text tower, classes are prompts again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_cli import __version__
from wiseft_cli.checkpoint.atomic_folder import AtomicFolder, check_output_folder
from wiseft_cli.checkpoint.card import (
    APPLY_ORIENTATION,
    EXIF_ORIENTATION,
    Card,
    HistoryEntry,
    HistoryInput,
    join_histories,
)
from wiseft_cli.checkpoint.digest import UNKNOWN_DIGEST
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import counted, list_some
from wiseft_cli.model.classifier import state_arrays
from wiseft_cli.model.full_clip import FullClip, ModelWarning, load_full_clip, note_line
from wiseft_cli.model.model_source import CONFIG_NAME, ModelSource, find_model
from wiseft_cli.model.tokenizer import check_saved_tokenizer, save_tokenizer

WEIGHTS_NAME = "open_clip_model.safetensors"
MANIFEST_NAME = "wiseft_export.json"


_ORIENTATION_NOTE = (
    "open_clip's transform ignores the EXIF orientation, which this checkpoint applies: turn"
    " images upright first, with PIL.ImageOps.exif_transpose"
)


@dataclass(frozen=True)
class Export:
    """An exported model folder.

    Attributes:
        path: The folder.
        digest: Content digest of the weights file.
        card: Card of the checkpoint.
        notes: Remarks for the user.
    """

    path: Path
    digest: str
    card: Card
    notes: tuple[str, ...]


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    model: str,
    pretrained: str | None = None,
    random_weights: bool = False,
    force: bool = False,
    on_message: Callable[[str], object] = lambda text: None,
) -> Export:
    """Export a checkpoint with its text tower as an open_clip model folder.

    Args:
        checkpoint: A zero-shot, fine-tuned or merged checkpoint.
        output: The folder; it appears under this name when it is complete.
        model: The CLIP model that the checkpoint was made from: an open_clip name,
            `hf-hub:org/repo`, or `local-dir:path`.
        pretrained: Tag or local weights file of an open_clip name.
        random_weights: Whether the model had random weights.
        force: Whether a folder that an earlier export wrote may be replaced.
        on_message: Called with each line for the user: the model, then notes.
    Raises:
        CheckpointError: The file is not a classifier.
        ModelError: The model cannot be loaded, is not the checkpoint's, or has a tokenizer that
            cannot be loaded from a folder.
        OutputError: The folder cannot be written, or an export did not write it.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    check_output_folder(output, manifest=MANIFEST_NAME, force=force, inputs=[checkpoint])
    source = find_model(model, pretrained=pretrained, random_weights=random_weights)
    inputs = [checkpoint, *source.files]
    check_output_folder(output, manifest=MANIFEST_NAME, force=force, inputs=inputs)
    card = read_card(checkpoint)
    quick_gelu = None if card.model is None else bool(card.model.config["quick_gelu"])
    full = load_full_clip(source, quick_gelu=quick_gelu, image_encoder=checkpoint)
    on_message(f"model: {full.description}")
    arrays = state_arrays(full.model)
    notes = (*full.notes, *_not_finite_warnings(arrays))
    if (card.preprocess or {}).get(EXIF_ORIENTATION) == APPLY_ORIENTATION:
        notes += (_ORIENTATION_NOTE,)
    for note in notes:
        on_message(note_line(note))
    with AtomicFolder(output, manifest=MANIFEST_NAME, force=force, inputs=inputs) as folder:
        config = _write_config(folder.temporary, source, full, card)
        check_saved_tokenizer(folder.temporary, config["text_cfg"], full.tokenizer)
        weights = folder.temporary / WEIGHTS_NAME
        digest = write_checkpoint(weights, arrays, None, metadata={"format": "pt"})
        folder.commit(_manifest(full, card, digest))
    merges = (config["text_cfg"].get("tokenizer_kwargs") or {}).get("bpe_path")
    if merges is not None:
        notes += (
            f"open_clip looks for {merges} in the working directory; elsewhere load the tokenizer"
            f" with open_clip.get_tokenizer('local-dir:{output}', bpe_path='{output / merges}')",
        )
        on_message(note_line(notes[-1]))
    return Export(output, digest, card, notes)


def _not_finite_warnings(arrays: Mapping[str, np.ndarray]) -> list[str]:
    counts = {
        name: array.size - int(np.count_nonzero(np.isfinite(array)))
        for name, array in arrays.items()
        if array.dtype.kind == "f"
    }
    found = [
        f"{name} ({counted(count, 'value')})" for name, count in sorted(counts.items()) if count
    ]
    text = f"weights are infinite or NaN: {', '.join(list_some(found))}"
    return [ModelWarning(text)] if found else []


def _write_config(
    folder: Path, source: ModelSource, full: FullClip, card: Card
) -> Mapping[str, Any]:
    """Write the config and the tokenizer, and return the model config."""
    config = copy.deepcopy(dict(full.config))
    config["text_cfg"] = save_tokenizer(folder, source, full.tokenizer)
    # The folder's weights replace those of the towers.
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    # All fields are written: open_clip's defaults are OpenAI's and may not be this model's.
    preprocess = {**(card.preprocess or {})}
    preprocess.pop(EXIF_ORIENTATION, None)
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    return config


def _manifest(full: FullClip, card: Card, digest: str) -> dict[str, Any]:
    """Return the digest and the history of the weights, without any path."""
    step = HistoryEntry(
        "export",
        __version__,
        options={"model": full.name, "pretrained": full.source, "weights": full.weights_digest},
        inputs=(HistoryInput("image_encoder", card.digest or UNKNOWN_DIGEST),),
        output=digest,
    )
    return {
        "schema": 1,
        "digest": digest,
        "history": [asdict(entry) for entry in (*join_histories(card), step)],
    }

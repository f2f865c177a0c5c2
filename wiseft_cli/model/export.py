"""From a checkpoint back to a whole CLIP model, in a folder that open_clip loads by itself.

The folder holds open_clip's config with the preprocessing, the weights (the checkpoint's image
encoder, the text tower and the logit scale of the model it came from), the tokenizer where it
needs files, and `wiseft_export.json`: what was made from what, by digests.
The classification head stays behind: with a text tower, classes are prompts again.
It does not parse options and does not print.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wiseft_cli import __version__
from wiseft_cli.checkpoint.atomic_folder import AtomicFolder, check_output_folder
from wiseft_cli.checkpoint.card import HistoryEntry, HistoryInput, join_histories
from wiseft_cli.checkpoint.digest import UNKNOWN_DIGEST
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.model.classifier import state_arrays
from wiseft_cli.model.encoder_checkpoint import EncoderCheckpoint, load_encoder, put_encoder
from wiseft_cli.model.full_clip import FullClip, load_full_clip
from wiseft_cli.model.model_source import CONFIG_NAME, ModelSource, find_model
from wiseft_cli.model.tokenizer_files import check_exportable, check_tokenizer, write_tokenizer

WEIGHTS_NAME = "open_clip_model.safetensors"
MANIFEST_NAME = "wiseft_export.json"


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        digest: Content digest of the weights file.
        checkpoint: Content digest of the checkpoint.
        role: The checkpoint's.
        alpha: The checkpoint's, where it is merged.
    """

    digest: str
    checkpoint: str
    role: str
    alpha: str | None


def _ignore(_text: str) -> None:
    """Hear and say nothing."""


def export_clip(
    checkpoint: Path,
    output: Path,
    *,
    model: str,
    pretrained: str | None,
    random_weights: bool = False,
    force: bool = False,
    on_model: Callable[[str], object] = _ignore,
    on_note: Callable[[str], object] = _ignore,
) -> Export:
    """Write a checkpoint's image encoder, with a text tower, as an open_clip model folder.

    Args:
        checkpoint: Of any role.
        output: The folder; a sibling is filled and takes its name at the end.
        model: The CLIP model the checkpoint was made from, as for `find_model`.
        pretrained: Its weights, likewise.
        random_weights: Whether its weights were drawn at random.
        force: Whether a folder written by an earlier export may be replaced.
        on_model: Told which model was built from which weights, in one line.
        on_note: Told what the person should know of it, a line at a time.
    Raises:
        CheckpointError: The checkpoint holds no classifier.
        ModelError: The model cannot be had, is not the checkpoint's, or its tokenizer cannot be
            loaded from a folder.
        OutputError: The folder cannot be written, or is not one that export wrote.
    """
    check_output_folder(output, manifest=MANIFEST_NAME, force=force, inputs=[checkpoint])
    source = find_model(model, pretrained=pretrained, random_weights=random_weights)
    inputs = [checkpoint, *source.files]
    check_output_folder(output, manifest=MANIFEST_NAME, force=force, inputs=inputs)
    encoder = load_encoder(checkpoint)
    # The encoder was trained with the activation that its card says, and its text tower beside it.
    full = load_full_clip(source, quick_gelu=bool(encoder.spec.config["quick_gelu"]))
    on_model(full.description)
    check_exportable(source, full.tokenizer)
    for note in (*full.notes, *put_encoder(full, encoder)):
        on_note(note)
    with AtomicFolder(output, manifest=MANIFEST_NAME, force=force, inputs=inputs) as folder:
        config = _write_config(folder.temporary, source, full, encoder)
        check_tokenizer(folder.temporary, config["text_cfg"], full.tokenizer)
        digest = write_checkpoint(
            folder.temporary / WEIGHTS_NAME,
            state_arrays(full.model),
            None,
            metadata={"format": "pt"},
        )
        folder.commit(_facts(full, encoder, digest))
    for note in _tokenizer_notes(output, config["text_cfg"]):
        on_note(note)
    card = encoder.card
    return Export(digest, str(card.digest), card.role, card.alpha)


def _write_config(
    folder: Path, source: ModelSource, full: FullClip, encoder: EncoderCheckpoint
) -> Mapping[str, Any]:
    """Write open_clip's config and the tokenizer it speaks of; return the model config."""
    config = copy.deepcopy(dict(full.config))
    config["text_cfg"] = write_tokenizer(folder, source, full.tokenizer)
    # The towers' own weights, which the folder's replace.
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    # Every field, as open_clip's defaults are OpenAI's and may not be this model's.
    document = {"model_cfg": config, "preprocess_cfg": dict(encoder.card.preprocess or {})}
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    return config


def _facts(full: FullClip, encoder: EncoderCheckpoint, digest: str) -> dict[str, Any]:
    """What the manifest says: the way from the inputs to these weights, without any path."""
    card = encoder.card
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


def _tokenizer_notes(output: Path, text_config: Mapping[str, Any]) -> tuple[str, ...]:
    merges = (text_config.get("tokenizer_kwargs") or {}).get("bpe_path")
    if merges is None:
        return ()
    return (
        f"open_clip looks for {merges} in the working directory; elsewhere load the tokenizer by "
        f"open_clip.get_tokenizer('local-dir:{output}', bpe_path='{output / merges}')",
    )

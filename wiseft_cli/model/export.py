"""Export a checkpoint as a model folder that open_clip, transformers or timm loads.

A folder of open_clip holds its config with the preprocessing, the weights (the checkpoint's
image encoder with the text tower and logit scale of the model it was made from), and the
tokenizer if it needs files. The classification head is not exported: with a text tower, classes
are prompts again. `export_library.py` writes the other folders. Each has a model card
(README.md), and `wiseft_export.json` with the history and digests.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip

from wiseft_cli import __version__
from wiseft_cli.checkpoint.atomic_folder import AtomicFolder, check_output_folder
from wiseft_cli.checkpoint.card import (
    APPLY_ORIENTATION,
    EXIF_ORIENTATION,
    NO_MODEL_HINT,
    Card,
    HistoryEntry,
    HistoryInput,
    join_histories,
)
from wiseft_cli.checkpoint.digest import UNKNOWN_DIGEST
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.convert.folder import CLEANED_NOTE
from wiseft_cli.errors import CheckpointError, UsageError, counted, list_some
from wiseft_cli.model.classifier import state_arrays
from wiseft_cli.model.export_library import write_library_folder
from wiseft_cli.model.export_onnx import require_onnx, write_onnx_folder
from wiseft_cli.model.full_clip import FullClip, ModelWarning, load_full_clip, note_line
from wiseft_cli.model.model_source import CONFIG_NAME, HUB_PREFIX, ModelSource, find_model
from wiseft_cli.model.tokenizer import check_saved_tokenizer, save_tokenizer
from wiseft_cli.reporting.model_card import Usage, render_model_card, results_of
from wiseft_cli.reporting.results import read_result_lines

WEIGHTS_NAME = "open_clip_model.safetensors"
MANIFEST_NAME = "wiseft_export.json"
FORMATS = ("open_clip", "transformers", "timm", "onnx")


_ORIENTATION_NOTE = (
    "open_clip's transform ignores the EXIF orientation, which this checkpoint applies: turn"
    " images upright first, with PIL.ImageOps.exif_transpose"
)
_ACTIVATION_WARNING = (
    "open_clip builds this image encoder with exact GELU instead of the approximation that it was "
    "trained with, so its features differ slightly; --format transformers keeps them"
)
_OPEN_CLIP_USE = """\
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")"""


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
    format: str = "open_clip",
    model: str | None = None,
    pretrained: str | None = None,
    random_weights: bool = False,
    results: str | Path | None = None,
    force: bool = False,
    on_message: Callable[[str], object] = lambda text: None,
) -> Export:
    """Export a checkpoint as a model folder, with a model card.

    Args:
        checkpoint: A zero-shot, fine-tuned or merged checkpoint.
        output: The folder; it appears under this name when it is complete.
        format: `open_clip` writes the image encoder with the text tower; `transformers` the image
            encoder with the head, and with `model` the text tower too; `timm` and `onnx` the
            image encoder with the head.
        model: The CLIP model that the checkpoint was made from: an open_clip name,
            `hf-hub:org/repo`, `local-dir:path`, or a model folder of transformers.
        pretrained: Tag or local weights file of an open_clip name.
        random_weights: Whether the model had random weights.
        results: A file that `wiseft eval` wrote, for the metrics in the model card.
        force: Whether a folder that an earlier export wrote may be replaced.
        on_message: Called with each line for the user: the model, then notes.
    Raises:
        UsageError: `format` is unknown, or `model` is missing or not used.
        CheckpointError: The file is not a classifier.
        ModelError: The model cannot be loaded, is not the checkpoint's, cannot be expressed in
            the format, or has a tokenizer that cannot be loaded from a folder.
        ResultsError: `results` cannot be read.
        OutputError: The folder cannot be written, or an export did not write it.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    _check_arguments(format, model, pretrained=pretrained, random_weights=random_weights)
    check_output_folder(output, manifest=MANIFEST_NAME, force=force, inputs=[checkpoint])
    source = None
    if model is not None:
        source = find_model(model, pretrained=pretrained, random_weights=random_weights)
    inputs = [checkpoint, *(source.files if source else ())]
    check_output_folder(output, manifest=MANIFEST_NAME, force=force, inputs=inputs)
    card = require_model(checkpoint)
    lines = results_of(card, read_result_lines(Path(results))) if results else []
    full = None if source is None else _load_full(source, checkpoint, card)
    notes: tuple[str, ...] = () if full is None else full.notes
    if full is not None:
        on_message(f"model: {full.description}")
    if results and not lines:
        notes += (ModelWarning(f"{results}: no line has the digest of {checkpoint}"),)
    notes += _warnings(checkpoint, card, full, format)
    for note in notes:
        on_message(note_line(note))
    with AtomicFolder(output, manifest=MANIFEST_NAME, force=force, inputs=inputs) as folder:
        if format == "open_clip":
            assert full is not None
            assert source is not None
            digest, usage = _write_open_clip(folder.temporary, source, full, card)
        elif format == "onnx":
            digest, usage = write_onnx_folder(folder.temporary, checkpoint, card)
        else:
            digest, usage = write_library_folder(
                folder.temporary, format, checkpoint, card, full=full, source=source
            )
        text = render_model_card(
            card, usage, name=_name(card), base_model=find_repository(card), lines=lines
        )
        (folder.temporary / "README.md").write_text(text, encoding="utf-8")
        folder.commit(_manifest(format, full, card, digest))
    if merges := _own_merges(output):
        notes += (
            f"open_clip looks for {merges} in the working directory; elsewhere load the tokenizer"
            f" with open_clip.get_tokenizer('local-dir:{output}', bpe_path='{output / merges}')",
        )
        on_message(note_line(notes[-1]))
    return Export(output, digest, card, notes)


def _check_arguments(
    format: str, model: str | None, *, pretrained: str | None, random_weights: bool
) -> None:
    if format not in FORMATS:
        raise UsageError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    if model is None and format == "open_clip":
        raise UsageError(
            "--format open_clip needs --model",
            hint="name the CLIP model that the checkpoint was made from, which provides the text "
            "tower",
        )
    if model is None and (pretrained is not None or random_weights):
        raise UsageError("--pretrained and --random-weights need --model")
    if format == "onnx":
        require_onnx()
    if model is not None and format in ("timm", "onnx"):
        raise UsageError(
            f"--model does not apply to --format {format}, which has no text tower",
            hint="omit --model",
        )


def require_model(checkpoint: Path) -> Card:
    """Return the card of a classifier.

    Raises:
        CheckpointError: The card names no model.
    """
    card = read_card(checkpoint)
    if card.model is None:
        raise CheckpointError(
            f"{checkpoint}: its card names no model, expected a classifier", hint=NO_MODEL_HINT
        )
    return card


def _load_full(source: ModelSource, checkpoint: Path, card: Card) -> FullClip:
    quick_gelu = None if card.model is None else bool(card.model.config["quick_gelu"])
    return load_full_clip(source, quick_gelu=quick_gelu, image_encoder=checkpoint)


def _warnings(checkpoint: Path, card: Card, full: FullClip | None, format: str) -> tuple[str, ...]:
    if full is not None:
        notes = _not_finite_warnings(state_arrays(full.model))
    else:
        with open_checkpoint(checkpoint) as reader:
            arrays = {name: reader.read_array(name) for name in reader.tensors}
        notes = _not_finite_warnings(arrays)
    turns = (card.preprocess or {}).get(EXIF_ORIENTATION) == APPLY_ORIENTATION
    vision = card.model.config["vision_cfg"] if card.model else {}
    clean = None
    if full is not None and format == "transformers":
        clean = (full.config["text_cfg"].get("tokenizer_kwargs") or {}).get("clean")
    if clean is not None:
        notes.append(CLEANED_NOTE.format(clean))
    if format == "open_clip":
        notes += [_ORIENTATION_NOTE] * turns
        if vision.get("timm_model_name") and vision.get("act_kwargs"):
            notes.append(ModelWarning(_ACTIVATION_WARNING))
    return tuple(notes)


def _name(card: Card) -> str:
    """Return a name for the model card that does not depend on the folder."""
    model = card.model.name if card.model else "model"
    return f"{model.rpartition(':')[2].rpartition('/')[2]}-{card.role}"


def find_repository(card: Card) -> str | None:
    """Return the repository of the base model's weights on the hub; None if there is none."""
    if card.model is None or card.model.source is None:
        return None
    name, source = card.model.name, card.model.source
    if source.startswith(HUB_PREFIX):
        return source.removeprefix(HUB_PREFIX)
    if not open_clip.is_pretrained_cfg(name, source):
        return None
    repository = str(open_clip.get_pretrained_cfg(name, source).get("hf_hub") or "")
    return repository.rstrip("/") or None


def _write_open_clip(
    folder: Path, source: ModelSource, full: FullClip, card: Card
) -> tuple[str, Usage]:
    config = _write_config(folder, source, full, card)
    check_saved_tokenizer(folder, config["text_cfg"], full.tokenizer)
    arrays = state_arrays(full.model)
    digest = write_checkpoint(folder / WEIGHTS_NAME, arrays, None, metadata={"format": "pt"})
    return digest, Usage("open_clip", _OPEN_CLIP_USE)


def _own_merges(folder: Path) -> str | None:
    """Return the name of the byte-pair file of an exported folder of open_clip, if it has one."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    text_config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    merges = (text_config.get("tokenizer_kwargs") or {}).get("bpe_path")
    return None if merges is None else str(merges)


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


def _manifest(format: str, full: FullClip | None, card: Card, digest: str) -> dict[str, Any]:
    """Return the digest and the history of the weights, without any path."""
    options: dict[str, Any] = {}
    if full is not None:
        options = {"model": full.name, "pretrained": full.source, "weights": full.weights_digest}
    if format != "open_clip":
        options["format"] = format
    step = HistoryEntry(
        "export",
        __version__,
        options=options,
        inputs=(HistoryInput("image_encoder", card.digest or UNKNOWN_DIGEST),),
        output=digest,
    )
    return {
        "schema": 1,
        "digest": digest,
        "history": [asdict(entry) for entry in (*join_histories(card), step)],
    }

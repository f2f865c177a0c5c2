"""Write a checkpoint as a model folder of transformers or timm, with its head.

`model.safetensors` loads strictly into the library's own model. The classifier is
logits = normalize(features) @ weight.T + bias, which no class of the two libraries computes
(CLIPForImageClassification averages patches instead, without projection and normalization), so
the head is in a file of its own beside a short module that applies it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from open_clip.tokenizer import HFTokenizer

from wiseft_cli.checkpoint.card import APPLY_ORIENTATION, EXIF_ORIENTATION, Card
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.convert.clip_vocabulary import default_merges, write_clip_tokenizer
from wiseft_cli.convert.convert import convert_names, write_converted
from wiseft_cli.convert.names import Library
from wiseft_cli.convert.plain_names import rename
from wiseft_cli.convert.timm_config import timm_config
from wiseft_cli.convert.transformers_config import transformers_config, transformers_preprocessor
from wiseft_cli.convert.view import ArrayReader
from wiseft_cli.model.classifier import HEAD_BIAS, HEAD_WEIGHT, state_arrays
from wiseft_cli.model.full_clip import FullClip
from wiseft_cli.model.model_source import ModelSource
from wiseft_cli.model.tokenizer import find_merges
from wiseft_cli.model.transformers_source import TransformersTokenizer
from wiseft_cli.reporting.model_card import Usage

MODULE_NAME = "image_classifier.py"
HEAD_NAME = "classification_head.safetensors"

_MODULE = Template('''\
"""Classify images with the model in this folder.

logits = normalize(features) @ weight.T + bias; the weight includes the factor on cosine
similarities. Use: `ImageClassifier("FOLDER").predict(PIL.Image.open("photo.jpg"))`.
"""

import json
from pathlib import Path

import torch
from PIL import ImageOps
from safetensors.torch import load_file
$imports

TURNS_UPRIGHT = $turns_upright  # whether the EXIF orientation is applied before everything else


class ImageClassifier(torch.nn.Module):
    """Images (B, 3, H, W), preprocessed -> logits (B, C)."""

    def __init__(self, folder):
        super().__init__()
        folder = Path(folder)
$load
        head = load_file(folder / "$head")
        self.weight = torch.nn.Parameter(head["classifier.weight"])
        self.bias = torch.nn.Parameter(head["classifier.bias"])
        self.names = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        self.eval()

    def forward(self, pixel_values):
        features = $features
        features = torch.nn.functional.normalize(features, dim=-1)
        return features @ self.weight.T + self.bias

    @torch.inference_mode()
    def predict(self, image, top=5):
        """Return the most probable classes of a PIL image: (name, probability)."""
        if TURNS_UPRIGHT:
            image = ImageOps.exif_transpose(image)
        pixel_values = $prepare
        shares, order = self(pixel_values)[0].softmax(-1).sort(descending=True)
        return [(self.names[i], p) for i, p in zip(order[:top].tolist(), shares.tolist())]
''')

_TRANSFORMERS_PARTS = {
    "load": """\
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self.encoder = $encoder.from_pretrained(folder)""",
    "prepare": 'self.processor(image.convert("RGB"), return_tensors="pt").pixel_values',
}
_TIMM_PARTS = {
    "imports": "import timm",
    "load": """\
        self.encoder = timm.create_model(f"local-dir:{folder}", pretrained=True)
        config = timm.data.resolve_data_config(model=self.encoder)
        self.transform = timm.data.create_transform(**config)""",
    "features": "self.encoder(pixel_values)",
    "prepare": 'self.transform(image.convert("RGB"))[None]',
}
_USE = """\
import sys

from PIL import Image

sys.path.insert(0, "FOLDER")
from image_classifier import ImageClassifier

classifier = ImageClassifier("FOLDER")
print(classifier.predict(Image.open("photo.jpg")))"""
_NORMALIZED = (
    "`model.safetensors` holds the model, and `classification_head.safetensors` the head: "
    "logits = normalize(features) @ weight.T + bias. The head must be applied to L2-normalized "
    "features, and its weight already includes exp(logit_scale). `classes.json` has the class "
    "names in the order of the rows."
)


def write_library_folder(
    folder: Path,
    library: str,
    checkpoint: Path,
    card: Card,
    *,
    full: FullClip | None,
    source: ModelSource | None,
) -> tuple[str, Usage]:
    """Write all files but the model card, and return the digest of the weights and their use.

    Args:
        folder: An empty folder.
        library: `transformers` or `timm`.
        checkpoint: The checkpoint.
        card: Its card; the model is set.
        full: The whole model with the checkpoint's image encoder, to write the text tower too.
        source: Where `full` was found.
    Raises:
        ModelError: The library cannot express the model.
        CheckpointError: The image encoder is of another family.
    """
    assert card.model is not None
    vision = card.model.config["vision_cfg"]
    kind = "siglip" if vision.get("timm_model_name") else "clip"
    names = [entry.name for entry in card.classes]
    model_cfg = card.model.config if full is None else {**full.config, "vision_cfg": vision}
    config = transformers_config(model_cfg, kind=kind, id2label=names)
    preprocess = card.preprocess or {}
    if library == "timm":
        document = timm_config(
            config["vision_config"],
            preprocess,
            feature_dim=model_cfg["embed_dim"],
            tower=vision.get("timm_model_name"),
        )
        parts: Mapping[str, str] = _TIMM_PARTS
    else:
        document = _transformers_document(config, kind, is_whole=full is not None)
        parts = _transformers_parts(kind)
        _write_json(
            folder / "preprocessor_config.json", transformers_preprocessor(preprocess, kind=kind)
        )
        if full is not None and source is not None:
            _write_tokenizer(folder, full, source)
    _write_json(folder / "config.json", document)
    _write_json(folder / "classes.json", names)
    with open_checkpoint(checkpoint) as reader:
        digest = _write_tensors(folder, library, reader, full)
        head = {
            "classifier.weight": reader.read_array(HEAD_WEIGHT),
            "classifier.bias": reader.read_array(HEAD_BIAS),
        }
    write_checkpoint(folder / HEAD_NAME, head, None, metadata={"format": "pt"})
    (folder / MODULE_NAME).write_text(_render_module(card, parts), encoding="utf-8")
    return digest, Usage(library, _USE, (_NORMALIZED,))


def _write_tensors(
    folder: Path, library: str, reader: CheckpointReader, full: FullClip | None
) -> str:
    encoder: CheckpointReader
    if full is not None and library == "transformers":
        encoder = ArrayReader(reader.path, state_arrays(full.model))
    else:
        encoder = rename(reader, {n: n for n in reader.tensors if n.startswith("visual.")})
    to: Library = "timm" if library == "timm" else "transformers"
    return write_converted(convert_names(encoder, to), folder / "model.safetensors")


def _transformers_document(config: dict[str, Any], kind: str, *, is_whole: bool) -> dict[str, Any]:
    if is_whole:
        name = {"clip": "CLIPModel", "siglip": "SiglipModel"}[kind]
        return {**config, "architectures": [name]}
    labels = {key: config[key] for key in ("id2label", "label2id")}
    return {**config["vision_config"], **labels, "architectures": [_encoder_class(kind)]}


def _encoder_class(kind: str) -> str:
    return {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}[kind]


def _transformers_parts(kind: str) -> dict[str, str]:
    encoder, output = _encoder_class(kind), {"clip": "image_embeds", "siglip": "pooler_output"}
    return {
        "imports": f"from transformers import AutoImageProcessor, {encoder}",
        "load": Template(_TRANSFORMERS_PARTS["load"]).substitute(encoder=encoder),
        "features": f"self.encoder(pixel_values=pixel_values).{output[kind]}",
        "prepare": _TRANSFORMERS_PARTS["prepare"],
    }


def _render_module(card: Card, parts: Mapping[str, str]) -> str:
    turns = (card.preprocess or {}).get(EXIF_ORIENTATION) == APPLY_ORIENTATION
    return _MODULE.substitute(parts, head=HEAD_NAME, turns_upright=turns)


def _write_tokenizer(folder: Path, full: FullClip, source: ModelSource) -> None:
    """Write the tokenizer: transformers' own files, or CLIP's vocabulary in its form."""
    tokenizer: Any = full.tokenizer.tokenize
    if isinstance(tokenizer, (HFTokenizer, TransformersTokenizer)):
        tokenizer.save_pretrained(str(folder))
        return
    merges = find_merges(source) or default_merges()
    write_clip_tokenizer(folder, merges, context_length=full.tokenizer.context_length)


def _write_json(path: Path, document: Any) -> None:
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")

"""Write a checkpoint as one ONNX graph: images -> logits, image encoder and head together.

The graph has a dynamic batch. Its metadata holds the class names and ids, and the preprocessing
as JSON. Before the folder appears, onnxruntime runs the graph and its logits are compared with
those of torch.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from wiseft_cli.checkpoint.card import (
    APPLY_ORIENTATION,
    EXIF_ORIENTATION,
    IGNORE_ORIENTATION,
    Card,
)
from wiseft_cli.errors import MissingDependencyError, ModelError
from wiseft_cli.model.classifier import ImageClassifier, load_classifier
from wiseft_cli.model.quiet import quiet_libraries
from wiseft_cli.reporting.model_card import Usage

MODEL_NAME = "model.onnx"
TOLERANCE = 1e-4
"""Largest difference between the logits of onnxruntime and torch, relative to the largest one."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MAX_FILE_BYTES = 2_000_000_000
"""Size from which weights go into a file beside the graph: a protobuf ends at 2 GiB."""

_USE = Template('''\
import json

import numpy as np
import onnxruntime
from PIL import $modules

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])


def prepare(image):
    """PIL image -> (1, 3, $height, $width)"""
$upright    image = image.convert("RGB")
$resize
    pixels = np.asarray(image, np.float32) / 255
    pixels = (pixels - np.float32($mean)) / np.float32($std)
    return pixels.transpose(2, 0, 1)[None]


(logits,) = session.run(None, {"images": prepare(Image.open("photo.jpg"))})
print(names[int(logits[0].argmax())])''')
_CROP = """
    left, top = round((image.width - $width) / 2), round((image.height - $height) / 2)
    image = image.crop((left, top, left + $width, top + $height))"""
_RATIO = """\
    ratio = $reduce(image.height / $height, image.width / $width)
    size = round(image.width / ratio), round(image.height / ratio)
    image = image.resize(size, Image.Resampling.$resampling)"""
_SHORTEST = Template(
    """\
    side = min(image.size)
    size = image.width * $width // side, image.height * $height // side
    image = image.resize(size, Image.Resampling.$resampling)"""
    + _CROP
)
_SHORTEST_OBLONG = Template(_RATIO + _CROP)
_LONGEST = Template(
    _RATIO
    + """
    padded = Image.new("RGB", ($width, $height), $fill)
    padded.paste(image, (($width - image.width) // 2, ($height - image.height) // 2))
    image = padded"""
)
_SQUASH = Template("    image = image.resize(($width, $height), Image.Resampling.$resampling)")


def require_onnx() -> None:
    """Check that the packages of the extra `onnx` are installed.

    Raises:
        MissingDependencyError: One is not.
    """
    for name in _PACKAGES:
        try:
            import_module(name)
        except ImportError:
            raise MissingDependencyError(
                f"--format onnx needs {name}, which is not installed",
                hint="pip install 'wiseft-cli[onnx]'",
            ) from None


def write_onnx_folder(folder: Path, checkpoint: Path, card: Card) -> tuple[str, Usage]:
    """Write model.onnx, check it, and return the SHA-256 of the file and its use.

    Raises:
        ModelError: The encoder cannot be exported, or the graph computes other logits.
    """
    classifier, _ = load_classifier(checkpoint)
    height, width = _image_size(card)
    examples = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    path = folder / MODEL_NAME
    _export(classifier, examples, path)
    _describe(path, card)
    _check(classifier, path, (height, width))
    names = [entry.name for entry in card.classes]
    text = json.dumps(names, indent=2, ensure_ascii=False)
    (folder / "classes.json").write_text(text + "\n", encoding="utf-8")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"sha256:{digest}", _usage(card)


def _image_size(card: Card) -> tuple[int, int]:
    size = (card.preprocess or {}).get("size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def _export(classifier: ImageClassifier, examples: torch.Tensor, path: Path) -> None:
    """Trace the classifier; its code's own warnings are not the user's."""
    try:
        with quiet_libraries(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                classifier,
                (examples,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        assert program is not None
        model: Any = program.model_proto
    except Exception as error:  # the exporter raises errors of many types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"this image encoder cannot be exported as ONNX: {reason}",
            hint="another --format may hold it",
        ) from None
    _save(_without_traces(model), path)


def _without_traces(model: Any) -> Any:
    """Remove the exporter's notes on the source code, which contain paths of this machine."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        parts = [graph, *graph.node, *graph.value_info]
        parts += [*getattr(graph, "input", []), *getattr(graph, "output", [])]
        parts += getattr(graph, "initializer", [])
        for part in parts:
            if hasattr(part, "metadata_props"):
                del part.metadata_props[:]
            if hasattr(part, "doc_string"):
                part.doc_string = ""
    return model


def _save(model: Any, path: Path) -> None:
    onnx: Any = import_module("onnx")
    is_large = model.ByteSize() >= _MAX_FILE_BYTES
    data = {"save_as_external_data": True, "location": f"{path.name}.data"} if is_large else {}
    onnx.save_model(model, str(path), **data)


def _describe(path: Path, card: Card) -> None:
    """Add class names, preprocessing and digest to the metadata of the graph."""
    onnx: Any = import_module("onnx")
    model = onnx.load(str(path), load_external_data=False)
    model.producer_name, model.producer_version = "wiseft", ""
    preprocess = {**(card.preprocess or {})}
    preprocess.setdefault(EXIF_ORIENTATION, IGNORE_ORIENTATION)
    entries = {
        "class_names": [entry.name for entry in card.classes],
        "class_ids": [entry.id for entry in card.classes],
        "preprocess": preprocess,
        "input": "images: RGB / 255, resized, cropped and normalized, float32 (batch, 3, H, W)",
        "output": "logits: softmax over the last axis gives probabilities",
        "checkpoint": card.digest,
    }
    for name, value in entries.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=name, value=text)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _check(classifier: ImageClassifier, path: Path, size: tuple[int, int]) -> None:
    """Compare the logits of onnxruntime with those of torch, for batches of 1 and 3 images."""
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        for count in (1, 3):
            images = np.random.default_rng(count).standard_normal((count, 3, *size), np.float32)
            (found,) = session.run(["logits"], {"images": images})
            with torch.no_grad():
                expected = classifier(torch.from_numpy(images)).numpy()
            difference = float(np.abs(found - expected).max())
            if found.shape != expected.shape or not difference <= TOLERANCE * max(
                1.0, float(np.abs(expected).max())
            ):
                raise ModelError(
                    f"the exported graph computes other logits than torch: they differ by up to "
                    f"{difference:.3g} for {count} images",
                    hint="report this model; another --format may hold it",
                )
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's errors have no common class
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"onnxruntime cannot run the exported graph: {reason}") from None


def _usage(card: Card) -> Usage:
    preprocess = card.preprocess or {}
    config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), dict(preprocess)))
    height, width = _image_size(card)
    is_bilinear = config.interpolation == "bilinear"
    resize, reduce = _SHORTEST, "min"
    if config.resize_mode == "squash":
        resize = _SQUASH
    elif config.resize_mode == "longest":
        resize, reduce = _LONGEST, "max"
    elif height != width:  # open_clip resizes these with bicubic interpolation only
        resize, is_bilinear = _SHORTEST_OBLONG, False
    is_turned = preprocess.get(EXIF_ORIENTATION, IGNORE_ORIENTATION) == APPLY_ORIENTATION
    values = {
        "height": height,
        "width": width,
        "mean": _listed(config.mean),
        "std": _listed(config.std),
        "fill": tuple(_listed(config.fill_color)),
        "reduce": reduce,
        "resampling": "BILINEAR" if is_bilinear else "BICUBIC",
        "modules": "Image, ImageOps" if is_turned else "Image",
        "upright": "    image = ImageOps.exif_transpose(image)\n" if is_turned else "",
    }
    notes = (
        "`model.onnx` takes float32 images (batch, 3, H, W) with any batch and gives logits; its "
        "metadata has `class_names`, `class_ids` and `preprocess` as JSON.",
    )
    return Usage("onnx", _USE.substitute(values, resize=resize.substitute(values)), notes)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values] * 3

"""Features of a frozen encoder on disk, so that a second linear classifier decodes nothing.

A file is found by everything its numbers depend on: the encoder's weights and configuration, the
preprocessing, the images with their modification times, and how they were computed. So it is never
stale; what nobody asks for any more is the person's to delete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from wiseft_cli.checkpoint.atomic import write_bytes_atomically
from wiseft_cli.checkpoint.digest import canonical_json, sha256_of
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import DatasetError, OutputError
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.starting import torch_version

_FORMAT = 1


def features_key(classifier: ImageClassifier, plan: FinetunePlan, device: torch.device) -> str:
    """Return the name of the features that a run computes, 64 hexadecimal digits.

    Raises:
        DatasetError: An image of the set is gone.
    """
    model = plan.card.model
    facts = {
        "format": _FORMAT,
        "encoder": _encoder_digest(classifier),
        "config": model.config if model else None,
        "preprocess": plan.card.preprocess,
        "images": _images_digest(plan.train.images),
        # The rest touches the last bits alone; a run is to have the same bytes with and without.
        "precision": plan.recipe.precision,
        "batch_size": plan.recipe.micro_batch_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch_version(),
    }
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def _encoder_digest(classifier: ImageClassifier) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(classifier.visual.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _images_digest(image_set: ImageSet) -> str:
    """Digest paths, sizes and times; not labels, on which features do not depend."""
    digest, times = hashlib.sha256(), {}
    digest.update(f"crop_border {image_set.crop_border}\n".encode())
    for record in image_set.records:
        file = image_set.root / (record.container or record.path)
        if file not in times:
            try:
                times[file] = os.stat(file).st_mtime_ns
            except OSError as error:
                raise DatasetError(f"cannot read image {file}: {error.strerror}") from None
        place = [str(file), record.path, record.size_bytes, record.offset, times[file]]
        digest.update(canonical_json(place).encode())
    return digest.hexdigest()


class FeatureCache:
    """A folder of features.

    Args:
        folder: Made when something is first kept; nothing is kept or found where None.
        on_note: Told what was found.
        on_warning: Told what could not be used or kept; a run goes on without.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        on_note: Callable[[str], None] = lambda _: None,
        on_warning: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._on_note = on_note
        self._on_warning = on_warning

    def load(self, key: str, n_images: int) -> torch.Tensor | None:
        """Return features (n_images, D), or None where there are none, or damaged ones."""
        if self._folder is None or not self._path(key).exists():
            return None
        path = self._path(key)
        try:
            with safe_open(path, "pt") as file:
                features: torch.Tensor = file.get_tensor("features")
                known = file.metadata() or {}
            if len(features) != n_images or known.get("sha256") != _digest_of(features):
                raise ValueError("its content is not what was written")
        except (OSError, SafetensorError, ValueError) as error:
            self._on_warning(f"{path}: cannot be used: {error}; features are computed again")
            return None
        self._on_note(f"features of {n_images} images from {path}")
        return features

    def store(self, key: str, features: torch.Tensor) -> None:
        """Keep features (N, D); where that fails it is a warning."""
        if self._folder is None:
            return
        features = features.detach().cpu().contiguous()
        data = save({"features": features}, {"sha256": _digest_of(features)})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(self._path(key), data, force=True)
        except OutputError as error:
            self._on_warning(f"{error.message}; the features are not kept for another run")
        except OSError as error:
            self._on_warning(
                f"{self._folder}: cannot be made: {error.strerror};"
                " the features are not kept for another run"
            )

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.safetensors"


def _digest_of(features: torch.Tensor) -> str:
    return sha256_of(features.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

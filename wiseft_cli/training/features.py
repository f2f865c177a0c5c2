"""Features of a frozen image encoder: computed once per run, and cached on disk for other runs.

They are the inputs of a linear classifier (Wortsman et al. 2021, arXiv 2109.01903, section D.3).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from wiseft_cli.checkpoint.atomic import write_bytes_atomically
from wiseft_cli.checkpoint.digest import canonical_json, sha256_of, sha256_of_json
from wiseft_cli.compute.process_group import ProcessGroup
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import CheckpointError, DatasetError, OutputError
from wiseft_cli.evaluation.scoring import load_images
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.training.batches import Draw
from wiseft_cli.training.callbacks import Callbacks
from wiseft_cli.training.images import RotatedImages, UnreadableImages
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.resume import torch_version

_CACHE_FORMAT = 1


class Features(NamedTuple):
    """The features of an image set.

    Attributes:
        values: L2-normalised features, float32, shape (N, D), on the device.
        is_readable: Whether image i could be read, bool, shape (N,); otherwise its row is 0.
    """

    values: torch.Tensor
    is_readable: torch.Tensor


def default_feature_cache() -> Path:
    """Return the folder for cached features: wiseft/features in $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "wiseft" / "features"


def feature_batches(
    features: Features, targets: torch.Tensor, draws: Iterable[list[Draw]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the features (B, D) and class indices (B,) of each batch of draws.

    Unreadable images are left out; B may be 0.

    Args:
        features: Of the N images.
        targets: Class indices, int64, shape (N,), on the same device.
        draws: The batches in order.
    """
    for batch in draws:
        rows = torch.tensor([draw.image for draw in batch], dtype=torch.int64).to(targets.device)
        rows = rows[features.is_readable[rows]]
        yield features.values[rows], targets[rows]


def load_or_compute_features(
    classifier: ImageClassifier,
    plan: FinetunePlan,
    unreadable: UnreadableImages,
    rotated: RotatedImages,
    callbacks: Callbacks,
    *,
    processes: ProcessGroup,
    workers: int,
    cache: Path | None,
) -> Features:
    """Return the features of the training images, from the cache if they are there.

    Process 0 reads and writes the cache. Problems with the cache are warnings.

    Args:
        classifier: Its encoder, in evaluation mode.
        plan: The training images, and how features are computed.
        unreadable: Counts unreadable images.
        rotated: Counts images whose EXIF orientation is ignored.
        callbacks: Report features that are found or computed.
        processes: The processes that share the images.
        workers: Number of decoding processes.
        cache: Folder of the cache; None to neither read nor write features.
    Raises:
        DatasetError: More images are unreadable than allowed.
    """
    path = cache and cache / f"{cache_key(classifier, plan, processes.device)}.safetensors"
    found = None
    if path and path.exists() and processes.is_first:
        found = _read_cached(path, len(plan.train.images.records), callbacks)
    known = processes.broadcast(None if found is None else [found[1], list(found[0].shape)])
    if known is not None:
        n_rotated, shape = known
        values = (torch.zeros(shape) if found is None else found[0]).to(processes.device)
        rotated.report(n_rotated)
        processes.broadcast_tensors([values])
        callbacks.on_encoded(len(values))
        return Features(values, torch.ones(len(values), dtype=torch.bool, device=processes.device))
    features = compute_features(
        partial(classifier.encode_image, precision=plan.recipe.precision),
        plan.train.images,
        plan.card.preprocess or {},
        batch_size=plan.recipe.micro_batch_size,
        processes=processes,
        workers=workers,
        unreadable=unreadable,
        rotated=rotated,
        on_encoded=callbacks.on_encoded,
    )
    n_rotated = rotated.report()
    # Unreadable images must be reported in each run, so incomplete features are not cached.
    if path and processes.is_first and features.is_readable.all():
        try:
            write_features(path, features.values, n_rotated)
        except OutputError as error:
            callbacks.on_warning(f"{error.message}; the features are not cached")
    return features


def _read_cached(
    path: Path, n_images: int, callbacks: Callbacks
) -> tuple[torch.Tensor, int] | None:
    try:
        found = read_features(path, n_images)
    except CheckpointError as error:
        callbacks.on_warning(f"{error.message}; the features are computed again")
        return None
    callbacks.on_note(f"features of {n_images} images from {path}")
    return found


def compute_features(
    encode_image: Callable[[torch.Tensor], torch.Tensor],
    image_set: ImageSet,
    preprocess: Mapping[str, Any],
    *,
    batch_size: int,
    processes: ProcessGroup,
    workers: int,
    unreadable: UnreadableImages,
    rotated: RotatedImages,
    on_encoded: Callable[[int], None],
) -> Features:
    """Encode every image of a set, in the set's order.

    Each process encodes a share of the images, and returns the features of all.

    Args:
        encode_image: From images (B, 3, H, W) to L2-normalised features (B, D), in evaluation
            mode.
        image_set: The images.
        preprocess: The card's preprocessing.
        batch_size: Images per forward pass.
        processes: The processes that share the images.
        workers: Number of decoding processes.
        unreadable: Counts unreadable images.
        rotated: Counts images whose EXIF orientation is ignored.
        on_encoded: Called with the number of images of each pass.
    Raises:
        DatasetError: More images are unreadable than allowed.
    """
    device = processes.device
    n_images, rows, parts = len(image_set.records), [], []
    with torch.no_grad():
        # Not held in a variable: after an error the traceback would keep its workers alive.
        for batch in load_images(
            image_set,
            preprocess,
            batch_size=batch_size,
            workers=workers,
            device=device,
            processes=processes,
        ):
            unreadable.add(batch.unreadable)
            rotated.add(batch.rotated)
            if len(batch.indices):
                parts.append(encode_image(batch.images))
                rows.append(batch.indices)
            on_encoded(len(batch.indices) + len(batch.unreadable))
        unreadable.share()
        width = max(processes.gather([part.shape[1] for part in parts[:1]]), default=0)
        values = torch.zeros(n_images, width, device=device)
        is_readable = torch.zeros(n_images, dtype=torch.int64, device=device)
        if parts:
            indices = torch.cat(rows).to(device)
            values[indices], is_readable[indices] = torch.cat(parts), 1
        # Each row comes from one process, and is 0 in the others.
        return Features(processes.sum_tensor(values), processes.sum_tensor(is_readable).bool())


def cache_key(classifier: ImageClassifier, plan: FinetunePlan, device: torch.device) -> str:
    """Return a digest of everything that the features depend on, 64 hexadecimal digits.

    A cached file is thus never outdated: the key covers the encoder's weights and configuration,
    the preprocessing, the images with their modification times, and what decides the last bits.

    Raises:
        DatasetError: An image of the set is missing.
    """
    model = plan.card.model
    facts = {
        "format": _CACHE_FORMAT,
        "encoder": _encoder_digest(classifier),
        "config": model.config if model else None,
        "preprocess": plan.train.images.preprocess(plan.card.preprocess or {}),
        "images": _images_digest(plan.train.images),
        # The rest decides the last bits: a run has the same bytes with and without the cache.
        "precision": plan.recipe.precision,
        "batch_size": plan.recipe.micro_batch_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch_version(),
    }
    return sha256_of_json(facts).removeprefix("sha256:")


def _encoder_digest(classifier: ImageClassifier) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(classifier.visual.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _images_digest(image_set: ImageSet) -> str:
    """Digest paths, sizes and times; features do not depend on labels."""
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


def read_features(path: Path, n_images: int) -> tuple[torch.Tensor, int]:
    """Read cached features (n_images, D), and how many of the images are rotated.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            values: torch.Tensor = file.get_tensor("features")
            known = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be used: {error}") from None
    if len(values) != n_images or known.get("sha256") != _digest_of(values):
        raise CheckpointError(f"{path}: is damaged, its digest does not match its content")
    n_rotated = known.get("n_rotated", "0")
    return values, int(n_rotated) if n_rotated.isdecimal() else 0


def write_features(path: Path, values: torch.Tensor, n_rotated: int = 0) -> None:
    """Write features (N, D) to the cache.

    Args:
        n_rotated: Number of the images whose EXIF orientation is ignored.
    Raises:
        OutputError: The folder cannot be created, or the file cannot be written.
    """
    values = values.detach().cpu().contiguous()
    data = save({"features": values}, {"sha256": _digest_of(values), "n_rotated": str(n_rotated)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be created: {error.strerror}") from None
    write_bytes_atomically(path, data, force=True)


def _digest_of(values: torch.Tensor) -> str:
    return sha256_of(values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

"""The classifiers of an evaluation, with few weight sets in memory at a time.

Merges need one weight set in memory, that of the classifier, whatever the number of alphas; their
inputs are mapped (`merged_weights.py`). On a GPU both checkpoints of a plain interpolation are
kept there too. Of other checkpoints the first few stay loaded; the rest are read from their files
again for each chunk of images, which costs far less than evaluating a chunk. Merged weights have
the bits that `wiseft merge` writes.

Each file is read and hashed once before it is evaluated. A file whose tensors do not match its
card is rejected: its result would be stored under the digest of other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wiseft_cli.checkpoint.digest import canonical_json, content_digest, new_hash
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint, require_card_digest
from wiseft_cli.evaluation.merged_weights import MappedFile, MergedWeights
from wiseft_cli.evaluation.weight_sets import PLAIN, NamedCheckpoint, WeightSet
from wiseft_cli.merging.fisher_file import fisher_info, open_fisher, require_own_digest
from wiseft_cli.model.classifier import ImageClassifier, load_classifier

MAX_LOADED = 3
"""Checkpoints in memory at a time beside those of a merge."""

_CHUNK_BYTES = 1 << 20

SetTensor = Callable[[str, torch.Tensor], None]
"""Writes a tensor of the wanted weights, by name, into a tensor of the classifier."""


class ClassifierPool:
    """Provides the classifier of each weight set, and loads it at its first use.

    Args:
        weight_sets: All checkpoints that will be used, alone or in a merge. Other merges of the
            same checkpoints may be asked for later.
        device: Where the classifiers run.
    Raises:
        CheckpointError: A file cannot be read, or its tensors do not match its card.
    """

    def __init__(self, weight_sets: Iterable[WeightSet], device: torch.device) -> None:
        self._device = device
        parts = [part for weights in weight_sets for part in weights.parts]
        checkpoints = {item.path: item for part in parts for item in part.checkpoints}
        self._threads = torch.get_num_threads()
        self._digests: Mapping[Path, Mapping[str, str]] = {
            path: tensor_digests(path, threads=self._threads) for path in checkpoints
        }
        for path in dict.fromkeys(fisher.path for part in parts for fisher in part.fishers):
            _check_fisher(path, threads=self._threads)
        merged = {path for part in parts if part.is_merged for path in part.paths}
        alone = [path for path in checkpoints if path not in merged]
        self._kept = frozenset(alone if len(alone) <= MAX_LOADED else alone[: MAX_LOADED - 1])
        self._loaded: dict[Path, ImageClassifier] = {}
        self._files: dict[Path, MappedFile] = {}
        self._merges: dict[str, _Merge] = {}
        self._changing = _ChangingClassifier(device)
        self.changes_weights = bool(merged) or len(alone) > MAX_LOADED
        """Whether weights are set again for each chunk of images."""

    def encoder_key(self, part: WeightSet) -> Hashable:
        """Return a key that two weight sets share only if their image encoders are equal.

        Args:
            part: A checkpoint or a merge; not an ensemble.
        """
        encoders = [self._encoder_digest(checkpoint) for checkpoint in part.checkpoints]
        if len(set(encoders)) == 1:
            return encoders[0]
        alpha = None if part.alpha is None else part.alpha.value
        is_pair = part.settings == PLAIN and len(encoders) == 2
        return encoders[1] if is_pair and alpha == 1.0 else (part.merge_key, alpha)

    def _encoder_digest(self, checkpoint: NamedCheckpoint) -> str:
        tensors = self._digests[checkpoint.path]
        encoder = {name: value for name, value in tensors.items() if name.startswith("visual.")}
        return canonical_json([checkpoint.model_config, encoder])

    def classifier(self, part: WeightSet) -> ImageClassifier:
        """Return the classifier with these weights, valid until the next call.

        Args:
            part: A checkpoint or a merge; not an ensemble.
        """
        first = part.checkpoints[0]
        if part.is_merged:
            merge = self._merge_of(part)
            return self._change_to(
                first,
                self._ids_of_merge(part),
                lambda name, out: merge.set_tensor(name, part, out),
            )
        if first.path not in self._kept:
            file = self._open(first.path)
            return self._change_to(
                first,
                self._digests[first.path],
                lambda name, out: _copy(file.array(name), out),
            )
        if first.path not in self._loaded:
            self._loaded[first.path], _ = load_classifier(first.path, device=self._device)
        return self._loaded[first.path]

    def _change_to(
        self, first: NamedCheckpoint, ids: Mapping[str, str], set_tensor: SetTensor
    ) -> ImageClassifier:
        shapes, own_ids = self._open(first.path).shapes, self._digests[first.path]
        return self._changing.show(first, ids, set_tensor, shapes=shapes, own_ids=own_ids)

    def _open(self, path: Path) -> MappedFile:
        if path not in self._files:
            self._files[path] = MappedFile(path)
        return self._files[path]

    def _merge_of(self, part: WeightSet) -> _Merge:
        key = part.merge_key
        if key not in self._merges:
            weights = MergedWeights(part, self._open, threads=self._threads)
            self._merges[key] = _Merge(weights, self._device)
        return self._merges[key]

    def _ids_of_merge(self, part: WeightSet) -> dict[str, str]:
        """Return an identity of each tensor; of one that all inputs share, its digest."""
        inputs = [self._digests[path] for path in part.paths]
        alpha = "" if part.alpha is None else part.alpha.text
        merged = f"{part.merge_key} {alpha}"
        return {
            name: digest if all(other[name] == digest for other in inputs) else merged
            for name, digest in inputs[0].items()
        }


class _Merge:
    """Sets tensors of a classifier to those of a merge.

    On a GPU, float32 tensors of a plain interpolation are kept and computed there.
    """

    def __init__(self, weights: MergedWeights, device: torch.device) -> None:
        self._weights, self._device = weights, device
        self._on_device: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def set_tensor(self, name: str, part: WeightSet, out: torch.Tensor) -> None:
        if _interpolates_on(self._device) and name not in self._on_device:
            pair = self._weights.pair(name)
            if pair is not None:
                theta_0, theta_1 = (torch.from_numpy(at.copy()).to(self._device) for at in pair)
                self._on_device[name] = theta_0, theta_1
        if name in self._on_device:
            alpha = self._weights.alpha_of(name, part.alpha)
            interpolate_tensors(*self._on_device[name], alpha, out=out)
        else:
            _copy(self._weights.value(name, part.alpha), out)


def _copy(values: np.ndarray, out: torch.Tensor) -> None:
    """Copy an array into a tensor as classifiers are loaded: float32 for every floating type."""
    dtype = values.dtype if values.dtype.kind in "iub" else np.dtype(np.float32)
    out.copy_(torch.from_numpy(np.array(values, dtype)))


class _ChangingClassifier:
    """One classifier that takes one set of weights after another.

    Only tensors that differ from the current ones are set. A model of another architecture or
    number of classes is built anew.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kind: tuple[Any, ...] | None = None
        self._current: dict[str, str] = {}
        self._classifier: ImageClassifier | None = None

    def show(
        self,
        checkpoint: NamedCheckpoint,
        ids: Mapping[str, str],
        set_tensor: SetTensor,
        *,
        shapes: Mapping[str, tuple[int, ...]],
        own_ids: Mapping[str, str],
    ) -> ImageClassifier:
        """Return the classifier with other weights.

        Args:
            checkpoint: A checkpoint with the model, the classes and the tensors of the weights.
            ids: The identity of each tensor of the weights.
            set_tensor: Sets one of these tensors; called from several threads.
            shapes: The shape of each tensor.
            own_ids: The identity of each tensor of the checkpoint itself.
        """
        kind = (canonical_json(checkpoint.model_config), shapes)
        if self._classifier is None or self._kind != kind:
            self._classifier = None  # frees its memory before the next one is loaded
            self._classifier, _ = load_classifier(checkpoint.path, device=self._device)
            self._kind, self._current = kind, dict(own_ids)
        state = self._classifier.state_dict()

        def set_one(name: str) -> None:
            self._current[name] = ""  # in case it fails
            with torch.inference_mode():  # a setting of each thread
                set_tensor(name, state[name])
            self._current[name] = ids[name]

        changed = [name for name in ids if self._current[name] != ids[name]]
        # numpy releases the interpreter's lock, so threads work in parallel.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for _ in pool.map(set_one, changed):
                pass  # raises what a thread raised
        return self._classifier


def _interpolates_on(device: torch.device) -> bool:
    """Return whether the device computes in float64 fast enough."""
    return device.type == "cuda"


def interpolate_tensors(
    theta_0: torch.Tensor, theta_1: torch.Tensor, alpha: float, *, out: torch.Tensor
) -> None:
    """Write (1 - alpha) * theta_0 + alpha * theta_1, with the bits of a merge.

    Infinite and NaN results may differ.

    Each product and the sum is rounded in float64 by a separate operation, so that no compiler
    fuses them; values that are equal in both inputs then stay equal (`merging/arithmetic.py`).

    Args:
        theta_0: float32, on any device that computes in float64.
        theta_1: Same shape, type and device.
        alpha: In [0, 1].
        out: Same shape, type and device.
    """
    if alpha in (0.0, 1.0):
        out.copy_(theta_1 if alpha else theta_0)
        return
    value = theta_0.double().mul_(1.0 - alpha)
    value.add_(theta_1.double().mul_(alpha))
    out.copy_(value)


def tensor_digests(path: Path, *, threads: int) -> Mapping[str, str]:
    """Return the hash of each tensor of a checkpoint, with its type and shape.

    Args:
        threads: Number of tensors that are hashed at a time.
    Raises:
        CheckpointError: The file cannot be read, or its tensors do not match its card.
    """
    with open_checkpoint(path, allow_shards=True) as reader:
        rows = _hash_tensors(reader, threads=threads)
        require_card_digest(reader, content_digest(rows, reader.digest_algorithm))
    return {name: f"{dtype} {shape} {data_hash}" for name, dtype, shape, data_hash in rows}


def _check_fisher(path: Path, *, threads: int) -> None:
    with open_fisher(path) as reader:
        digest = content_digest(_hash_tensors(reader, threads=threads), reader.digest_algorithm)
        require_own_digest(reader, fisher_info(reader), digest)


def _hash_tensors(
    reader: CheckpointReader, *, threads: int
) -> list[tuple[str, str, tuple[int, ...], str]]:
    with ThreadPoolExecutor(threads) as pool:
        hashes = pool.map(lambda name: _hash_tensor(reader, name), reader.tensors)
        return [
            (info.name, info.dtype, info.shape, data_hash)
            for info, data_hash in zip(reader.tensors.values(), hashes, strict=True)
        ]


def _hash_tensor(reader: CheckpointReader, name: str) -> str:
    data_hash = new_hash(reader.digest_algorithm)
    n_bytes = reader.tensors[name].nbytes
    buffer = np.empty(min(n_bytes, _CHUNK_BYTES), np.uint8)
    for offset in range(0, n_bytes, _CHUNK_BYTES):
        part = buffer[: min(_CHUNK_BYTES, n_bytes - offset)].data
        reader.read_into(name, part, offset)
        data_hash.update(part)
    return data_hash.hexdigest()

"""The classifiers of an evaluation, with few weight sets in memory at a time.

A pair with alphas needs three weight sets in memory, whatever the number of alphas. Of other
checkpoints the first few stay loaded; the rest are read from their files again for each chunk of
images, which costs far less than evaluating a chunk. Interpolated weights have the bits that
`wiseft merge` writes.

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
from wiseft_cli.evaluation.weight_sets import NamedCheckpoint, WeightSet
from wiseft_cli.merging.arithmetic import interpolate_arrays
from wiseft_cli.model.classifier import ImageClassifier, load_classifier

MAX_LOADED = 3
"""Checkpoints in memory at a time, as many weight sets as a pair with alphas needs."""

_CHUNK_BYTES = 1 << 20

Pair = tuple[np.ndarray, np.ndarray]


class ClassifierPool:
    """Provides the classifier of each weight set, and loads it at its first use.

    Args:
        weight_sets: All weight sets that will be used.
        device: Where the classifiers run.
    Raises:
        CheckpointError: A file cannot be read, or its tensors do not match its card.
    """

    def __init__(self, weight_sets: Iterable[WeightSet], device: torch.device) -> None:
        self._device = device
        parts = [part for weights in weight_sets for part in weights.parts]
        checkpoints = {item.path: item for part in parts for item in part.checkpoints}
        self._digests: Mapping[Path, Mapping[str, str]] = {
            path: tensor_digests(path, threads=torch.get_num_threads()) for path in checkpoints
        }
        self._pairs = dict.fromkeys(part.paths for part in parts if part.alpha is not None)
        in_pairs = {path for pair in self._pairs for path in pair}
        alone = [path for path in checkpoints if path not in in_pairs]
        self._kept = frozenset(alone if len(alone) <= MAX_LOADED else alone[: MAX_LOADED - 1])
        self._loaded: dict[Path, ImageClassifier] = {}
        self._interpolated: dict[tuple[Path, ...], InterpolatedClassifier] = {}
        self._reloaded = _ReloadedClassifier(self._digests, device)
        self.changes_weights = bool(self._pairs) or len(alone) > MAX_LOADED
        """Whether weights are set again for each chunk of images."""

    def encoder_key(self, part: WeightSet) -> Hashable:
        """Return a key that two weight sets share only if their image encoders are equal.

        Args:
            part: A checkpoint, or a point between two; not an ensemble.
        """
        encoders = [self._encoder_digest(checkpoint) for checkpoint in part.checkpoints]
        if part.alpha is None or encoders[0] == encoders[-1]:
            return encoders[0]
        if part.alpha.value == 1.0:
            return encoders[1]
        return (*encoders, part.alpha.value)

    def _encoder_digest(self, checkpoint: NamedCheckpoint) -> str:
        tensors = self._digests[checkpoint.path]
        encoder = {name: value for name, value in tensors.items() if name.startswith("visual.")}
        return canonical_json([checkpoint.model_config, encoder])

    def classifier(self, part: WeightSet) -> ImageClassifier:
        """Return the classifier with these weights, valid until the next call.

        Args:
            part: A checkpoint, or a point between two; not an ensemble.
        """
        if part.alpha is not None:
            return self._interpolated_of(part.paths).at(part.alpha.value)
        (path,) = part.paths
        for pair in self._pairs:
            if path in pair:
                return self._interpolated_of(pair).unmerged(pair.index(path))
        if path not in self._kept:
            return self._reloaded.with_weights_of(part.checkpoints[0])
        if path not in self._loaded:
            self._loaded[path], _ = load_classifier(path, device=self._device)
        return self._loaded[path]

    def _interpolated_of(self, pair: tuple[Path, ...]) -> InterpolatedClassifier:
        if pair not in self._interpolated:
            theta_0, theta_1 = pair
            digests = (self._digests[theta_0], self._digests[theta_1])
            self._interpolated[pair] = InterpolatedClassifier(
                theta_0, theta_1, digests, device=self._device
            )
        return self._interpolated[pair]


class InterpolatedClassifier:
    """A classifier that takes the weights at any point between two checkpoints.

    Both checkpoints stay in memory beside the classifier; tensors that are equal in both are set
    and kept once. On the CPU the kernel of `wiseft merge` computes the weights. On a GPU both
    checkpoints are kept there, and float32 tensors are computed there with the same roundings.

    Args:
        theta_0: Zero-shot checkpoint.
        theta_1: Fine-tuned checkpoint with the same tensors.
        digests: Digest of each tensor of both, by name.
        device: Where the classifier runs.
    Raises:
        CheckpointError: A file cannot be read, or is not the classifier that its card describes.
    """

    def __init__(
        self,
        theta_0: Path,
        theta_1: Path,
        digests: tuple[Mapping[str, str], Mapping[str, str]],
        *,
        device: torch.device,
    ) -> None:
        self._classifier, _ = load_classifier(theta_0, device=device)
        self._state = self._classifier.state_dict()
        self._host: dict[str, Pair] = {}
        self._device: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        with open_checkpoint(theta_0) as reader_0, open_checkpoint(theta_1) as reader_1:
            for name in reader_0.tensors:
                if digests[0][name] == digests[1][name]:
                    continue
                # As stored, not widened: a merge rounds to the stored type.
                pair = (reader_0.read_array(name), reader_1.read_array(name))
                if _interpolates_on(device) and pair[0].dtype == np.float32:
                    self._device[name] = (
                        torch.from_numpy(pair[0]).to(device),
                        torch.from_numpy(pair[1]).to(device),
                    )
                else:
                    self._host[name] = pair
        self._current: tuple[str, float] | None = None

    def at(self, alpha: float) -> ImageClassifier:
        """Return the classifier with the weights at `alpha`; the next call changes them."""
        if self._current != ("merge", alpha):
            self._current = None
            for name, on_device in self._device.items():
                interpolate_tensors(*on_device, alpha, out=self._state[name])
            self._set_from_host(lambda pair: interpolate_arrays(*pair, alpha))
            self._current = ("merge", alpha)
        return self._classifier

    def unmerged(self, index: int) -> ImageClassifier:
        """Return the classifier with the weights of one checkpoint, its integers included.

        Args:
            index: 0 for theta_0, 1 for theta_1.
        """
        if self._current != ("unmerged", index):
            self._current = None
            for name, on_device in self._device.items():
                self._state[name].copy_(on_device[index])
            self._set_from_host(lambda pair: pair[index])
            self._current = ("unmerged", index)
        return self._classifier

    def _set_from_host(self, value: Callable[[Pair], np.ndarray]) -> None:
        def compute(name: str) -> tuple[str, np.ndarray]:
            return name, _as_loaded(value(self._host[name]))

        # numpy releases the interpreter's lock, so threads work in parallel.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for name, values in pool.map(compute, self._host):
                self._state[name].copy_(torch.from_numpy(values))


def _interpolates_on(device: torch.device) -> bool:
    """Return whether the device computes in float64 fast enough."""
    return device.type == "cuda"


def _as_loaded(values: np.ndarray) -> np.ndarray:
    """Return an array as classifiers are loaded: float32 for every floating type."""
    return values if values.dtype.kind in "iub" else values.astype(np.float32, copy=False)


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


class _ReloadedClassifier:
    """One classifier that takes the weights of one file after another.

    Only tensors that differ from the current ones are read. A model of another architecture or
    number of classes is built anew.
    """

    def __init__(self, digests: Mapping[Path, Mapping[str, str]], device: torch.device) -> None:
        self._digests = digests
        self._device = device
        self._shape: tuple[Any, ...] | None = None
        self._current: dict[str, str] = {}
        self._classifier: ImageClassifier | None = None

    def with_weights_of(self, checkpoint: NamedCheckpoint) -> ImageClassifier:
        digests = self._digests[checkpoint.path]
        shape = (
            canonical_json(checkpoint.model_config),
            len(checkpoint.card.classes),
            digests.keys(),
        )
        if self._classifier is None or self._shape != shape:
            self._classifier = None  # frees its memory before the next one is loaded
            self._classifier, _ = load_classifier(checkpoint.path, device=self._device)
            self._shape, self._current = shape, dict(digests)
            return self._classifier
        state = self._classifier.state_dict()
        with open_checkpoint(checkpoint.path) as reader:
            if any(info.shape != state[name].shape for name, info in reader.tensors.items()):
                load_classifier(checkpoint.path)  # raises, and names the tensors
            for name, digest in digests.items():
                if self._current[name] != digest:
                    self._current[name] = ""  # in case reading fails
                    state[name].copy_(torch.from_numpy(_as_loaded(reader.read_array(name))))
                    self._current[name] = digest
        return self._classifier


def tensor_digests(path: Path, *, threads: int) -> Mapping[str, str]:
    """Return the hash of each tensor of a checkpoint, with its type and shape.

    Args:
        threads: Number of tensors that are hashed at a time.
    Raises:
        CheckpointError: The file cannot be read, or its tensors do not match its card.
    """
    with open_checkpoint(path) as reader, ThreadPoolExecutor(threads) as pool:
        hashes = pool.map(lambda name: _hash_tensor(reader, name), reader.tensors)
        rows = [
            (info.name, info.dtype, info.shape, data_hash)
            for info, data_hash in zip(reader.tensors.values(), hashes, strict=True)
        ]
        require_card_digest(reader, content_digest(rows, reader.digest_algorithm))
    return {name: f"{dtype} {shape} {data_hash}" for name, dtype, shape, data_hash in rows}


def _hash_tensor(reader: CheckpointReader, name: str) -> str:
    data_hash = new_hash(reader.digest_algorithm)
    n_bytes = reader.tensors[name].nbytes
    buffer = np.empty(min(n_bytes, _CHUNK_BYTES), np.uint8)
    for offset in range(0, n_bytes, _CHUNK_BYTES):
        part = buffer[: min(_CHUNK_BYTES, n_bytes - offset)].data
        reader.read_into(name, part, offset)
        data_hash.update(part)
    return data_hash.hexdigest()

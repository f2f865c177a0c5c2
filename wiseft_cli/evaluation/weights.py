"""The classifiers of an evaluation, with a bounded number of weight sets in memory.

A pair with alphas takes three weight sets, whatever the number of alphas. Of checkpoints as they
are the first few stay loaded; the others are read from their files into one more, again for each
chunk of images, where a chunk costs far more than reading. Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.evaluation.identity import tensor_digests
from wiseft_cli.evaluation.interpolated import InterpolatedClassifier, as_loaded
from wiseft_cli.evaluation.weight_sets import NamedCheckpoint, WeightSet
from wiseft_cli.model.classifier import ImageClassifier, load_classifier

MAX_LOADED = 3
"""Checkpoints as they are that are in memory at a time, as many as a pair with alphas takes."""


class WeightBank:
    """Gives the classifier of each weight set, loading it when first asked for.

    Args:
        weight_sets: All that will be asked for.
        device: Where the classifiers run.
    Raises:
        CheckpointError: A file cannot be read, or its tensors are not those of its card.
    """

    def __init__(self, weight_sets: Iterable[WeightSet], device: torch.device) -> None:
        self._device = device
        parts = [part for weights in weight_sets for part in weights.parts]
        checkpoints = {item.path: item for part in parts for item in part.checkpoints}
        self._digests: Mapping[Path, Mapping[str, str]] = {
            path: tensor_digests(path, threads=torch.get_num_threads()) for path in checkpoints
        }
        pairs = {_paths(part): part.checkpoints for part in parts if part.alpha is not None}
        self._pairs = dict.fromkeys(pairs)
        in_pairs = {path for paths in pairs for path in paths}
        alone = [path for path in checkpoints if path not in in_pairs]
        self._kept = frozenset(alone if len(alone) <= MAX_LOADED else alone[: MAX_LOADED - 1])
        self._loaded: dict[Path, ImageClassifier] = {}
        self._interpolated: dict[tuple[Path, ...], InterpolatedClassifier] = {}
        self._reloaded = _ReloadedClassifier(self._digests, device)
        self.changes_weights = bool(pairs) or len(alone) > MAX_LOADED

    def encoder_key(self, part: WeightSet) -> Hashable:
        """Return what is equal for two weight sets only if their image encoders are the same.

        Args:
            part: A checkpoint as it is, or a point between two.
        """
        encoders = [self._encoder(checkpoint) for checkpoint in part.checkpoints]
        if part.alpha is None or encoders[0] == encoders[-1]:
            return encoders[0]
        if part.alpha.value == 1.0:
            return encoders[1]
        return (*encoders, part.alpha.value)

    def _encoder(self, checkpoint: NamedCheckpoint) -> str:
        tensors = self._digests[checkpoint.path]
        encoder = {name: value for name, value in tensors.items() if name.startswith("visual.")}
        return canonical_json([checkpoint.model_config, encoder])

    def classifier(self, part: WeightSet) -> ImageClassifier:
        """Return the classifier with these weights, valid until another weight set is asked for.

        Args:
            part: A checkpoint as it is, or a point between two.
        """
        paths = _paths(part)
        if part.alpha is not None:
            return self._pair(paths).at(part.alpha.value)
        (path,) = paths
        for pair in self._pairs:
            if path in pair:
                return self._pair(pair).own(pair.index(path))
        if path not in self._kept:
            return self._reloaded.with_weights_of(part.checkpoints[0])
        if path not in self._loaded:
            self._loaded[path], _ = load_classifier(path, device=self._device)
        return self._loaded[path]

    def _pair(self, paths: tuple[Path, ...]) -> InterpolatedClassifier:
        if paths not in self._interpolated:
            theta_0, theta_1 = paths
            digests = (self._digests[theta_0], self._digests[theta_1])
            self._interpolated[paths] = InterpolatedClassifier(
                theta_0, theta_1, digests, device=self._device
            )
        return self._interpolated[paths]


def _paths(part: WeightSet) -> tuple[Path, ...]:
    return tuple(checkpoint.path for checkpoint in part.checkpoints)


class _ReloadedClassifier:
    """One classifier that takes the weights of one file after another.

    Only tensors that differ from those it holds are read. A model of another architecture or
    number of classes is built anew.
    """

    def __init__(self, digests: Mapping[Path, Mapping[str, str]], device: torch.device) -> None:
        self._digests = digests
        self._device = device
        self._shape: tuple[Any, ...] | None = None
        self._held: dict[str, str] = {}
        self._classifier: ImageClassifier | None = None

    def with_weights_of(self, checkpoint: NamedCheckpoint) -> ImageClassifier:
        digests = self._digests[checkpoint.path]
        shape = (canonical_json(checkpoint.model_config), len(checkpoint.card.classes))
        if self._classifier is None or self._shape != shape or digests.keys() != self._held.keys():
            self._classifier = None  # its memory is free before the next one takes any
            self._classifier, _ = load_classifier(checkpoint.path, device=self._device)
            self._shape, self._held = shape, dict(digests)
            return self._classifier
        state = self._classifier.state_dict()
        with open_checkpoint(checkpoint.path) as reader:
            if any(info.shape != state[name].shape for name, info in reader.tensors.items()):
                load_classifier(checkpoint.path)  # tells what does not fit the card
            for name, digest in digests.items():
                if self._held[name] != digest:
                    self._held[name] = ""  # should reading fail half-way
                    state[name].copy_(torch.from_numpy(as_loaded(reader.read_array(name))))
                    self._held[name] = digest
        return self._classifier

"""The classifiers of an evaluation: each checkpoint's own, and any point between two in memory.

Interpolated weights are those that `wiseft merge` writes, made by the same arithmetic
(`merging/interpolate.py`); nothing is written here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.evaluation.plan import WeightSet
from wiseft_cli.merging.interpolate import interpolate_arrays
from wiseft_cli.model.classifier import ImageClassifier, load_classifier


class LoadedWeights:
    """Loads classifiers when they are first asked for, and keeps them.

    A checkpoint as it is keeps a classifier of its own. A pair keeps both checkpoints' tensors
    and one classifier, whatever the number of alphas: three weight sets.

    Args:
        device: Where the classifiers run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._single: dict[Path, ImageClassifier] = {}
        self._pairs: dict[tuple[Path, ...], InterpolatedClassifier] = {}

    def classifier(self, weights: WeightSet) -> ImageClassifier:
        """Return the classifier with these weights, valid until another alpha is asked for."""
        paths = tuple(checkpoint.path for checkpoint in weights.checkpoints)
        if weights.alpha is None:
            if paths[0] not in self._single:
                self._single[paths[0]], _ = load_classifier(paths[0], device=self._device)
            return self._single[paths[0]]
        if paths not in self._pairs:
            self._pairs[paths] = InterpolatedClassifier(*paths, device=self._device)
        return self._pairs[paths].at(weights.alpha.value)


class InterpolatedClassifier:
    """One classifier that takes any weights between two checkpoints.

    Args:
        theta_0: Zero-shot checkpoint.
        theta_1: Fine-tuned checkpoint, with the same tensors (`plan_weight_sets` saw to it).
        device: Where the classifier runs.
    Raises:
        CheckpointError: A file cannot be read, or is not the classifier its card describes.
    """

    def __init__(self, theta_0: Path, theta_1: Path, *, device: torch.device) -> None:
        with open_checkpoint(theta_0) as reader_0, open_checkpoint(theta_1) as reader_1:
            # As stored, not widened: a merge rounds to the stored type.
            self._arrays = {
                name: (reader_0.read_array(name), reader_1.read_array(name))
                for name in reader_0.tensors
            }
        self._classifier, _ = load_classifier(theta_0, device=device)
        self._alpha: float | None = None

    def at(self, alpha: float) -> ImageClassifier:
        """Return the classifier with the weights at `alpha`; the next call changes them."""
        if alpha != self._alpha:
            self._alpha = None
            state = self._classifier.state_dict()
            # numpy works outside the interpreter's lock, so that threads share the tensors out.
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                for name, values in pool.map(lambda name: self._value(name, alpha), state):
                    state[name].copy_(torch.from_numpy(values))
            self._alpha = alpha
        return self._classifier

    def _value(self, name: str, alpha: float) -> tuple[str, np.ndarray]:
        """Return the tensor that a merged checkpoint would be loaded with."""
        merged = interpolate_arrays(*self._arrays[name], alpha)
        is_narrow_float = merged.dtype.kind in "fV" and merged.dtype != np.float32
        return name, merged.astype(np.float32) if is_narrow_float else merged

"""One classifier that takes any weights between two checkpoints, in memory.

The weights are those that `wiseft merge` writes, bit for bit. On the CPU the merge's own kernel
makes them (`merging/arithmetic.py`); on a GPU both checkpoints stay there, and float32 tensors
are made there by the same three roundings in float64 and one to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.merging.arithmetic import interpolate_arrays
from wiseft_cli.model.classifier import ImageClassifier, load_classifier

Pair = tuple[np.ndarray, np.ndarray]


class InterpolatedClassifier:
    """A classifier with the tensors of two checkpoints beside it: three weight sets.

    Tensors that are equal in both are set once and kept once.

    Args:
        theta_0: Zero-shot checkpoint.
        theta_1: Fine-tuned checkpoint, with the same tensors (`plan_weight_sets` saw to it).
        digests: For both, what tells the bytes of a tensor apart, by name.
        device: Where the classifier runs.
    Raises:
        CheckpointError: A file cannot be read, or is not the classifier its card describes.
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
                if _interpolates_there(device) and pair[0].dtype == np.float32:
                    self._device[name] = _moved(pair, device)
                else:
                    self._host[name] = pair
        self._held: tuple[str, float] | None = None

    def at(self, alpha: float) -> ImageClassifier:
        """Return the classifier with the weights at `alpha`; the next call changes them."""
        if self._held != ("merge", alpha):
            self._held = None
            for name, pair_on_device in self._device.items():
                interpolate_tensors(*pair_on_device, alpha, out=self._state[name])
            self._set_from_host(lambda pair: interpolate_arrays(*pair, alpha))
            self._held = ("merge", alpha)
        return self._classifier

    def own(self, index: int) -> ImageClassifier:
        """Return the classifier with the weights of one checkpoint, its integers included.

        Args:
            index: 0 for theta_0, 1 for theta_1.
        """
        if self._held != ("own", index):
            self._held = None
            for name, pair_on_device in self._device.items():
                self._state[name].copy_(pair_on_device[index])
            self._set_from_host(lambda pair: pair[index])
            self._held = ("own", index)
        return self._classifier

    def _set_from_host(self, value: Callable[[Pair], np.ndarray]) -> None:
        def computed(name: str) -> tuple[str, np.ndarray]:
            return name, as_loaded(value(self._host[name]))

        # numpy works outside the interpreter's lock, so that threads share the tensors out.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for name, values in pool.map(computed, self._host):
                self._state[name].copy_(torch.from_numpy(values))


def _interpolates_there(device: torch.device) -> bool:
    """Whether weights are made where the classifier runs; elsewhere float64 is slow or missing."""
    return device.type == "cuda"


def _moved(pair: Pair, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(pair[0]).to(device), torch.from_numpy(pair[1]).to(device)


def as_loaded(values: np.ndarray) -> np.ndarray:
    """Return the array a classifier is loaded with: float32 for every floating type."""
    return values if values.dtype.kind in "iub" else values.astype(np.float32, copy=False)


def interpolate_tensors(
    theta_0: torch.Tensor, theta_1: torch.Tensor, alpha: float, *, out: torch.Tensor
) -> None:
    """Write (1 - alpha) * theta_0 + alpha * theta_1, the finite numbers that a merge writes.

    Each product and the sum is rounded in float64 by an operation of its own, so that no compiler
    fuses them; what is equal in both then comes out as it is (`merging/arithmetic.py`).

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

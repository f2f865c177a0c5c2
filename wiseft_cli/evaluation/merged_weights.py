"""The weights of merges in memory, computed by the kernel of `wiseft merge`.

Checkpoints and Fisher files are mapped into memory, not copied: the system reads their pages as
they are needed and may drop them again, so that many inputs need no memory of their own. The
values have the bits of the file that `wiseft merge` or `wiseft soup` writes. torch is not used.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.format import TensorInfo, numpy_dtype, read_header, safetensors_dtype
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.shards import find_checkpoint_files
from wiseft_cli.evaluation.weight_sets import WeightSet
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.arithmetic import INTERPOLATED_DTYPES
from wiseft_cli.merging.inputs import choose_copied
from wiseft_cli.merging.model_merge import ModelMerge, TensorMerge

Array = npt.NDArray[Any]


class MappedFile:
    """The tensors of a checkpoint as read-only arrays on a mapping of its file, or its shards.

    Raises:
        NotACheckpointError: A file is not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._tensors: dict[str, TensorInfo] = {}
        self._data: dict[str, mmap.mmap] = {}
        for part in find_checkpoint_files(path).files:
            tensors = read_header(part).tensors
            with open(part, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._tensors |= tensors
            self._data |= dict.fromkeys(tensors, data)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> Array:
        """Return a tensor in its stored dtype, without a copy."""
        info = self._tensors[name]
        dtype = numpy_dtype(info.dtype)
        if not info.nbytes:
            return np.empty(info.shape, dtype)
        count = info.nbytes // dtype.itemsize
        return np.frombuffer(self._data[name], dtype, count, info.start).reshape(info.shape)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by name, sorted by name."""
        return {name: self._tensors[name].shape for name in sorted(self._tensors)}


class MergedWeights:
    """The merge of some checkpoints by one method, at any alpha.

    Args:
        weights: The merge; its alpha is not used.
        open_file: Returns the mapping of a file.
        threads: Number of tensors that are read at a time.
    Raises:
        CheckpointError: A file cannot be read.
        UsageError: A pattern of `--layer-alpha` is not used.
    """

    def __init__(
        self, weights: WeightSet, open_file: Callable[[Path], MappedFile], *, threads: int
    ) -> None:
        settings = weights.settings
        self._files = [open_file(path) for path in weights.paths]
        self._fishers = [open_file(fisher.path) for fisher in weights.fishers]
        first = self._files[0]
        sizes = {
            name: array.size
            for name, array in ((name, first.array(name)) for name in first.shapes)
            if safetensors_dtype(array.dtype) in INTERPOLATED_DTYPES
        }
        has_base = settings.spec.has_base
        self._model = ModelMerge(settings, len(self._files) - has_base, sizes)
        with ExitStack() as stack:
            readers = [
                stack.enter_context(open_checkpoint(path, allow_shards=True))
                for path in weights.paths
            ]
            self._copied = choose_copied(readers, has_base=has_base)
        self._prepared: dict[str, TensorMerge | None] = {}
        self._read_whole_model(sizes, threads)

    def _read_whole_model(self, names: Iterable[str], threads: int) -> None:
        """Pass all tensors to the statistic over the whole model, if the method needs one."""
        reduction = self._model.model_reduction
        if reduction is None:
            return
        with ThreadPoolExecutor(threads) as pool:
            is_done = False
            while not is_done:
                for _ in pool.map(lambda name: reduction.observe(self._flat(name)), names):
                    pass  # raises what a thread raised
                is_done = reduction.finish_pass()

    def _flat(self, name: str) -> list[Array]:
        return [np.ravel(theta) for theta in self._thetas(name)]

    def _thetas(self, name: str) -> Sequence[Array]:
        return [file.array(name) for file in self._files]

    def value(self, name: str, alpha: Alpha | None) -> Array:
        """Return a merged tensor in its stored dtype; different tensors may use threads.

        Args:
            alpha: None if the method has no alpha.
        """
        thetas = self._thetas(name)
        if name not in self._prepared:
            self._prepared[name] = self._model.prepare(name, thetas)
        tensor = self._prepared[name]
        if tensor is None:
            return thetas[self._copied.get(name, -1)]
        fishers = [file.array(name) for file in self._fishers if name in file]
        return self._model.merge_arrays(tensor, thetas, alpha, fishers)

    def pair(self, name: str) -> tuple[Array, Array] | None:
        """Return theta_0 and theta_1 of a tensor if its merge is (1 - a) * theta_0 + a * theta_1.

        Returns:
            None for another method, for integers, and for a type that is not float32.
        """
        thetas = self._thetas(name)
        if not self._model.is_interpolation or thetas[0].dtype != np.float32:
            return None
        return thetas[0], thetas[1]

    def alpha_of(self, name: str, alpha: Alpha | None) -> float:
        """Return the alpha of one tensor, which patterns and depths can change."""
        return self._model.alpha_of(name, alpha)

"""A LoRA adapter of PEFT as a checkpoint: W = W_0 + scale * B A, computed row by row when read.

Hu et al., LoRA, arXiv:2106.09685; scale = lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA
(Kalajdzievski, arXiv:2312.03732). The result equals the model that PEFT's `merge_and_unload`
gives, which is theta_1 of a merge. As in PEFT, sums are in float32 (float64 for a float64 W_0).

Rows are computed in blocks that begin at fixed rows, so that the bytes depend neither on the
reads nor on the number of threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.format import TensorInfo, numpy_dtype
from wiseft_cli.checkpoint.reader import CheckpointReader, open_checkpoint, read_content
from wiseft_cli.checkpoint.shards import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from wiseft_cli.convert.lora_config import AdapterConfig, read_adapter_config
from wiseft_cli.convert.torch_files import open_torch_weights
from wiseft_cli.errors import CheckpointError, IncompatibleCheckpointsError, brief, counted
from wiseft_cli.merging.arithmetic import INTERPOLATED_DTYPES

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?:(.*)\.)?lora_(?:(embedding)_)?([AB])(?:\.default)?(?:\.weight)?")
_SAVED = re.compile(r"(.*\.)?(?:original_module|modules_to_save)(?:\.default)?\.")
_TWICE = "whose update PEFT 0.21 adds twice; merge it with the PEFT that trained it"
_ROWS = 64
"""Rows of a weight that are computed at once."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Update:
    """scale * left @ right, added to a weight of which each row is flattened.

    Attributes:
        left: Name of the factor with a row per row of the weight, or a column if transposed.
        right: Name of the other factor.
    """

    left: str
    right: str
    is_transposed: bool
    scale: float


@dataclass(frozen=True)
class _Plan:
    """What an adapter changes in a base model.

    Attributes:
        updates: By weight.
        saved: For each tensor that is replaced, its name in the adapter.
        faults: Why it does not fit.
    """

    updates: dict[str, _Update] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class AdapterReader(CheckpointReader):
    """A base model with an adapter merged into it; closing it closes the adapter only."""

    def __init__(
        self, path: Path, base: CheckpointReader, adapter: CheckpointReader, plan: _Plan
    ) -> None:
        self.path, self.files = path, (*adapter.files, path / ADAPTER_CONFIG)
        self.base, self._adapter = base, adapter
        self._updates, self._saved = plan.updates, plan.saved
        self.metadata = {}
        extra = {new: adapter.tensors[old] for new, old in plan.saved.items()}
        self.tensors = {
            name: TensorInfo(name, info.dtype, info.shape, 0, info.nbytes)
            for name, info in {**base.tensors, **extra}.items()
        }
        self._cache = threading.local()

    def __exit__(self, *_: object) -> None:
        self._adapter.__exit__()

    @cached_property
    def card(self) -> Card | None:
        """None: an adapter has none."""
        return None

    @cached_property
    def _digest(self) -> str:
        return read_content(self._adapter).digest

    @property
    def changes(self) -> Mapping[str, Any]:
        """The content digest of the adapter's own tensors."""
        return {"adapter": self._digest}

    @property
    def partial(self) -> tuple[str, str] | None:
        """None: the adapter is whole."""
        return None

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the weights that differ from the base model's, sorted."""
        return tuple(sorted({*self._updates, *self._saved}))

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill a buffer with bytes of a tensor; see `CheckpointReader.read_into`."""
        if name in self._saved:
            self._adapter.read_into(self._saved[name], buffer, offset)
            return
        if name not in self._updates:
            self.base.read_into(name, buffer, offset)
            return
        info = self.tensors[name]
        block_bytes = _ROWS * (info.nbytes // info.shape[0])
        while buffer.nbytes:
            index, begin = divmod(offset, block_bytes)
            size = min(block_bytes, info.nbytes - index * block_bytes)
            count = min(size - begin, buffer.nbytes)
            if count == size:
                self._compute(name, index, buffer[:count])
            else:
                buffer[:count] = self._block(name, index, size)[begin : begin + count].data
            buffer, offset = buffer[count:], offset + count

    def _block(self, name: str, index: int, size: int) -> Array:
        """Return the bytes of a block that is read in parts; each thread keeps its last one."""
        cache = self._cache
        if getattr(cache, "block_of", None) != (name, index):
            cache.block = np.empty(size, np.uint8)
            self._compute(name, index, cache.block.data)
            cache.block_of = name, index
        block: Array = cache.block
        return block

    def _compute(self, name: str, index: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a block of rows."""
        left, right = self._factors(name)
        info, first = self.tensors[name], index * _ROWS
        dtype, row = numpy_dtype(info.dtype), prod(info.shape[1:])
        self.base.read_into(name, buffer, first * row * dtype.itemsize)
        values = np.frombuffer(buffer, dtype).reshape(-1, row)
        delta = left[first : first + _ROWS] @ right
        if delta.dtype == dtype:
            np.add(values, delta, out=values)
        else:
            np.copyto(values, (values.astype(delta.dtype) + delta).astype(dtype))

    def _factors(self, name: str) -> tuple[Array, Array]:
        """Return B and scale * A of a weight, or their transposes; each thread keeps the last."""
        cache = self._cache
        if getattr(cache, "name", None) != name:
            update = self._updates[name]
            wide = np.float64 if self.tensors[name].dtype == "F64" else np.float32
            cache.factors = tuple(
                self._factor(factor, is_transposed=update.is_transposed).astype(wide)
                for factor in (update.left, update.right)
            )
            cache.factors[1][:] *= wide(update.scale)
            cache.name = name
        factors: tuple[Array, Array] = cache.factors
        return factors

    def _factor(self, name: str, *, is_transposed: bool) -> Array:
        array = self._adapter.read_array(name)
        matrix = array.reshape(len(array), -1)
        return np.ascontiguousarray(matrix.T if is_transposed else matrix)


def open_adapter(path: Path, *bases: CheckpointReader) -> AdapterReader:
    """Open a PEFT adapter as the model that it makes of a base model.

    Args:
        path: The adapter's folder, or its weights file.
        bases: The model that it was trained on, or views of it with other tensor names. The
            first one in which the adapter finds all its modules is taken.
    Raises:
        CheckpointError: The adapter is damaged or not a plain LoRA.
        IncompatibleCheckpointsError: It belongs to another model.
    """
    folder = path if path.is_dir() else path.parent
    config = read_adapter_config(folder / ADAPTER_CONFIG)
    with ExitStack() as stack:
        adapter = stack.enter_context(open_adapter_weights(folder))
        plans = [_plan(adapter, config, base) for base in bases]
        plan, base = min(zip(plans, bases, strict=True), key=lambda pair: len(pair[0].faults))
        if plan.faults:
            raise _other_base(folder, config, base, plan)
        if not plan.updates and not plan.saved:
            raise CheckpointError(f"{adapter.path}: has no weights of an adapter")
        stack.pop_all()
    return AdapterReader(folder, base, adapter, plan)


def _other_base(
    folder: Path, config: AdapterConfig, base: CheckpointReader, plan: _Plan
) -> IncompatibleCheckpointsError:
    stated = f", {brief(config.base)!r}" if config.base else ""
    return IncompatibleCheckpointsError(
        f"{folder}: the adapter does not fit {base.path}, at {counted(len(plan.faults), 'place')}",
        faults=plan.faults,
        hint=f"give the model that the adapter was trained on{stated}",
    )


def open_adapter_weights(folder: Path) -> CheckpointReader:
    """Open the factors of an adapter, as they are stored.

    Raises:
        CheckpointError: The folder has none, or they are damaged.
    """
    found = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()]
    if not found:
        raise CheckpointError(
            f"{folder}: is an adapter without weights, expected {' or '.join(ADAPTER_WEIGHTS)}"
        )
    if found[0].suffix == ".bin":
        return open_torch_weights(found[0])[0]
    return open_checkpoint(found[0])


def _plan(adapter: CheckpointReader, config: AdapterConfig, base: CheckpointReader) -> _Plan:
    plan = _Plan()
    factors: dict[str, dict[str, str]] = {}
    for name in adapter.tensors:
        plain = name.removeprefix(_PREFIX)
        if ".base_layer.out_proj." in plain:
            plan.faults.append(
                f"{name}: changes the out_proj of an nn.MultiheadAttention, {_TWICE}"
            )
        elif match := _FACTOR.fullmatch(plain):
            module = (match[1] or "").replace(".base_layer", "")
            factors.setdefault(module, {})[f"{match[2] or ''}{match[3]}"] = name
        elif "lora_" in plain:
            plan.faults.append(f"{name}: not a factor of a plain LoRA")
        else:
            target = _SAVED.sub(r"\1", plain)
            plan.saved[target] = name
            shape = adapter.tensors[name].shape
            if target not in base.tensors and not config.saves(target):
                plan.faults.append(f"{name}: the base model has no {target}")
            elif target in base.tensors and base.tensors[target].shape != shape:
                plan.faults.append(f"{name}: shape {shape}, expected {base.tensors[target].shape}")
    for module, named in sorted(factors.items()):
        planned = _plan_module(module, named, adapter, config, base)
        if isinstance(planned, str):
            plan.faults.append(planned)
        else:
            plan.updates[planned[0]] = planned[1]
    return plan


def _plan_module(
    module: str,
    named: Mapping[str, str],
    adapter: CheckpointReader,
    config: AdapterConfig,
    base: CheckpointReader,
) -> tuple[str, _Update] | str:
    """Return the weight that a module's factors change and how, or what is wrong."""
    is_embedding = "embeddingA" in named
    names = [named.get(f"embedding{at}" if is_embedding else at) for at in "AB"]
    if len(named) != 2 or None in names:
        return f"{module}: has only {', '.join(sorted(named.values()))}"
    name_a, name_b = map(str, names)
    candidates = [f"{module}.weight", f"{module}.in_proj_weight", module]
    weight = next((name for name in candidates if name in base.tensors), None)
    if weight is None:
        return f"{module}: the base model has no {candidates[0]}"
    info, a, b = base.tensors[weight], adapter.tensors[name_a], adapter.tensors[name_b]
    if info.dtype not in INTERPOLATED_DTYPES:
        return f"{weight}: has dtype {info.dtype} in the base model, expected floating point"
    if any(at.dtype not in ("F64", "F32", "F16", "BF16") for at in (a, b)):
        return f"{module}: the factors have dtypes {a.dtype} and {b.dtype}"
    shapes = info.shape, a.shape, b.shape
    is_matrix = len(info.shape) >= 2 and len(a.shape) >= 2 and len(b.shape) >= 2
    fits = [
        is_matrix and a.shape[1:] == info.shape[1:] and b.shape[0] == info.shape[0],
        is_matrix and len(info.shape) == 2 and (b.shape[0], a.shape[1]) == info.shape[::-1],
    ]
    if not is_matrix or prod(b.shape[1:]) != a.shape[0] or not any(fits):
        return f"{weight}: shape {shapes[0]} in the base model, factors {shapes[1]} and {shapes[2]}"
    is_transposed = is_embedding or (config.is_transposed if all(fits) else fits[1])
    scale = config.scale_of(module, a.shape[0], str(adapter.path))
    left, right = (name_a, name_b) if is_transposed else (name_b, name_a)
    return weight, _Update(left, right, is_transposed, scale)

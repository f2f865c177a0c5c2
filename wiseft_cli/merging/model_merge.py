"""The merge of a whole model by one method: what it knows of every tensor, and its arithmetic.

`stream.py` passes tensors in chunks; an evaluation passes whole arrays to `merge_arrays`. Both
get the same bits. Files are not known here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.format import safetensors_dtype
from wiseft_cli.errors import counted
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.arithmetic import BLOCK, INTERPOLATED_DTYPES, Interpolator, raw_bits
from wiseft_cli.merging.coefficients import (
    STRAIGHT_COSINE,
    model_stock_ratio,
    slerp_coefficients,
)
from wiseft_cli.merging.kernels import (
    OF_CHANGES,
    BlockInputs,
    Scratch,
    UpdateSettings,
    merge_block,
    merge_fisher_block,
)
from wiseft_cli.merging.layers import match_layer_alphas, relative_depths
from wiseft_cli.merging.reductions import LargestMagnitudes, Products, Reduction
from wiseft_cli.merging.settings import MergeSettings

Array = npt.NDArray[Any]

Outs = Sequence[tuple[Alpha | None, Array]]
"""For every output its alpha, None if the method has none, and the array to write."""

_MODEL_CAPACITY = 1 << 22
_TENSOR_CAPACITY = 1 << 19
"""Magnitudes that a search for the k-th largest one collects: 32 MiB once, 4 MiB per thread."""

_PREFIX_BYTES = 4096


class ModelMerge:
    """One merge of a model: settings applied to the tensors that are merged.

    If `model_reduction` is not None, all tensors must pass through it before the first one is
    merged. Then `tensor` gives the merge of each tensor, and one `BlockMerger` per thread
    computes its values.

    Args:
        settings: From `resolve_settings`.
        n_finetuned: Number of fine-tuned inputs; of a method without base, of all inputs.
        sizes: Number of elements of every tensor that is merged, by name.
    Raises:
        UsageError: A pattern of `--layer-alpha` is not used.
        CheckpointError: The method needs blocks, and no tensor is in one.
    """

    def __init__(self, settings: MergeSettings, n_finetuned: int, sizes: Mapping[str, int]) -> None:
        self.settings = settings
        self.n_finetuned = n_finetuned
        self._layer_alphas = match_layer_alphas(settings.layer_alphas, sizes)
        self._depths: Mapping[str, Fraction] = {}
        if settings.method == "lines":
            by_place = settings.options["outside_blocks"] == "ends"
            self._depths = relative_depths(sizes, by_place=by_place)
        self.model_reduction: LargestMagnitudes | None = None
        n_elements = sum(sizes.values())
        if self._trims and n_elements and settings.options["trim_scope"] == "model":
            self.model_reduction = self._search(n_elements, _MODEL_CAPACITY)
        self.ratios: dict[str, float] = {}
        """Of model-stock, t of every tensor before it is clamped."""
        self.straight: set[str] = set()
        """Of slerp, the tensors that are merged linearly."""

    @property
    def is_interpolation(self) -> bool:
        """Whether every tensor is (1 - a) * theta_0 + a * theta_1, with an a of its own."""
        return self.settings.method in ("linear", "lines") and self.n_finetuned == 1

    @property
    def _trims(self) -> bool:
        return self.settings.method == "ties" and Fraction(self.settings.options["density"]) < 1

    def _search(self, n_elements: int, capacity: int) -> LargestMagnitudes:
        density = Fraction(self.settings.options["density"])
        return LargestMagnitudes(self.n_finetuned, n_elements, density, capacity=capacity)

    def tensor_reduction(self, size: int) -> Reduction | None:
        """Return the statistic that is needed of a tensor with `size` elements, if any."""
        method = self.settings.method
        if not size:
            return None
        if method in ("slerp", "model-stock"):
            return Products(of_changes=method == "model-stock")
        if self._trims and self.settings.options["trim_scope"] == "tensor":
            return self._search(size, _TENSOR_CAPACITY)
        return None

    def tensor(self, name: str, reduction: Reduction | None = None) -> TensorMerge:
        """Return the merge of one tensor.

        Args:
            reduction: Its `tensor_reduction` after the last pass.
        """
        cosine, thresholds = 0.0, [0.0] * self.n_finetuned
        if isinstance(reduction, Products):
            cosine = self._read_products(name, reduction)
        search = self.model_reduction if reduction is None else reduction
        if isinstance(search, LargestMagnitudes):
            thresholds = search.thresholds
        return TensorMerge(self, name, cosine, thresholds)

    def _read_products(self, name: str, products: Products) -> float:
        """Return the cosine that the coefficients of a tensor depend on."""
        if self.settings.method == "slerp":
            cosine = products.cosine(0, 1)
            if abs(cosine) > STRAIGHT_COSINE or products.is_zero(0) or products.is_zero(1):
                self.straight.add(name)
            return cosine
        cosine = products.mean_cosine()
        self.ratios[name] = model_stock_ratio(self.n_finetuned, cosine)
        return cosine

    def alpha_of(self, name: str, alpha: Alpha | None) -> float:
        """Return the alpha of a tensor at an alpha of the merge; 1 for a method without alpha."""
        if alpha is None:
            return 1.0
        if name in self._layer_alphas:
            return self._layer_alphas[name].value
        if name not in self._depths:
            return alpha.value
        first = Fraction(self.settings.options["layer_alpha_from"])
        return float(first + (Fraction(alpha.text) - first) * self._depths[name])

    def coefficients(self, name: str, cosine: float, alpha: Alpha | None) -> tuple[float, float]:
        """Return p and q of v = p * theta_0 + q * U."""
        method, a = self.settings.method, self.alpha_of(name, alpha)
        if method == "soup":
            return 0.0, 1.0
        if method == "model-stock":
            t = max(0.0, min(1.0, self.ratios.get(name, 0.0)))
            return 1.0 - t, t
        if method in OF_CHANGES:
            return 1.0, a
        if method == "slerp" and name not in self.straight and a not in (0.0, 1.0):
            return slerp_coefficients(cosine, a)
        return 1.0 - a, a

    def notes(self) -> list[str]:
        """Return facts about the tensors for the user, one sentence each, after the merge."""
        notes = []
        if self.ratios:
            clamped = [name for name, t in sorted(self.ratios.items()) if not 0.0 <= t <= 1.0]
            used = sorted(max(0.0, min(1.0, t)) for t in self.ratios.values())
            notes.append(
                f"model-stock: t is {used[0]:.3g} to {used[-1]:.3g}, median {median(used):.3g}, "
                f"over {counted(len(used), 'tensor')}"
            )
            if clamped:
                notes.append(
                    f"model-stock: t was outside [0, 1] and is set to 0 or 1 for "
                    f"{counted(len(clamped), 'tensor')}, for example {clamped[0]}"
                )
        if self.straight:
            notes.append(
                f"slerp: {counted(len(self.straight), 'tensor')} merged linearly, because the "
                f"cosine is above {STRAIGHT_COSINE} in magnitude or one side is zero"
            )
        return notes

    def prepare(self, name: str, thetas: Sequence[Array]) -> TensorMerge | None:
        """Return the merge of whole arrays, for any number of alphas.

        Args:
            thetas: The tensor of every input, of one shape.
        Returns:
            None for integers and booleans, which are not merged.
        """
        if safetensors_dtype(thetas[0].dtype) not in INTERPOLATED_DTYPES:
            return None
        reduction = self.tensor_reduction(thetas[0].size)
        if reduction is not None:
            flat = [np.ravel(theta) for theta in thetas]
            reduction.observe(flat)
            while not reduction.finish_pass():
                reduction.observe(flat)
        return self.tensor(name, reduction)

    def merge_arrays(
        self,
        tensor: TensorMerge | None,
        thetas: Sequence[Array],
        alpha: Alpha | None,
        fishers: Sequence[Array] = (),
    ) -> Array:
        """Return the merge of whole arrays of one shape and dtype.

        Args:
            tensor: From `prepare`; None copies the last of `thetas`.
            alpha: None for a method without alpha.
            fishers: Fisher values of every input, for the method fisher.
        """
        out = np.array(thetas[-1], order="C")
        if tensor is not None:
            merger = BlockMerger(min(BLOCK, max(1, out.size)))
            flat, flat_fishers = ([np.ravel(array) for array in some] for some in (thetas, fishers))
            merger.merge(tensor, flat, [(alpha, out.reshape(-1))], fishers=flat_fishers)
        return out


class TensorMerge:
    """The merge of one tensor; its chunks are merged from first to last by one thread.

    Attributes:
        update: What its update depends on besides the values of a chunk.
    """

    def __init__(
        self, model: ModelMerge, name: str, cosine: float, thresholds: Sequence[float]
    ) -> None:
        settings = model.settings
        options = settings.options
        self.model, self.name, self._cosine = model, name, cosine
        self.weights = [weight.value for weight in settings.weights]
        self.update = UpdateSettings(
            name=name,
            thresholds=thresholds,
            drop=float(options.get("drop", 0)),
            seed=int(options.get("seed", 0)),
            elects=options.get("then") == "ties",
            floor=float(options.get("fisher_floor", 0)),
        )
        self._order = [list(range(model.n_finetuned))]
        if settings.spec.is_symmetric and self.weights:
            self._order = _split(self._order[0], self.weights.__getitem__)

    @property
    def keeps_equal(self) -> bool:
        """Whether p + q is 1, so that elements which are equal in all inputs are kept."""
        return self.model.settings.method != "slerp" or self.name in self.model.straight

    def alpha(self, alpha: Alpha | None) -> float:
        """Return the alpha of this tensor at an alpha of the merge."""
        return self.model.alpha_of(self.name, alpha)

    def coefficients(self, alpha: Alpha | None) -> tuple[float, float]:
        """Return p and q of v = p * theta_0 + q * U."""
        return self.model.coefficients(self.name, self._cosine, alpha)

    def order(self, finetuned: Sequence[Array], fishers: Sequence[Array]) -> list[int]:
        """Return the order in which the fine-tuned inputs of the next chunk are summed.

        It is that of their weights and then of their bytes from the tensor's first element on, so
        it does not depend on the order in which they are given. Inputs that are equal so far can
        change places without a change of any sum.
        """
        if self.model.settings.spec.is_symmetric and len(self._order) < len(finetuned) > 2:
            arrays = [(finetuned[i], *fishers[i : i + 1]) for i in range(len(finetuned))]
            by_bits = functools.cmp_to_key(_compare)
            key = [by_bits(arrays_i) for arrays_i in arrays].__getitem__
            self._order = [part for group in self._order for part in _split(group, key)]
        return [index for group in self._order for index in group]


def _split(group: Sequence[int], key: Callable[[int], Any]) -> list[list[int]]:
    """Sort the members of a group by a key, and separate those with different keys."""
    parts: list[list[int]] = []
    for index in sorted(group, key=key):
        if parts and key(parts[-1][0]) == key(index):
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


def _compare(first: Sequence[Array], second: Sequence[Array]) -> int:
    """Compare two inputs at their first difference, in dtype or in bits."""
    best = None
    for a, b in zip(first, second, strict=True):
        if a.dtype != b.dtype:
            return -1 if a.dtype.name < b.dtype.name else 1
        x, y = raw_bits(a), raw_bits(b)
        # Most inputs differ in their first elements.
        for n in (_PREFIX_BYTES // x.itemsize, len(x)):
            different = x[:n] != y[:n]
            if different.any():
                place = int(np.argmax(different))
                if best is None or place < best[0]:
                    best = place, -1 if x[place] < y[place] else 1
                break
    return best[1] if best else 0


class BlockMerger:
    """Computes the values of chunks; one per thread, because its memory is reused.

    Args:
        block: Elements per block of the interpolation of two inputs.
    """

    def __init__(self, block: int = BLOCK) -> None:
        self._interpolator = Interpolator(block)
        self._scratch = Scratch()

    def merge(
        self,
        tensor: TensorMerge,
        thetas: Sequence[Array],
        outs: Outs,
        *,
        begin: int = 0,
        fishers: Sequence[Array] = (),
    ) -> tuple[list[int], bool]:
        """Write the next chunk of a tensor at every alpha.

        Args:
            thetas: theta_0, unless the method has no base, and every theta_i; shape (n,), in
                interpolated dtypes.
            outs: Arrays of shape (n,), in an interpolated dtype.
            begin: Position of the chunk's first element in the tensor.
            fishers: Fisher values of every theta; empty if the tensor has none.
        Returns:
            For every output the number of elements that are not finite although those of all
            inputs are, and whether all elements of all inputs are known to be finite.
        """
        if tensor.model.is_interpolation or (
            tensor.model.settings.spec.takes_fisher and not fishers and len(thetas) == 2
        ):
            pairs = [(tensor.alpha(alpha), out) for alpha, out in outs]
            return self._interpolator.interpolate(thetas[0], thetas[1], pairs)
        n_base = int(tensor.model.settings.spec.has_base)
        base, finetuned = thetas[0] if n_base else None, thetas[n_base:]
        counts, copied = [0] * len(outs), set()
        for index, (alpha, out) in enumerate(outs):
            source = _copied(tensor, thetas, alpha)
            if source is not None and source.dtype == out.dtype:
                raw_bits(out)[:] = raw_bits(source)
                copied.add(index)
        rest = [(index, *out) for index, out in enumerate(outs) if index not in copied]
        order = tensor.order(finetuned, fishers[n_base:])
        is_finite = bool(rest)
        with np.errstate(all="ignore"):  # overflow rounds to infinity, and NaN is replaced
            for at in range(0, len(thetas[0]) if rest else 0, self._scratch.block):
                part = slice(at, at + self._scratch.block)
                inputs = BlockInputs(
                    base=None if base is None else base[part],
                    finetuned=[finetuned[i][part] for i in order],
                    weights=[tensor.weights[i] for i in order] if tensor.weights else None,
                    begin=begin + at,
                    indices=order,
                    fishers=[fishers[i][part] for i in (0, *(i + 1 for i in order))]
                    if fishers
                    else (),
                )
                found, is_known_finite = self._merge_block(
                    tensor, inputs, [(alpha, out[part]) for _, alpha, out in rest]
                )
                is_finite &= is_known_finite
                for (index, *_), count in zip(rest, found, strict=True):
                    counts[index] += count
        return counts, is_finite

    def _merge_block(
        self, tensor: TensorMerge, inputs: BlockInputs, outs: Outs
    ) -> tuple[list[int], bool]:
        restores_equal = _restores_equal(tensor, inputs, outs)
        method = tensor.model.settings.method
        if inputs.fishers:
            return merge_fisher_block(
                inputs,
                tensor.update,
                [(tensor.alpha(alpha), out) for alpha, out in outs],
                self._scratch,
                restores_equal=restores_equal,
            )
        return merge_block(
            # Of the method fisher, tensors without Fisher values are interpolated.
            "linear" if method == "fisher" else method,
            inputs,
            tensor.update,
            [(*tensor.coefficients(alpha), out) for alpha, out in outs],
            self._scratch,
            restores_equal=restores_equal,
            keeps_equal=tensor.keeps_equal,
        )


def _copied(tensor: TensorMerge, thetas: Sequence[Array], alpha: Alpha | None) -> Array | None:
    """Return the input that an output equals byte for byte, or None."""
    if not tensor.model.settings.spec.has_base:
        return None
    p, q = tensor.coefficients(alpha)
    if q == 0.0:
        return thetas[0]
    is_mean = tensor.model.settings.method not in OF_CHANGES
    return thetas[1] if is_mean and p == 0.0 and len(thetas) == 2 else None


def _restores_equal(tensor: TensorMerge, inputs: BlockInputs, outs: Outs) -> bool:
    """Return whether the value alone would not keep weights that all inputs share.

    theta_0 minus a change of 0 times alpha does, unless alpha is negative. A convex combination of
    equal weights is within a few units of float64 of them, so rounding to a narrower dtype of the
    inputs gives them back.
    """
    alphas = [tensor.alpha(alpha) for alpha, _ in outs]
    if tensor.model.settings.method in OF_CHANGES:
        return min(alphas) < 0.0
    dtypes = {theta.dtype for theta in inputs.thetas} | {out.dtype for _, out in outs}
    is_convex = min(alphas) >= 0.0 and max(alphas) <= 1.0
    return len(dtypes) > 1 or not is_convex or np.dtype(np.float64) in dtypes

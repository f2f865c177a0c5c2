"""Weights that are stored as several tensors: LoRA factors, quantized weights, weight norm.

theta = (1 - alpha) * theta_0 + alpha * theta_1 holds for a weight, not for the tensors it is
computed from: B_0 A_0 and B_1 A_1 averaged factor by factor are not the average of the products.
Such weights are recognized by the names and shapes in the headers. Two files that hold them can
be merged if their tensors are equal, or if one of them differs and the weight is linear in it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from wiseft_cli.checkpoint.format import FLOATING_DTYPES, INTEGER_DTYPES, SIZES_BITS, TensorInfo
from wiseft_cli.checkpoint.reader import CheckpointReader, has_equal_bytes
from wiseft_cli.errors import IncompatibleCheckpointsError, list_some

Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Form:
    """A way to store one weight as several tensors.

    Attributes:
        name: What messages call the tensors.
        remedy: How to store the weight as one tensor.
        is_linear: Whether the weight is linear in each tensor while the others stay the same.
        is_whole: Whether the tensors are the weight, and not a change of another one.
    """

    name: str
    remedy: str
    is_linear: bool = False
    is_whole: bool = True


_MERGE_ADAPTER = (
    "merge each adapter into its base model first, for example with peft's merge_and_unload(), "
    "and merge the full weights"
)
_DEQUANTIZE = (
    "dequantize both files to bfloat16 or float32 first (in transformers, model.dequantize()), "
    "and quantize the merged file"
)
_BAKE = (
    "store the plain weights in both files first, with torch.nn.utils.parametrize."
    "remove_parametrizations, torch.nn.utils.remove_weight_norm, remove_spectral_norm or "
    "prune.remove"
)
ADAPTER = Form("LoRA-like factors", _MERGE_ADAPTER, is_linear=True, is_whole=False)
NONLINEAR_ADAPTER = Form("parts of a DoRA-like adapter", _MERGE_ADAPTER, is_whole=False)
QUANTIZED = Form("quantized weight with scales", _DEQUANTIZE, is_linear=True)
INTEGERS = Form("packed or quantized integers", _DEQUANTIZE)
WEIGHT_NORM = Form("magnitude and direction of a weight", _BAKE)
PARAMETRIZED = Form("parametrized weight", _BAKE)
LOW_RANK = Form(
    "low-rank factors",
    "multiply the factors out in both files first, and merge the full weights",
    is_linear=True,
    is_whole=False,
)


@dataclass(frozen=True)
class FactoredWeight:
    """One weight, or the weights of one module, stored as several tensors.

    Attributes:
        module: Common beginning of the names, without the last dot.
        names: The tensors, sorted; a bias is a weight of its own.
    """

    form: Form
    module: str
    names: tuple[str, ...]

    def describe(self) -> str:
        """Return the module, the form and the first tensors, for a line of a message."""
        parts = [name.removeprefix(f"{self.module}.") for name in self.names]
        if parts == [self.module]:
            return f"{self.module}: {self.form.name}"
        shown = ", ".join(list_some(parts, limit=4))
        return f"{self.module or 'the model'}: {self.form.name} ({shown})"


# LoRA and its relatives: lora_A.default.weight, to_q_lora.down.weight, lora_up.weight, hada_w1_a.
_LINEAR_ADAPTER_NAME = re.compile(
    r"(?:^|[._])(?:[a-z]{0,4}lora[._]?(?:(?:[qkvo]_?)?[abce]|up|down|mid|embedding|left|right|in|out"
    r"|[uvs]|linear|layers?|scaling|lambda|gamma|theta|w?[0-9]+)(?=[._0-9]|$)"
    r"|(?:hada|loha|lokr|locon|vera|glora)_[a-z0-9]+|base_layer\.[a-z_]+(?=$|[.]))",
    re.IGNORECASE,
)
_NONLINEAR_ADAPTER_NAME = re.compile(
    r"(?:^|[._])(?:lora_magnitude|dora_(?:scale|magnitude|m)|weight_magnitude|vblora_[a-z]+"
    r"|b?oft_(?:r|s|blocks?|diag)|hra_u|bone_block|road_(?:theta|alpha))(?=[._]|$)",
    re.IGNORECASE,
)
_SCALE_NAME = re.compile(
    r"scale|scb$|absmax|amax|quant|zero|g_idx|weight_(?:shape|format|packed|min|max)|codebook",
    re.IGNORECASE,
)
_SCALES_OF_ANY_DTYPE = re.compile(r"^(?:weight_scale(?:_inv|s)?|scale_weight)$")
_PARAMETRIZED_NAME = re.compile(r"^((?:.*\.)?parametrizations\.[^.]+)\.")
_NORM_SUFFIXES = (("_g", "_v"), ("magnitude", "direction"))
_FACTOR_TOKENS = (("a", "b"), ("down", "up"), ("u", "v"), ("u", "vh"), ("u", "vt"))


def find_factored_weights(tensors: Tensors) -> list[FactoredWeight]:
    """Return the weights of a checkpoint that are stored as several tensors, by module.

    Integer matrices are not among them: only a comparison shows whether they are weights.
    """
    below = _names_by_ancestor(tensors)
    found: dict[tuple[Form, str], set[str]] = defaultdict(set)
    for form, module, names in (
        *_find_adapters(tensors, below),
        *_find_quantized(tensors, below),
        *_find_normalized(tensors),
        *_find_low_rank(tensors, below),
    ):
        found[form, module].update(name for name in names if not _is_bias(name))
    return [
        FactoredWeight(form, module, tuple(sorted(names)))
        for (form, module), names in sorted(found.items(), key=lambda item: item[0][1])
    ]


def _names_by_ancestor(tensors: Tensors) -> Mapping[str, list[str]]:
    """Return for every module the names of all tensors in it and below it."""
    below: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        module = name
        while "." in module:
            module = module.rpartition(".")[0]
            below[module].append(name)
        if module == name:
            below[""].append(name)  # the root's own tensors; its modules are not a part of it
    return below


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _is_bias(name: str) -> bool:
    return name == "bias" or name.endswith((".bias", "_bias"))


Found = Iterator[tuple[Form, str, Iterable[str]]]


def _find_adapters(tensors: Tensors, below: Mapping[str, list[str]]) -> Found:
    nonlinear = set()
    for pattern in (_NONLINEAR_ADAPTER_NAME, _LINEAR_ADAPTER_NAME):
        for name in tensors:
            if match := pattern.search(name):
                module = _module_of(name[: match.start() + 1].rstrip("_"))
                if pattern is _NONLINEAR_ADAPTER_NAME:
                    nonlinear.add(module)
                form = NONLINEAR_ADAPTER if module in nonlinear else ADAPTER
                yield form, module, (name, *below[module])


def _find_quantized(tensors: Tensors, below: Mapping[str, list[str]]) -> Found:
    for name, info in tensors.items():
        module, _, leaf = name.rpartition(".")
        if _SCALES_OF_ANY_DTYPE.match(leaf) and f"{module}.weight" in tensors:
            yield QUANTIZED, module, (name, f"{module}.weight")
        if not _is_stored_in_few_bits(info):
            continue
        # q.weight has q.weight_scale, q.scale or q_scale.
        beside = [n for n in below[_module_of(module)] if n.startswith(f"{module}_")]
        scales = [n for n in (*below[module], *beside) if _is_scale_of(info, tensors[n], module)]
        if scales:
            yield QUANTIZED, module, (name, *scales)


def _is_stored_in_few_bits(info: TensorInfo) -> bool:
    """Return whether a tensor could be the integers or small floats of a quantized weight."""
    is_small_float = info.dtype.startswith("F") and SIZES_BITS[info.dtype] <= 8
    is_integer = info.dtype in INTEGER_DTYPES - {"BOOL", "I64", "U64"}
    return (is_small_float or is_integer) and _is_matrix(info)


def _is_matrix(info: TensorInfo) -> bool:
    """Return whether a tensor is a matrix, or a vector of bytes as long as packed weights are."""
    is_bytes = info.dtype in ("U8", "I8") and info.nbytes >= 64
    return info.nbytes > 0 and (len(info.shape) >= 2 or is_bytes)


def _is_scale_of(stored: TensorInfo, other: TensorInfo, module: str) -> bool:
    rest = other.name[len(module) + 1 if module else 0 :]
    if other.name == stored.name or rest == "logit_scale":
        return False
    is_beside = "." not in rest or other.name.startswith(f"{stored.name}.")
    is_cast_too = other.dtype == stored.dtype and other.dtype in FLOATING_DTYPES
    return is_beside and not is_cast_too and _SCALE_NAME.search(rest) is not None


def _find_normalized(tensors: Tensors) -> Found:
    for name, info in tensors.items():
        if match := _PARAMETRIZED_NAME.match(name):
            yield PARAMETRIZED, match[1], (name,)
        for magnitude, direction in _NORM_SUFFIXES:
            if name.endswith(magnitude):
                other = tensors.get(name.removesuffix(magnitude) + direction)
                if other and _is_norm_of(info.shape, other.shape):
                    yield WEIGHT_NORM, _module_of(name), (name, other.name)
        if name.endswith("_orig"):
            stem = name.removesuffix("orig")
            parts = [stem + part for part in ("u", "v", "mask") if stem + part in tensors]
            if parts:
                yield PARAMETRIZED, _module_of(name), (name, *parts)


def _is_norm_of(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Return whether a shape is that of a matrix's norms: all of it, or along some axes."""
    is_kept = len(shape) == len(of) and all(a in (1, b) for a, b in zip(shape, of, strict=True))
    return len(of) >= 2 and (shape in ((), (1,), of[:1], of[1:2]) or (is_kept and shape != of))


def _find_low_rank(tensors: Tensors, below: Mapping[str, list[str]]) -> Found:
    """Find pairs of matrices, r x in and out x r, that are factors and not layers of a network.

    Two layers that form a bottleneck have such shapes too. Factors have no bias, and lie beside
    the matrix that they change, or in a file without any other matrix.
    """
    pairs = [
        (name, other)
        for name in tensors
        for other in _partners(name)
        if other in tensors and _is_low_rank(tensors[name], tensors[other])
        if not _has_bias((name, other), tensors)
    ]
    is_only_pairs = 2 * len(pairs) == sum(len(info.shape) >= 2 for info in tensors.values())
    for pair in pairs:
        module = _common_module(*pair)
        bases = [name for name in below[module] if name not in pair]
        first, second = (tensors[name] for name in pair)
        if is_only_pairs or any(_is_changed_by(first, second, tensors[name]) for name in bases):
            yield LOW_RANK, module, pair
    for module, names in below.items():
        base = tensors.get(f"{module}.weight")
        matrices = [name for name in names if len(tensors[name].shape) == 2]
        factors = [name for name in matrices if name != f"{module}.weight"]
        if base is None or len(factors) != 2 or _has_bias(factors, tensors):
            continue
        first, second = (tensors[name] for name in factors)
        if _is_low_rank(first, second) and _is_changed_by(first, second, base):
            yield LOW_RANK, module, (base.name, *factors)


def _has_bias(names: Iterable[str], tensors: Tensors) -> bool:
    return any(name.removesuffix("weight") + "bias" in tensors for name in names)


def _partners(name: str) -> Iterator[str]:
    """Yield the names of the other factor that could belong to x.a.weight: x.b.weight."""
    tokens = re.split(r"([._])", name)
    for index, token in enumerate(tokens):
        for first, second in _FACTOR_TOKENS:
            if token.lower() == first and "".join(tokens[index:]).count(".") <= 1:
                for partner in {second, second.upper(), second.capitalize()}:
                    yield "".join([*tokens[:index], partner, *tokens[index + 1 :]])


def _is_low_rank(first: TensorInfo, second: TensorInfo) -> bool:
    """Return whether two tensors have the shapes r x in and out x r, in either order."""
    if not len(first.shape) == len(second.shape) >= 2:
        return False
    return any(
        a.shape[0] == b.shape[1] < min(a.shape[1], b.shape[0]) and set(b.shape[2:]) <= {1}
        for a, b in ((first, second), (second, first))
    )


def _is_changed_by(first: TensorInfo, second: TensorInfo, base: TensorInfo) -> bool:
    """Return whether the product of two factors has the shape of a matrix or of its part."""
    if len(base.shape) < 2:
        return False
    return any(
        base.shape[0] % b.shape[0] == 0 and base.shape[1] == a.shape[1]
        for a, b in ((first, second), (second, first))
        if a.shape[0] == b.shape[1] and b.shape[0]
    )


def _common_module(first: str, second: str) -> str:
    pairs = zip(first.split("."), second.split("."), strict=False)
    return ".".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def require_whole_weights(
    theta_0: CheckpointReader, theta_1: CheckpointReader, *, converts: bool = False
) -> None:
    """Reject two checkpoints whose weights cannot be interpolated tensor by tensor.

    Args:
        converts: Whether floating tensors are stored in another dtype.
    Raises:
        IncompatibleCheckpointsError: A weight is stored as several tensors that differ in more
            than one of them, or a matrix of integers differs.
    """
    either = {**theta_1.tensors, **theta_0.tensors}
    weights = {*find_factored_weights(theta_0.tensors), *find_factored_weights(theta_1.tensors)}
    faults = [weight for weight in weights if not _is_exact(weight, theta_0, theta_1, converts)]
    known = {name for weight in weights for name in weight.names}
    faults += [
        FactoredWeight(INTEGERS, name, (name,))
        for name, info in either.items()
        if info.dtype in INTEGER_DTYPES and _is_matrix(info) and name not in known
        if name in theta_0.tensors and name in theta_1.tensors
        if not has_equal_bytes(theta_0, theta_1, name)
    ]
    if faults:
        faults.sort(key=lambda weight: weight.module)
        raise IncompatibleCheckpointsError(
            f"{theta_1.path} cannot be merged with {theta_0.path}: the interpolation of a weight "
            "is not that of the tensors it is stored as",
            faults=[weight.describe() for weight in faults],
            hint="; ".join(dict.fromkeys(weight.form.remedy for weight in faults)),
        )


def _is_exact(
    weight: FactoredWeight, theta_0: CheckpointReader, theta_1: CheckpointReader, converts: bool
) -> bool:
    """Return whether merging the tensors of a weight one by one merges the weight."""
    pairs = [(theta_0.tensors.get(name), theta_1.tensors.get(name)) for name in weight.names]
    infos = [info for pair in pairs for info in pair if info]
    if converts and weight.form is QUANTIZED and any(map(_is_stored_in_few_bits, infos)):
        return False  # the scales would apply to values that are stored as they are
    if len(infos) == len(pairs) and len({info is None for info, _ in pairs}) == 1:
        return weight.form.is_whole  # all in one file: copied
    n_different = 0
    for a, b in pairs:
        if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
            return False
        if not has_equal_bytes(theta_0, theta_1, a.name):
            n_different += 1
            is_linear = weight.form.is_linear and a.dtype not in INTEGER_DTYPES
            if n_different > 1 or not is_linear:
                return False
    return True

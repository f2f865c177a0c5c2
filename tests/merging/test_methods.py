"""Every merge method against the formulas of its paper, and its special cases."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.merging import references
from tests.merging.references import Tensors
from wiseft_cli.errors import CheckpointError, UsageError
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.merging.arithmetic import interpolate_arrays
from wiseft_cli.merging.kernels import KERNEL_BLOCK, UpdateSettings, keep_mask
from wiseft_cli.merging.layers import parse_layer_alpha
from wiseft_cli.merging.methods import METHODS
from wiseft_cli.merging.model_merge import ModelMerge
from wiseft_cli.merging.reductions import LargestMagnitudes
from wiseft_cli.merging.settings import MergeSettings, resolve_settings

SHAPES = {
    "visual.transformer.resblocks.0.weight": (37, KERNEL_BLOCK // 37 + 50),
    "visual.transformer.resblocks.1.weight": (200, 30),
    "visual.transformer.resblocks.2.bias": (64,),
    "visual.class_embedding": (16,),
    "visual.proj": (40, 9),
    "visual.scale": (),
    "visual.empty": (0, 3),
}
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
FRACTION_BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
MIN_EXPONENT = {"float64": -1022, "float32": -126, "float16": -14, "bfloat16": -126}


def models(n: int, dtype: Any = np.float32, seed: int = 0) -> tuple[Tensors, list[Tensors]]:
    """Return a zero-shot model and n that differ from it by a shared and a private change."""
    random = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(random.standard_normal(shape))

    base = {name: normal(shape) for name, shape in SHAPES.items()}
    shared = {name: 0.1 * normal(shape) for name, shape in SHAPES.items()}
    tuned = [
        {name: x + shared[name] + 0.1 * normal(x.shape) for name, x in base.items()}
        for _ in range(n)
    ]
    return (
        {name: np.array(x, dtype) for name, x in base.items()},
        [{name: np.array(x, dtype) for name, x in theta.items()} for theta in tuned],
    )


def merge(
    settings: MergeSettings,
    theta_0: Tensors | None,
    finetuned: list[Tensors],
    alpha: str | None,
    fishers: list[Tensors] | None = None,
) -> Tensors:
    """Merge whole arrays in memory, as an evaluation does."""
    inputs = [*([] if theta_0 is None else [theta_0]), *finetuned]
    parsed: Alpha | None = None
    if alpha is not None:
        (parsed,) = parse_alphas([alpha], extrapolate=True)
    model = ModelMerge(settings, len(finetuned), {n: x.size for n, x in inputs[0].items()})
    while model.model_reduction:
        for name in inputs[0]:
            model.model_reduction.observe([np.ravel(theta[name]) for theta in inputs])
        if model.model_reduction.finish_pass():
            break
    merged = {}
    for name in inputs[0]:
        thetas = [theta[name] for theta in inputs]
        of_name = [values[name] for values in fishers or () if name in values]
        merged[name] = model.merge_arrays(model.prepare(name, thetas), thetas, parsed, of_name)
    return merged


def assert_rounded_once(merged: Tensors, expected: Tensors, magnitude: float = 8.0) -> None:
    """Check that values are within 0.5000001 units in the last place of float64 references.

    Args:
        magnitude: Bound of the terms that a reference sums; where they cancel, the error of
            float64 is relative to them.
    """
    for name, array in merged.items():
        found, reference = array.astype(np.float64), expected[name]
        kind = array.dtype.name
        exponent = np.maximum(np.frexp(reference)[1] - 1, MIN_EXPONENT[kind])
        unit = np.ldexp(1.0, exponent - FRACTION_BITS[kind])
        slack = magnitude * 2.0**-50 * (64 if kind == "float64" else 1)
        assert (np.abs(found - reference) <= 0.5000001 * unit + slack).all(), name


WEIGHTS = ["0.5", "0.2", "0.3"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [[], WEIGHTS])
@pytest.mark.parametrize("alpha", ["0.3", "1"])
def test_linear_is_the_weighted_mean_of_the_changes(
    dtype: Any, weights: list[str], alpha: str
) -> None:
    theta_0, finetuned = models(3, dtype)
    settings = resolve_settings(n_finetuned=3, weights=weights)
    expected = references.linear(theta_0, finetuned, float(alpha), [float(w) for w in weights])
    assert_rounded_once(merge(settings, theta_0, finetuned, alpha), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 4])
def test_task_arithmetic_adds_all_changes(dtype: Any, n: int) -> None:
    theta_0, finetuned = models(n, dtype)
    settings = resolve_settings("task-arithmetic", n_finetuned=n)
    expected = references.task_arithmetic(theta_0, finetuned, 0.4)
    assert_rounded_once(merge(settings, theta_0, finetuned, "0.4"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", ["0.25", "0.9"])
def test_slerp_follows_the_arc_or_the_line_where_it_is_almost_straight(
    dtype: Any, alpha: str
) -> None:
    theta_0, (theta_1,) = models(1, dtype)
    theta_1["visual.proj"] = (theta_0["visual.proj"].astype(float) * 1.01).astype(dtype)
    theta_1["visual.class_embedding"] = np.zeros_like(theta_0["visual.class_embedding"])
    settings = resolve_settings("slerp")
    expected = references.slerp(theta_0, theta_1, float(alpha))
    merged = merge(settings, theta_0, [theta_1], alpha)
    assert_rounded_once(merged, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("weights", [[], WEIGHTS])
def test_ties_trims_elects_and_averages(dtype: Any, scope: str, weights: list[str]) -> None:
    theta_0, finetuned = models(3, dtype)
    settings = resolve_settings(
        "ties", n_finetuned=3, weights=weights, options={"density": "0.3", "trim_scope": scope}
    )
    numbers = [float(w) for w in weights]
    expected = references.ties(theta_0, finetuned, 0.7, density=0.3, scope=scope, weights=numbers)
    assert_rounded_once(merge(settings, theta_0, finetuned, "0.7"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_model_stock_uses_the_mean_cosine_of_each_tensor(dtype: Any) -> None:
    theta_0, finetuned = models(4, dtype)
    finetuned[0]["visual.proj"] = theta_0["visual.proj"].copy()
    settings = resolve_settings("model-stock", n_finetuned=4)
    expected = references.model_stock(theta_0, finetuned)
    assert_rounded_once(merge(settings, theta_0, finetuned, None), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [[], ["0.75", "0.25"]])
def test_fisher_weights_every_element(dtype: Any, weights: list[str]) -> None:
    theta_0, finetuned = models(2, dtype)
    random = np.random.default_rng(1)
    fishers = [
        {
            name: (random.random(shape) ** 8).astype(np.float32)
            for name, shape in SHAPES.items()
            if name != "visual.proj"  # as a buffer
        }
        for _ in range(3)
    ]
    settings = resolve_settings(
        "fisher", n_finetuned=2, weights=weights, options={"fisher_floor": "0.001"}
    )
    expected = references.fisher(
        theta_0, finetuned, fishers, 0.6, floor=0.001, weights=[float(w) for w in weights]
    )
    assert_rounded_once(merge(settings, theta_0, finetuned, "0.6", fishers), expected)


@pytest.mark.parametrize(
    ("outside", "alphas"),
    [("first", (0.1, 0.1, 0.35, 0.6, 0.1)), ("ends", (0.1, 0.1, 0.35, 0.6, 0.6))],
)
def test_lines_gives_every_block_an_alpha_by_its_depth(
    outside: str, alphas: tuple[float, ...]
) -> None:
    theta_0, finetuned = models(2)
    settings = resolve_settings(
        "lines", n_finetuned=2, options={"layer_alpha_from": "0.1", "outside_blocks": outside}
    )
    merged = merge(settings, theta_0, finetuned, "0.6")
    stem, *blocks = ("visual.class_embedding", *list(SHAPES)[:3])
    for name, alpha in zip((stem, *blocks, "visual.proj"), alphas, strict=True):
        expected = references.linear(theta_0, finetuned, alpha)
        assert_rounded_once({name: merged[name]}, expected)


def test_the_soup_is_the_mean_without_a_base() -> None:
    _, finetuned = models(3)
    settings = resolve_settings("soup", n_finetuned=3, has_base=False)
    expected = references.linear(finetuned[0], finetuned, 1.0)
    assert_rounded_once(merge(settings, None, finetuned, None), expected)


@pytest.mark.parametrize("then", ["linear", "ties"])
def test_dare_combines_what_it_keeps_divided_by_the_share(then: str) -> None:
    theta_0, finetuned = models(3)
    options = {"drop": "0.75", "seed": 7, "then": then}
    settings = resolve_settings("dare", n_finetuned=3, weights=WEIGHTS, options=options)
    merged = merge(settings, theta_0, finetuned, "0.5")
    weights = [float(w) for w in WEIGHTS]
    for name, x in references.wide(theta_0).items():
        seeds = UpdateSettings(name=name, drop=0.75, seed=7)
        kept = [
            keep_mask(seeds, i, 0, x.size).reshape(x.shape) * change / 0.25
            for i, change in enumerate(references.taus(theta_0, finetuned, name))
        ]
        update = sum(w * k for w, k in zip(weights, kept, strict=True))
        if then == "ties":
            update = references.elect(kept, weights)
        assert_rounded_once({name: merged[name]}, {name: x + 0.5 * update})


def test_the_mean_of_dare_over_seeds_approaches_task_arithmetic_of_one_input() -> None:
    theta_0, finetuned = models(1)
    name = "visual.transformer.resblocks.1.weight"
    total = np.zeros(SHAPES[name])
    n_seeds = 200
    for seed in range(n_seeds):
        settings = resolve_settings("dare", options={"drop": "0.5", "seed": seed})
        total += merge(settings, {name: theta_0[name]}, [{name: finetuned[0][name]}], "1")[name]
    (change,) = references.taus(theta_0, finetuned, name)
    error = total / n_seeds - (theta_0[name] + change)
    # Of one element the standard error is |tau| / sqrt(seeds); of their mean it is far smaller.
    assert np.abs(error).max() < 6 * np.abs(change).max() / np.sqrt(n_seeds)
    assert abs(error.mean()) < 5 * np.sqrt((change**2).mean() / n_seeds / change.size)


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 0.9])
def test_dare_drops_the_share_independently_of_the_chunks(drop: float) -> None:
    settings = UpdateSettings(name="w", drop=drop, seed=3)
    n = 200_003
    mask = keep_mask(settings, 0, 0, n)
    assert abs(mask.mean() - (1 - drop)) < 5 * np.sqrt(drop * (1 - drop) / n) + 1e-9
    for begin, end in ((1, 9), (7, 8), (8, 4096), (99_991, n)):
        assert (keep_mask(settings, 0, begin, end - begin) == mask[begin:end]).all()
    if drop > 0:
        assert not (keep_mask(settings, 1, 0, n) == mask).all()
        assert not (keep_mask(UpdateSettings(name="v", drop=drop, seed=3), 0, 0, n) == mask).all()


def test_dare_of_the_largest_share_is_finite() -> None:
    theta_0, finetuned = models(1)
    settings = resolve_settings("dare", options={"drop": "0.9999999997671693"})  # 1 - 2**-32
    merged = merge(settings, theta_0, finetuned, "1")
    assert all(np.isfinite(values).all() for values in merged.values())


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("task-arithmetic", {}),
    ("ties", {"trim_scope": "model"}),
    ("ties", {"trim_scope": "tensor", "density": "0.7"}),
    ("dare", {}),
    ("dare", {"then": "ties"}),
    ("model-stock", {}),
    ("lines", {"layer_alpha_from": "0.2", "outside_blocks": "ends"}),
    ("fisher", {}),
    ("soup", {}),
    ("slerp", {}),
]


def run(
    method: str, options: dict[str, Any], theta_0: Tensors, finetuned: list[Tensors], **more: Any
) -> Tensors:
    spec = METHODS[method]
    if spec.max_finetuned == 1:
        finetuned = finetuned[:1]
    settings = resolve_settings(
        method,
        n_finetuned=len(finetuned),
        options=options,
        has_base=spec.has_base,
        weights=more.get("weights", []) if spec.takes_weights and len(finetuned) > 1 else [],
    )
    random = np.random.default_rng(5)
    fishers = [
        {name: random.random(shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(len(finetuned) + 1)
    ]
    order = more.get("order", range(len(finetuned)))
    return merge(
        settings,
        theta_0 if spec.has_base else None,
        finetuned,
        None if spec.default_alpha is None else more.get("alpha", "0.37"),
        [fishers[0], *(fishers[i + 1] for i in order)] if spec.takes_fisher else None,
    )


@pytest.mark.parametrize(("method", "options"), SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", ["0.37", "1", "-0.5"])
def test_weights_equal_in_all_inputs_keep_their_bits(
    method: str, options: dict[str, Any], dtype: Any, alpha: str
) -> None:
    theta_0, finetuned = models(3, dtype)
    if method == "slerp":  # keeps whole tensors, and elements where it is linear
        finetuned = [{name: x.copy() for name, x in theta_0.items()}]
    shared = {name: np.arange(x.size).reshape(x.shape) % 3 == 0 for name, x in theta_0.items()}
    special = np.array([np.nan, np.inf, -0.0, 0.0, 1e-300, -np.inf])
    for name, x in theta_0.items():
        with np.errstate(all="ignore"):
            x[shared[name]] = np.resize(special, x.shape).astype(dtype)[shared[name]]
        for theta in finetuned:
            theta[name][shared[name]] = x[shared[name]]
    merged = run(method, options, theta_0, finetuned, alpha=alpha)
    for name, x in theta_0.items():
        assert merged[name][shared[name]].tobytes() == x[shared[name]].tobytes(), name


@pytest.mark.parametrize(
    ("method", "options"), [row for row in SETTINGS if METHODS[row[0]].is_symmetric][:-1]
)
@pytest.mark.parametrize("weights", [[], ["0.1", "0.45", "0.45"]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_permuted_inputs_give_the_same_bits(
    method: str, options: dict[str, Any], weights: list[str], dtype: Any
) -> None:
    theta_0, finetuned = models(3, dtype)
    # Two inputs that differ only late, after the first block.
    name = "visual.transformer.resblocks.0.weight"
    finetuned[1][name].reshape(-1)[:-7] = finetuned[0][name].reshape(-1)[:-7]
    expected = run(method, options, theta_0, finetuned, weights=weights)
    for order in itertools.permutations(range(3)):
        permuted = run(
            method,
            options,
            theta_0,
            [finetuned[i] for i in order],
            weights=[weights[i] for i in order] if weights else [],
            order=order,
        )
        for tensor, array in expected.items():
            assert permuted[tensor].tobytes() == array.tobytes(), (order, tensor)


@pytest.mark.parametrize(("method", "options"), SETTINGS)
def test_alpha_0_gives_the_zero_shot_bytes(method: str, options: dict[str, Any]) -> None:
    if METHODS[method].default_alpha is None or method == "lines":
        return
    theta_0, finetuned = models(3)
    merged = run(method, options, theta_0, finetuned, alpha="0")
    for name, x in theta_0.items():
        assert merged[name].tobytes() == x.tobytes()


def same_bytes(first: Tensors, second: Tensors) -> bool:
    return all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_one_input_without_a_method_is_the_interpolation_of_two() -> None:
    theta_0, finetuned = models(1)
    merged = merge(resolve_settings(), theta_0, finetuned, "0.3")
    for name, x in theta_0.items():
        assert merged[name].tobytes() == interpolate_arrays(x, finetuned[0][name], 0.3).tobytes()


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_ties_that_keeps_everything_of_one_input_is_task_arithmetic(scope: str) -> None:
    theta_0, finetuned = models(1)
    ties = resolve_settings("ties", options={"density": "1", "trim_scope": scope})
    arithmetic = resolve_settings("task-arithmetic")
    first, second = (merge(s, theta_0, finetuned, "0.8") for s in (ties, arithmetic))
    assert same_bytes(first, second)


def test_dare_that_drops_nothing_of_one_input_is_task_arithmetic() -> None:
    theta_0, finetuned = models(1)
    dare = resolve_settings("dare", options={"drop": "0"})
    arithmetic = resolve_settings("task-arithmetic")
    first, second = (merge(s, theta_0, finetuned, "0.8") for s in (dare, arithmetic))
    assert same_bytes(first, second)


def test_lines_with_one_alpha_at_both_ends_is_linear() -> None:
    theta_0, finetuned = models(3)
    lines = resolve_settings("lines", n_finetuned=3, options={"layer_alpha_from": "0.3"})
    first = merge(lines, theta_0, finetuned, "0.3")
    assert same_bytes(first, merge(resolve_settings(n_finetuned=3), theta_0, finetuned, "0.3"))


def test_model_stock_of_orthogonal_changes_is_the_zero_shot_model() -> None:
    theta_0 = {"w": np.zeros(4, np.float32)}
    finetuned = [{"w": row} for row in 3 * np.eye(4, dtype=np.float32)]
    settings = resolve_settings("model-stock", n_finetuned=4)
    assert merge(settings, theta_0, finetuned, None)["w"].tolist() == [0.0] * 4


def test_model_stock_of_equal_changes_is_their_mean() -> None:
    theta_0, finetuned = models(1)
    settings = resolve_settings("model-stock", n_finetuned=3)
    merged = merge(settings, theta_0, finetuned * 3, None)
    assert_rounded_once(merged, references.wide(finetuned[0]))


def test_model_stock_clamps_t_and_reports_it() -> None:
    model = ModelMerge(resolve_settings("model-stock", n_finetuned=2), 2, {"w": 4})
    thetas = [np.array(row, np.float32) for row in ([0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, -2])]
    tensor = model.prepare("w", thetas)
    assert model.merge_arrays(tensor, thetas, None).tolist() == [0.0] * 4
    assert model.ratios["w"] < 0
    assert "set to 0 or 1 for 1 tensor, for example w" in model.notes()[-1]


def test_extreme_magnitudes_are_trimmed_exactly() -> None:
    random = np.random.default_rng(0)
    changes = np.ldexp(random.random(5000), random.integers(-900, 900, 5000))
    changes[:500] = 0.0
    for density in ("0.001", "0.37", "0.5", "0.95"):
        settings = resolve_settings("ties", options={"density": density, "trim_scope": "tensor"})
        merged = merge(settings, {"w": np.zeros(5000)}, [{"w": changes}], "1")["w"]
        expected = references.trim([changes], float(density))[0]
        assert merged.tobytes() == expected.tobytes()


def test_layer_alphas_replace_alpha_where_their_pattern_matches_first() -> None:
    theta_0, finetuned = models(1)
    rows = map(parse_layer_alpha, ["*.resblocks.{0-1}.*=0.2", "*.resblocks.*=0.9"])
    settings = resolve_settings(layer_alphas=rows)
    merged = merge(settings, theta_0, finetuned, "0.5")
    for name, alpha in zip(SHAPES, (0.2, 0.2, 0.9, 0.5, 0.5, 0.5, 0.5), strict=True):
        expected = interpolate_arrays(theta_0[name], finetuned[0][name], alpha)
        assert merged[name].tobytes() == expected.tobytes()


def test_layer_alphas_all_equal_to_alpha_change_nothing() -> None:
    theta_0, finetuned = models(3)
    for method in ("linear", "task-arithmetic", "ties", "dare"):
        plain = resolve_settings(method, n_finetuned=3)
        layers = resolve_settings(
            method, n_finetuned=3, layer_alphas=[parse_layer_alpha("visual.*=0.4")]
        )
        first, second = (
            merge(s, theta_0, finetuned, a) for s, a in ((plain, "0.4"), (layers, "1"))
        )
        assert same_bytes(first, second), method


def test_lines_needs_blocks() -> None:
    settings = resolve_settings("lines", options={"layer_alpha_from": "0"})
    with pytest.raises(CheckpointError, match="no tensor is in a numbered block"):
        ModelMerge(settings, 1, {"fc.weight": 4})


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"method": "tie"}, ["method 'tie': unknown", "did you mean ties?"]),
        ({"method": "slerp", "n_finetuned": 2}, ["2 fine-tuned inputs given"]),
        ({"method": "model-stock"}, ["1 fine-tuned input given", "2 to 32 FINETUNED"]),
        ({"options": {"density": "0.2"}}, ["--density is an option of ties"]),
        ({"method": "ties", "options": {"density": "1.2"}}, ["'1.2'", "above 0 and at most 1"]),
        ({"method": "ties", "options": {"density": "x"}}, ["--density is 'x'"]),
        ({"method": "dare", "options": {"seed": "1.5"}}, ["--seed is '1.5'"]),
        ({"method": "dare", "options": {"drop": "0." + 20 * "9"}}, ["0 to 1 - 2**-32"]),
        ({"method": "lines"}, ["--layer-alpha-from is missing"]),
        ({"method": "task-arithmetic", "weights": ["1"]}, ["takes no --weights"]),
        ({"weights": ["0.5", "0.4"], "n_finetuned": 2}, ["is 0.9", "did you mean 0.5556,0.4444"]),
        ({"weights": ["1", "0"], "n_finetuned": 2}, ["weight 2 is 0", "leave an input out"]),
        ({"weights": ["1.5", "-0.5"], "n_finetuned": 2}, ["weight 2 is -0.5"]),
        ({"weights": ["1"], "n_finetuned": 2}, ["1 weight for 2 fine-tuned inputs"]),
        ({"weights": ["a", "b"], "n_finetuned": 2}, ["'a' is not a number"]),
    ],
)
def test_wrong_settings_are_usage_errors_with_a_remedy(
    arguments: dict[str, Any], facts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_settings(**arguments)
    text = f"{caught.value} {caught.value.hint}"
    for fact in facts:
        assert fact in text


@pytest.mark.parametrize("kind", ["normal", "sorted", "mostly zero", "with NaN", "few values"])
@pytest.mark.parametrize("capacity", [1 << 22, 1 << 15])
def test_large_searches_for_a_magnitude_are_exact(kind: str, capacity: int) -> None:
    n = 3_000_000
    values = np.abs(np.random.default_rng(0).standard_normal(n))
    if kind == "sorted":  # so that a sample of blocks is a bad guess
        values.sort()
    elif kind == "mostly zero":
        values[: n * 9 // 10] = 0.0
    elif kind == "with NaN":
        values[::1000] = np.nan
    elif kind == "few values":
        values = np.round(values)
    expected = np.sort(values)  # NaN comes last
    for density in ("0.05", "0.2", "0.9"):
        search = LargestMagnitudes(1, n, Fraction(density), capacity=capacity)
        while True:
            for part in np.split(values, 10):
                search.observe([np.zeros(len(part)), part])
            if search.finish_pass():
                break
        assert search.thresholds == [expected[n - int(n * Fraction(density))]]

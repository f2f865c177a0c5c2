"""Weights stored as several tensors: recognized, refused, and merged where that is exact."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.merging.pairs import write_foreign
from tests.merging.test_merge import merge, read_all
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.errors import IncompatibleCheckpointsError
from wiseft_cli.merging.factored import find_factored_weights

F32, F16, F8, I8, U8, I32 = (
    np.float32, np.float16, ml_dtypes.float8_e4m3fn, np.int8, np.uint8, np.int32,
)  # fmt: skip

Parts = Mapping[str, tuple[tuple[int, ...], type]]


def parts(**shapes: tuple[int, ...]) -> Parts:
    return {name.replace("__", "."): (shape, F32) for name, shape in shapes.items()}


PEFT = "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj"
KOHYA = "lora_te_text_model_encoder_layers_0_mlp_fc1"

ADAPTERS: dict[str, Parts] = {
    "peft": {f"{PEFT}.lora_A.weight": ((2, 8), F32), f"{PEFT}.lora_B.weight": ((6, 2), F32)},
    "peft, named": {
        f"{PEFT}.lora_A.mine.weight": ((2, 8), F32),
        f"{PEFT}.lora_B.mine.weight": ((6, 2), F32),
    },
    "peft, embedding": parts(emb__lora_embedding_A=(2, 9), emb__lora_embedding_B=(8, 2)),
    "peft, unmerged": parts(
        q__base_layer__weight=(6, 8),
        q__base_layer__bias=(6,),
        q__lora_A__default__weight=(2, 8),
        q__lora_B__default__weight=(6, 2),
    ),
    "loralib": parts(q__weight=(6, 8), q__lora_A=(2, 8), q__lora_B=(6, 2)),
    "kohya": {
        f"{KOHYA}.lora_down.weight": ((2, 8), F16),
        f"{KOHYA}.lora_up.weight": ((6, 2), F16),
        f"{KOHYA}.alpha": ((), F16),
    },
    "kohya, convolution": parts(
        c__lora_down__weight=(2, 8, 3, 3), c__lora_up__weight=(6, 2, 1, 1), c__alpha=()
    ),
    "diffusers": parts(attn__to_q_lora__down__weight=(2, 8), attn__to_q_lora__up__weight=(6, 2)),
    "CLIP-LoRA": parts(attn__q__w_lora_A=(2, 8), attn__q__w_lora_B=(6, 2), attn__q__weight=(6, 8)),
    "DoRA": parts(
        q__lora_A__weight=(2, 8), q__lora_B__weight=(6, 2), q__lora_magnitude_vector__weight=(6,)
    ),
    "DoRA, kohya": parts(
        q__lora_down__weight=(2, 8), q__lora_up__weight=(6, 2), q__dora_scale=(6,)
    ),
    "LoHa": parts(
        q__hada_w1_a=(6, 2), q__hada_w1_b=(2, 8), q__hada_w2_a=(6, 2), q__hada_w2_b=(2, 8)
    ),
    "LoKr": parts(q__lokr_w1=(2, 4), q__lokr_w2_a=(3, 2), q__lokr_w2_b=(2, 2), q__alpha=()),
    "VeRA": parts(q__vera_lambda_b=(6,), q__vera_lambda_d=(2,)),
    "LoHa by its name": parts(q__loha_w1_a=(6, 2), q__loha_w1_b=(2, 8)),
    "diffusers, old": parts(
        q__lora_linear_layer__up__weight=(6, 2), q__lora_linear_layer__down__weight=(2, 8)
    ),
    "loralib, merged": parts(qkv__weight=(18, 8), qkv__lora_A=(4, 8), qkv__lora_B=(12, 2)),
    "camel case": parts(q__loraA__weight=(2, 8), q__loraB__weight=(6, 2)),
    "OFT": parts(q__oft_blocks=(2, 4, 4)),
    "IA3 on other base weights": parts(q__base_layer__weight=(6, 8), q__ia3_l=(6, 1)),
    "factors by shape": parts(x__enc__a=(2, 8), x__enc__b=(6, 2)),
    "factors by shape, beside their matrix": parts(
        attn__qkv__weight=(24, 8), attn__linear_a_q__weight=(2, 8), attn__linear_b_q__weight=(8, 2),
        fc__weight=(8, 8),
    ),
    "factors by shape, in their module": parts(
        q__weight=(6, 8), q__delta__0__weight=(2, 8), q__delta__1__weight=(6, 2)
    ),
    "singular vectors": parts(q__U=(6, 2), q__Vh=(2, 8), q__S=(2,)),
}  # fmt: skip

QUANTIZED: dict[str, Parts] = {
    "scale_weight": {"q.weight": ((6, 8), F8), "q.scale_weight": ((), F32)},
    "weight_scale": {"q.weight": ((6, 8), F8), "q.weight_scale": ((6, 1), ml_dtypes.bfloat16)},
    "weight_scale_inv": {
        "q.weight": ((6, 8), ml_dtypes.float8_e5m2), "q.weight_scale_inv": ((1, 1), F32),
        "q.input_scale": ((), F32),
    },
    "scale beside the module": {"a.q.weight": ((6, 8), F8), "a.q_scale": ((6,), F32)},
    "scale below the weight": {"q.weight": ((6, 8), F8), "q.weight.scale": ((), F32)},
    "scale of a bare tensor": {"proj": ((6, 8), F8), "proj_amax": ((), F32)},
    "block scales in integers": {"x.blocks": ((6, 4, 16), U8), "x.scales": ((6, 4), U8)},
    "scales without float8": {"q.weight": ((6, 8), F16), "q.weight_scale": ((6, 1), F16)},
    "LLM.int8": {"q.weight": ((6, 8), I8), "q.SCB": ((6,), F32), "q.weight_format": ((), U8)},
    "bitsandbytes nf4": {
        "q.weight": ((96, 1), U8), "q.weight.absmax": ((3,), F32),
        "q.weight.quant_map": ((16,), F32),
        "q.weight.quant_state.bitsandbytes__nf4": ((70,), U8),
    },
    "GPTQ": {
        "q.qweight": ((2, 6), I32), "q.qzeros": ((1, 2), I32), "q.scales": ((1, 6), F16),
        "q.g_idx": ((16,), I32),
    },
    "compressed-tensors": {
        "q.weight_packed": ((6, 2), I32), "q.weight_scale": ((6, 1), F16),
        "q.weight_shape": ((2,), np.int64),
    },
    "quanto": {"q.weight._data": ((6, 8), I8), "q.weight._scale": ((6, 1), F32)},
    "HQQ": {"q.W_q": ((6, 8), U8), "q.scale": ((6, 1), F16), "q.zero": ((6, 1), F16)},
    "blocks of bytes": {"blk.0.attn_q.weight": ((6, 34), U8)},
    "one row of bytes": {"q.packed": ((200,), U8)},
    "unknown names": {"q.codes": ((6, 8), np.int16), "q.table": ((4,), F32)},
}  # fmt: skip

PARAMETRIZED: dict[str, Parts] = {
    "weight norm": parts(conv__weight_g=(6, 1, 1), conv__weight_v=(6, 8, 3), conv__bias=(6,)),
    "weight norm of everything": parts(fc__weight_g=(), fc__weight_v=(6, 8)),
    "weight norm, parametrized": parts(
        fc__parametrizations__weight__original0=(6, 1),
        fc__parametrizations__weight__original1=(6, 8),
    ),
    "orthogonal": parts(fc__parametrizations__weight__original=(8, 8)),
    "spectral norm": parts(fc__weight_orig=(6, 8), fc__weight_u=(6,), fc__weight_v=(8,)),
    "pruned": parts(fc__weight_orig=(6, 8), fc__weight_mask=(6, 8)),
    "magnitude and direction": parts(fc__magnitude=(6, 1), fc__direction=(6, 8)),
}

REMEDIES = [
    (ADAPTERS, r"merge_and_unload|multiply the factors out"),
    (QUANTIZED, "dequantize both files"),
    (PARAMETRIZED, "remove_parametrizations"),
]
EVERY = [pytest.param(forms[name], remedy, id=name) for forms, remedy in REMEDIES for name in forms]


def arrays(form: Parts, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found = {"ln.weight": np.full(3, seed, F32), "ln.bias": np.full(3, seed, F32)}
    for name, (shape, dtype) in form.items():
        values = random.integers(1, 100, shape) / (1 if np.dtype(dtype).kind in "iu" else 32)
        found[name] = np.asarray(values).astype(dtype)
    return found


def write_two(folder: Path, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]):
    return write_foreign(folder / "a", first), write_foreign(folder / "b", second)


@pytest.mark.parametrize(("form", "remedy"), EVERY)
def test_a_weight_in_parts_is_refused_at_every_alpha_with_the_way_out(
    tmp_path: Path, form: Parts, remedy: str
) -> None:
    a, b = write_two(tmp_path, arrays(form, 1), arrays(form, 2))
    for alpha in ("0", "0.5", "1"):
        with pytest.raises(IncompatibleCheckpointsError) as caught:
            merge(a, b, tmp_path / "out", alpha)
        assert caught.match("the interpolation of a weight is not that of the tensors")
        assert caught.value.hint is not None
        assert re.search(remedy, caught.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("form", "remedy"), EVERY)
def test_a_weight_in_equal_parts_is_copied(tmp_path: Path, form: Parts, remedy: str) -> None:
    same = arrays(form, 1)
    other = {**same, "ln.weight": np.full(3, 3, F32)}
    a, b = write_two(tmp_path, same, other)
    merge(a, b, tmp_path / "out", "0.5")
    merged = read_all(tmp_path / "out")
    assert merged["ln.weight"].tolist() == [2, 2, 2]
    for name in form:
        assert merged[name].tobytes() == same[name].tobytes()


def test_the_message_names_the_module_and_its_tensors(tmp_path: Path) -> None:
    form = ADAPTERS["peft"] | QUANTIZED["GPTQ"] | QUANTIZED["blocks of bytes"]
    a, b = write_two(tmp_path, arrays(form, 1), arrays(form, 2))
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        merge(a, b, tmp_path / "out")
    assert caught.value.message.splitlines()[1:] == [
        f"  {PEFT}: LoRA-like factors (lora_A.weight, lora_B.weight)",
        "  blk.0.attn_q.weight: packed or quantized integers",
        "  q: quantized weight with scales (g_idx, qweight, qzeros, scales)",
    ]
    assert caught.value.hint == (
        "merge each adapter into its base model first, for example with peft's "
        "merge_and_unload(), and merge the full weights; dequantize both files to bfloat16 or "
        "float32 first (in transformers, model.dequantize()), and quantize the merged file"
    )


def test_one_factor_that_differs_is_interpolated_exactly(tmp_path: Path) -> None:
    x = arrays(ADAPTERS["peft"], 1)
    y = {**x, f"{PEFT}.lora_B.weight": arrays(ADAPTERS["peft"], 2)[f"{PEFT}.lora_B.weight"]}
    a, b = write_two(tmp_path, x, y)
    merge(a, b, tmp_path / "out", "0.25")
    products = [
        files[f"{PEFT}.lora_B.weight"].astype(float) @ files[f"{PEFT}.lora_A.weight"].astype(float)
        for files in (x, y, read_all(tmp_path / "out"))
    ]
    np.testing.assert_allclose(products[2], 0.75 * products[0] + 0.25 * products[1], rtol=1e-6)


def test_float8_with_equal_scales_is_interpolated_exactly(tmp_path: Path) -> None:
    x, y = ({"q.weight": np.array([[v, -v]], F8), "q.scale_weight": F32(4)} for v in (1.0, 2.0))
    a, b = write_two(tmp_path, x, y)
    merge(a, b, tmp_path / "out", "0.5")
    merged = read_all(tmp_path / "out")
    assert merged["q.weight"].astype(float).tolist() == [[1.5, -1.5]]
    assert merged["q.scale_weight"] == 4
    with pytest.raises(IncompatibleCheckpointsError, match="quantized weight with scales"):
        merge(a, b, tmp_path / "wide", "0.5", dtype="float32")


def test_scales_of_equal_integers_are_interpolated_exactly(tmp_path: Path) -> None:
    x = arrays(QUANTIZED["GPTQ"], 1)
    a, b = write_two(tmp_path, x, {**x, "q.scales": 3 * x["q.scales"]})
    merge(a, b, tmp_path / "out", "0.5")
    merged = read_all(tmp_path / "out")
    assert merged["q.scales"].tolist() == (2 * x["q.scales"]).tolist()
    assert merged["q.qweight"].tobytes() == x["q.qweight"].tobytes()


def test_a_quantized_weight_of_one_file_is_copied_whole_and_an_adapter_is_not(
    tmp_path: Path,
) -> None:
    plain = {"ln.weight": np.zeros(3, F32), "ln.bias": np.zeros(3, F32)}
    a, b = write_two(tmp_path, plain, arrays(QUANTIZED["scale_weight"], 2))
    merge(a, b, tmp_path / "out", "0.5", copies_missing=True)
    assert read_all(tmp_path / "out")["ln.weight"].tolist() == [1, 1, 1]
    base = {**plain, "q.weight": np.ones((6, 8), F32)}
    for forms in (ADAPTERS["peft"], ADAPTERS["loralib"], QUANTIZED["scale_weight"]):
        a, b = write_two(tmp_path, base, arrays(forms, 2))
        with pytest.raises(IncompatibleCheckpointsError, match="the interpolation of a weight"):
            merge(a, b, tmp_path / "no", "0.5", copies_missing=True, dtype="float32")


LAYERS: dict[str, Parts] = {
    "two layers of a bottleneck": parts(
        adapter__down__weight=(2, 8), adapter__down__bias=(2,), adapter__up__weight=(8, 2),
        adapter__up__bias=(8,), fc__weight=(8, 8),
    ),
    "bottleneck without bias": parts(down__weight=(2, 8), up__weight=(8, 2), fc__weight=(9, 9)),
    "squeeze and excitation": parts(se__fc1__weight=(2, 8, 1, 1), se__fc2__weight=(8, 2, 1, 1)),
    "MLP": parts(mlp__c_fc__weight=(32, 8), mlp__c_proj__weight=(8, 32)),
    "low-rank attention with a norm": parts(
        attn__q_a_proj__weight=(2, 8), attn__q_a_layernorm__weight=(2,),
        attn__q_b_proj__weight=(12, 2), attn__o_proj__weight=(8, 12),
    ),
    "DLA": parts(base_layer__0__weight=(4, 3, 7, 7), base_layer__1__weight=(4,)),
    "plain float8": {"q.weight": ((6, 8), F8), "q.bias": ((6,), F32), "logit_scale": ((), F32)},
    "Swin V2": {"attn.qkv.weight": ((6, 8), F8), "attn.logit_scale": ((2, 1, 1), F32)},
    "a model called lora": {"lora_model.visual.conv1.weight": ((6, 3, 2, 2), F32)},
    "counters": {"bn.num_batches_tracked": ((), np.int64), "counts": ((1000,), np.int64)},
}  # fmt: skip


@pytest.mark.parametrize("form", LAYERS.values(), ids=LAYERS.keys())
def test_layers_that_resemble_factors_are_merged(tmp_path: Path, form: Parts) -> None:
    a, b = write_two(tmp_path, arrays(form, 1), arrays(form, 2))
    merge(a, b, tmp_path / "out", "0.5")
    with open_checkpoint(a) as reader:
        assert find_factored_weights(reader.tensors) == []

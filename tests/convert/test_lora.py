"""An adapter read as a checkpoint is the model that PEFT's own merge gives."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.shards import is_adapter
from wiseft_cli.convert.lora import open_adapter
from wiseft_cli.errors import CheckpointError, IncompatibleCheckpointsError

# peft and transformers write configs that are read here; they warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """One layer of each kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.square = nn.Linear(24, 24)
        self.wide = nn.Linear(24, 150)
        self.conv1d = Conv1D(36, 24)
        self.square1d = Conv1D(24, 24)
        self.embedding = nn.Embedding(150, 24)
        self.conv = nn.Conv2d(3, 8, 3)
        self.attention = nn.MultiheadAttention(24, 2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def make_adapter(
    folder: Path, *, targets: list[str], dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, torch.Tensor]:
    """Write base.safetensors and adapter/, and return the tensors of PEFT's merge."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = Net().to(dtype)
    save_file({n: at.clone() for n, at in base.state_dict().items()}, folder / "base.safetensors")
    options = {"init_lora_weights": False, **options}
    model = get_peft_model(base, LoraConfig(target_modules=targets, **options))
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(1)
    model.save_pretrained(folder / "adapter")
    return model.merge_and_unload().state_dict()


def merged_arrays(folder: Path, adapter: str = "adapter") -> dict[str, np.ndarray]:
    with (
        open_checkpoint(folder / "base.safetensors") as base,
        open_adapter(folder / adapter, base) as reader,
    ):
        return {name: reader.read_array(name) for name in reader.tensors}


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (["square", "wide"], {}),
        (["square", "conv", "embedding"], {"r": 4, "lora_alpha": 16, "use_rslora": True}),
        (["conv1d", "square1d"], {"fan_in_fan_out": True}),
        (["wide"], {"modules_to_save": ["head"]}),
        (
            ["square", "wide", "conv"],
            {"rank_pattern": {"wide": 3, "^square$": 5}, "alpha_pattern": {"square": 7}},
        ),
    ],
    ids=["plain", "rslora", "fan_in_fan_out", "modules_to_save", "patterns"],
)
def test_the_model_equals_the_merge_of_peft(
    tmp_path: Path, targets: list[str], options: dict[str, Any]
) -> None:
    expected = make_adapter(tmp_path, targets=targets, **options)
    found = merged_arrays(tmp_path)
    base = load_file(tmp_path / "base.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=1e-6, atol=1e-6, err_msg=name)
        changed = [*targets, *options.get("modules_to_save", [])]
        changes = name.partition(".")[0] in changed
        if not changes or name.endswith(".bias"):
            assert found[name].tobytes() == expected[name].numpy().tobytes(), name
        elif "head" not in name:
            assert not np.array_equal(found[name], base[name].numpy()), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_from_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    make_adapter(tmp_path, targets=["wide"], dtype=dtype)
    base = load_file(tmp_path / "base.safetensors")["wide.weight"].double()
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.wide.lora_{at}.weight"].double() for at in "AB")
    expected = base + b @ a
    found = merged_arrays(tmp_path)["wide.weight"].astype(np.float64)
    spacing = 2.0 ** (torch.log2(expected.abs()).floor() - (7 if dtype == torch.bfloat16 else 10))
    assert (torch.from_numpy(found) - expected).abs().le(0.5 * spacing + 1e-6).all()


def test_the_bytes_do_not_depend_on_the_reads(tmp_path: Path) -> None:
    make_adapter(tmp_path, targets=["wide"])
    with (
        open_checkpoint(tmp_path / "base.safetensors") as base,
        open_adapter(tmp_path / "adapter", base) as reader,
    ):
        whole = reader.read_array("wide.weight").tobytes()
        for step in (4, 52, 96, 6144, 10_000):
            data = bytearray(len(whole))
            for offset in reversed(range(0, len(data), step)):
                reader.read_into("wide.weight", memoryview(data)[offset : offset + step], offset)
            assert bytes(data) == whole


def add_to_adapter(folder: Path, name: str, saved_modules: list[str] | None) -> None:
    """Add a tensor that the base model lacks, and set modules_to_save."""
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file({**load_file(weights), name: torch.ones(2, 2)}, weights)
    document = {**json.loads(config.read_text()), "modules_to_save": saved_modules}
    config.write_text(json.dumps(document))


@pytest.mark.parametrize("saved_modules", [None, ["head"], ["lassifier"]])
def test_a_saved_tensor_that_the_base_lacks_is_a_fault(
    tmp_path: Path, saved_modules: list[str] | None
) -> None:
    make_adapter(tmp_path, targets=["wide"])
    add_to_adapter(tmp_path / "adapter", "base_model.model.classifier.weight", saved_modules)
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        merged_arrays(tmp_path)
    message = "base_model.model.classifier.weight: the base model has no classifier.weight"
    assert message in str(caught.value)


def test_a_module_to_save_may_be_new(tmp_path: Path) -> None:
    make_adapter(tmp_path, targets=["wide"])
    name = "base_model.model.classifier.weight"
    add_to_adapter(tmp_path / "adapter", name, ["classifier"])
    assert merged_arrays(tmp_path)["classifier.weight"].tolist() == [[1, 1], [1, 1]]


def test_a_folder_and_its_weights_file_are_adapters(tmp_path: Path) -> None:
    make_adapter(tmp_path, targets=["wide"])
    assert is_adapter(tmp_path / "adapter")
    assert is_adapter(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "base.safetensors")


def test_weights_saved_by_torch_are_read_too(tmp_path: Path) -> None:
    make_adapter(tmp_path, targets=["wide"])
    before = merged_arrays(tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    after = merged_arrays(tmp_path)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


class TestRejected:
    """Adapters that are not W_0 + scale * B A of this base."""

    @pytest.fixture(autouse=True)
    def adapter(self, tmp_path: Path) -> None:
        make_adapter(tmp_path, targets=["wide", "square"])

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"peft_type": "LOHA"}, "of the type LOHA, expected LORA"),
            ({"use_dora": True}, "use_dora: true"),
            ({"bias": "all"}, "bias: all"),
            ({"lora_bias": True}, "lora_bias: true"),
            ({"init_lora_weights": "pissa_niter_4"}, "changes the base model too"),
            ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
            ({"target_parameters": ["x"]}, "target_parameters"),
            ({"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow: 1"),
            ({"r": 0}, "r is 0"),
            ({"r": "8"}, "r is '8'"),
            ({"r": 4}, "rank 8, expected 4"),
            ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
            ({"rank_pattern": {"(": 8}}, "is not the config"),
            ({"rank_pattern": {"(a+)+$": 8}}, "too complex"),
            ({"rank_pattern": [1]}, "rank_pattern is"),
        ],
    )
    def test_other_settings(self, tmp_path: Path, entries: Any, message: str) -> None:
        change_config(tmp_path, **entries)
        with pytest.raises(CheckpointError, match=r"adapter_config|adapter_model") as caught:
            merged_arrays(tmp_path)
        assert message in caught.value.message

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"peft_type": "LORA"', "[" * 100_000])
    def test_a_damaged_config(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "adapter" / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match="is not the config of a LoRA adapter"):
            merged_arrays(tmp_path)

    def test_another_base(self, tmp_path: Path) -> None:
        change_config(tmp_path, base_model_name_or_path="org/model")
        tensors = load_file(tmp_path / "base.safetensors")
        tensors["wide.weight"] = torch.zeros(149, 24)
        del tensors["square.weight"]
        save_file(tensors, tmp_path / "base.safetensors")
        with pytest.raises(IncompatibleCheckpointsError, match="at 2 places") as caught:
            merged_arrays(tmp_path)
        assert "square: the base model has no square.weight" in caught.value.message
        assert "(149, 24) in the base model, factors (8, 24) and (150, 8)" in caught.value.message
        assert "'org/model'" in (caught.value.hint or "")

    def test_half_a_pair(self, tmp_path: Path) -> None:
        weights = tmp_path / "adapter" / "adapter_model.safetensors"
        tensors = load_file(weights)
        tensors.pop("base_model.model.wide.lora_B.weight")
        tensors["base_model.model.wide.lora_magnitude_vector"] = torch.zeros(150)
        save_file(tensors, weights)
        with pytest.raises(IncompatibleCheckpointsError) as caught:
            merged_arrays(tmp_path)
        assert "wide: has only base_model.model.wide.lora_A.weight" in caught.value.message
        assert "lora_magnitude_vector: not a factor of a plain LoRA" in caught.value.message

    def test_no_weights(self, tmp_path: Path) -> None:
        os.remove(tmp_path / "adapter" / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match="an adapter without weights"):
            merged_arrays(tmp_path)


def test_the_output_projection_of_multihead_attention_is_rejected(tmp_path: Path) -> None:
    make_adapter(tmp_path, targets=["attention"])
    with pytest.raises(
        IncompatibleCheckpointsError, match=r"out_proj of an nn\.MultiheadAttention"
    ):
        merged_arrays(tmp_path)

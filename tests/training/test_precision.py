from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_finetune import run
from tests.training.tiny import random_classifier, write_images, write_zeroshot
from wiseft_cli.compute.precision import deterministic_algorithms
from wiseft_cli.errors import RecipeError
from wiseft_cli.training.modes import enable_grad_checkpointing


def test_grad_checkpointing_gives_the_same_update(tmp_path, zeroshot, train_folder):
    plain = run(zeroshot, train_folder, tmp_path / "a.safetensors")
    saved = run(zeroshot, train_folder, tmp_path / "b.safetensors", grad_checkpointing=True)
    expected, found = load_file(plain), load_file(saved)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_grad_checkpointing_is_rejected_if_the_encoder_ignores_it():
    with pytest.raises(RecipeError, match=r"^grad_checkpointing: the image encoder \(ModifiedRes"):
        enable_grad_checkpointing(random_classifier("resnet"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_half_precision_stays_close_to_float32_with_float32_weights(
    tmp_path, zeroshot, train_folder, precision, freeze
):
    steps = {}
    for kind in ("fp32", precision):
        output = tmp_path / f"{kind}.safetensors"
        run(zeroshot, train_folder, output, precision=kind, freeze=freeze, lr=1e-4)
        steps[kind] = load_file(output)
    for name, tensor in steps["fp32"].items():
        assert steps[precision][name].dtype == torch.float32
        torch.testing.assert_close(steps[precision][name], tensor, rtol=0, atol=2e-3)


def test_deterministic_algorithms_are_set_and_restored():
    cpu = torch.device("cpu")
    with deterministic_algorithms(True, cpu):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_batch_norm_rejects_a_forward_pass_of_one_image(tmp_path):
    zeroshot = write_zeroshot(tmp_path / "zeroshot.safetensors", "resnet")
    train = write_images(tmp_path / "train", (3, 3, 3))
    with pytest.raises(RecipeError, match="a batch of each epoch has a single image"):
        run(zeroshot, train, tmp_path / "o.safetensors", batch_size=5, micro_batch_size=2)

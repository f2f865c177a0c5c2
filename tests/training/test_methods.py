"""Methods for better end points: their formulas, in float64, against torch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.training.plain_loop import KEYS, PlainClassifier, load_all, train_plainly
from tests.training.test_equivalence import Weights, steps_of
from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.errors import RecipeError
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.training.batches import Purpose, derive_seed, epoch_order
from wiseft_cli.training.methods import (
    AnchoredWeights,
    divergence,
    layer_lr_scales,
    update_average,
)
from wiseft_cli.training.modes import enable_drop_path
from wiseft_cli.training.recipe import Recipe, resolve

RECIPE = {**KEYS, "label_smoothing": 0.0}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """A zero-shot checkpoint and its training images, beside each other."""
    return write_zeroshot(tmp_path / "vit.safetensors"), write_images(tmp_path / "train")


def six_steps(folder: Path, **keys: Any) -> Weights:
    return steps_of(folder, **{**RECIPE, **keys})[0]


def assert_equal_weights(found: Weights, model: nn.Module) -> None:
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_l2_sp_is_half_its_strength_times_the_squared_distance(tmp_path, data):
    def penalty(model: nn.Module, start: nn.Module, _: torch.Tensor) -> torch.Tensor:
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        return 0.35 * sum(((weight - anchor) ** 2).sum() for weight, anchor in pairs)

    plain = train_plainly(*data, "vit", loss=penalty)
    found = six_steps(tmp_path, l2_sp=0.7)
    assert_equal_weights(found, plain)
    assert_equal_weights(six_steps(tmp_path, l2_sp=0.7, micro_batch_size=5), plain)


def test_distillation_adds_the_divergence_from_the_predictions_at_the_start(tmp_path, data):
    def penalty(model: nn.Module, start: nn.Module, images: torch.Tensor) -> torch.Tensor:
        target = start(images).softmax(dim=1)
        logs = target.log() - model(images).softmax(dim=1).log()
        return 0.4 * (target * logs).sum(dim=1).mean()

    plain = train_plainly(*data, "vit", loss=penalty)
    assert_equal_weights(six_steps(tmp_path, distill=0.4), plain)
    assert_equal_weights(six_steps(tmp_path, distill=0.4, micro_batch_size=5), plain)


def test_spd_pulls_back_the_tensors_whose_loss_rises_along_their_deviation(tmp_path, data):
    n_pulled = []

    @torch.no_grad()
    def pull(model: nn.Module, before: nn.Module, start: nn.Module) -> None:
        rows = zip(model.parameters(), before.parameters(), start.parameters(), strict=True)
        for weight, old, anchor in rows:
            if (old.grad * (old - anchor)).sum() > 0:
                new_distance = (weight - anchor).norm()
                ratio = (new_distance - (old - anchor).norm()) / new_distance
                weight -= 0.9 * min(max(float(ratio), 0.0), 1.0) * (weight - anchor)
                n_pulled.append(float(ratio) > 0)

    plain = train_plainly(*data, "vit", after=pull, weight_decay=0.0)
    assert sum(n_pulled) > 5
    assert_equal_weights(six_steps(tmp_path, spd=0.9, weight_decay=0.0), plain)


def test_layer_decay_scales_the_learning_rate_of_each_block(tmp_path, data):
    def scale(name: str) -> float:
        if ".resblocks." in name:
            return 0.6 ** (2 - int(name.split(".resblocks.")[1][0]))
        stem = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
        return 0.6**3 if any(f"visual.{part}" in name for part in stem) else 1.0

    plain = train_plainly(*data, "vit", lr_scale=scale)
    assert_equal_weights(six_steps(tmp_path, layer_decay=0.6), plain)


def test_cosine_ends_at_min_lr(tmp_path, data):
    plain = train_plainly(*data, "vit", min_lr=4e-4)
    assert_equal_weights(six_steps(tmp_path, min_lr=4e-4), plain)


@pytest.mark.parametrize("half_life", [1, 3, 50])
def test_average_has_the_closed_form(half_life):
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(12, 4, generator=generator)
    average = {"w": torch.full((4,), math.nan), "n": torch.tensor(0)}
    average["w"] = steps[0].clone()  # any finite value: it has no part
    decay = 2 ** (-1 / half_life)
    for t in range(1, 13):
        now = {"w": steps[t - 1], "n": torch.tensor(t)}
        update_average(average, now, steps_done=t, half_life=half_life)
        powers = torch.tensor([decay ** (t - s) for s in range(1, t + 1)])
        expected = (powers[:, None] * steps[:t]).sum(dim=0) / powers.sum()
        torch.testing.assert_close(average["w"], expected, rtol=0, atol=1e-13)
        assert average["n"] == t


def test_spd_on_a_hand_made_case():
    # d_old 5, d_new 10: half of the new deviation is pulled back, if the loss rises along it.
    recipe = resolve(Recipe(spd=1.0, weight_decay=0.0), 10)
    for sign, expected in ((1.0, [3.0, 4.0]), (-1.0, [6.0, 8.0])):
        weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        weight.grad = sign * torch.tensor([1.0, 1.0])
        anchored = AnchoredWeights(recipe, [weight], [torch.zeros(2)])
        anchored.before_update()
        weight.data.mul_(2)
        anchored.after_update()
        assert weight.tolist() == expected
    # At the anchor, and for a tensor without a gradient, nothing is pulled.
    weight = nn.Parameter(torch.zeros(2))
    anchored = AnchoredWeights(recipe, [weight], [torch.zeros(2)])
    anchored.before_update()
    anchored.after_update()
    assert weight.tolist() == [0.0, 0.0]


def test_divergence_is_zero_only_for_equal_predictions():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert float(divergence(logits, logits + 3.0)) == pytest.approx(0, abs=1e-12)
    assert float(divergence(logits, logits.flip(1))) > 0.1


@pytest.mark.parametrize("micro_batch_size", [12, 5])
def test_drop_path_leaves_out_branches_of_images(tmp_path, data, micro_batch_size, monkeypatch):
    n_images = [12] if micro_batch_size == 12 else [5, 5, 2]
    plain = PlainClassifier(data[0], "vit").double().train()
    rates = [0.0, 0.4]  # linear over the two blocks
    generators = iter(range(6))

    def run_blocks(x: torch.Tensor) -> torch.Tensor:
        for block, rate in zip(plain.visual.transformer.resblocks, rates, strict=True):
            for branch in (
                lambda x, b=block: b.attention(b.ln_1(x)),
                lambda x, b=block: b.mlp(b.ln_2(x)),
            ):
                kept = torch.ones(len(x), 1, 1)
                if rate:
                    kept = torch.empty(len(x), 1, 1).bernoulli_(1 - rate) / (1 - rate)
                x = x + kept * branch(x)
        return x

    plain.visual.transformer.forward = lambda x, **_: run_blocks(x)
    images, labels = load_all(data[1], "vit")
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.1)
    recipe = resolve(Recipe(**KEYS), 12)
    for step in generators:
        torch.manual_seed(derive_seed(0, Purpose.STOCHASTIC_LAYERS, step))
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 6))
        optimizer.zero_grad()
        for rows in epoch_order(recipe, step).split(n_images):
            loss = nn.CrossEntropyLoss(reduction="sum")(plain(images[rows]), labels[rows]) / 12
            loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    found = six_steps(tmp_path, drop_path=0.4, micro_batch_size=micro_batch_size)
    assert_equal_weights(found, plain)


def test_drop_path_acts_in_training_alone_and_keeps_the_names(tmp_path, data):
    classifier, _ = load_classifier(data[0])
    names = list(classifier.state_dict())
    images = torch.randn(4, 3, 16, 16, dtype=torch.float32)
    before = classifier(images)
    enable_drop_path(classifier, 0.9)
    assert torch.equal(classifier(images), before)
    assert list(classifier.state_dict()) == names
    assert not torch.equal(classifier.train()(images), before)


def test_drop_path_acts_on_towers_of_timm():
    tower = timm.create_model("test_vit", num_classes=0)
    module = nn.Module()
    module.visual = tower
    enable_drop_path(module, 0.3)
    rates = [block.drop_path1.drop_prob for block in tower.blocks]
    assert rates == pytest.approx([0.3 * at / (len(rates) - 1) for at in range(len(rates))])


def test_drop_path_is_rejected_for_an_encoder_without_residual_blocks(tmp_path):
    classifier, _ = load_classifier(write_zeroshot(tmp_path / "r", "resnet"))
    with pytest.raises(
        RecipeError, match=r"drop_path: the image encoder \(ModifiedResNet\) has no"
    ):
        enable_drop_path(classifier, 0.1)


NAMES = {
    "resnet": "conv1.weight layer1.0.bn1.bias layer1.1.bn1.bias layer2.0.conv1.weight"
    " attnpool.q_proj.bias attnpool.positional_embedding",
    "timm vit": "trunk.patch_embed.proj.weight trunk.blocks.0.norm1.bias trunk.blocks.1.norm1.bias"
    " trunk.blocks.2.mlp.fc1.bias trunk.norm.weight head.proj.weight",
    "convnext": "trunk.stem.0.weight trunk.stages.0.blocks.0.gamma"
    " trunk.stages.1.downsample.0.weight trunk.stages.1.blocks.1.gamma trunk.head.norm.weight"
    " head.proj.weight",
    "open_clip vit": "class_embedding transformer.resblocks.0.ln_1.bias"
    " transformer.resblocks.1.ln_1.bias transformer.resblocks.2.ln_1.bias proj ln_post.weight",
    "hybrid vit": "trunk.patch_embed.backbone.stem.conv.weight"
    " trunk.patch_embed.backbone.stages.0.blocks.0.norm1.bias trunk.blocks.0.norm1.bias"
    " trunk.blocks.1.norm1.bias trunk.norm.weight head.proj.weight",
    "efficientnet": "trunk.bn1.weight trunk.blocks.0.0.bn1.bias trunk.blocks.0.1.bn1.bias"
    " trunk.blocks.1.0.bn1.bias trunk.conv_head.weight head.proj.weight",
}
"""Names of tensors below `visual.`: the stem, three blocks, and two that follow the blocks."""


@pytest.mark.parametrize("family", NAMES)
def test_layers_are_numbered_in_every_family(family):
    names = [f"visual.{name}" for name in NAMES[family].split()]
    names.append("classification_head.weight")
    assert layer_lr_scales(names, 0.5) == [0.0625, 0.125, 0.25, 0.5, 1, 1, 1]


def test_encoder_without_numbered_blocks_has_no_layer_decay():
    with pytest.raises(RecipeError, match="no numbered blocks"):
        layer_lr_scales(["visual.proj", "classification_head.bias"], 0.5)


@pytest.mark.parametrize(
    "keys",
    [
        {"l2_sp": 0.0, "spd": 0.0, "distill": 0.0},
        {"min_lr": 0.0, "layer_decay": 1.0, "ema": 0},
        {"ema": 0.5},
        {"mixup": 0.0, "cutmix": 0.0, "randaugment": 0, "random_erasing": 0.0, "drop_path": 0.0},
    ],
)
def test_switch_at_zero_and_the_average_change_no_bit_of_the_steps(tmp_path, data, keys):
    default = six_steps(tmp_path)
    found = six_steps(tmp_path, **keys)
    assert all(torch.equal(found[name], default[name]) for name in default)

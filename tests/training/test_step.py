from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from wiseft_cli.compute.precision import build_scaler
from wiseft_cli.errors import RecipeError
from wiseft_cli.training.batches import MicroBatches
from wiseft_cli.training.features import Features, feature_batches
from wiseft_cli.training.optimizer import build_optimizer
from wiseft_cli.training.recipe import Recipe, ResolvedRecipe, resolve
from wiseft_cli.training.step import mean_loss_share, run_steps

CPU = torch.device("cpu")
N_IMAGES = 11


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(N_IMAGES, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 4, (N_IMAGES,), generator=generator)


def make_model(*, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4)]
        return nn.Sequential(*layers).double()


def run(model: nn.Module, recipe: ResolvedRecipe, **options):
    inputs, targets = make_data()
    batches = feature_batches(all_readable(inputs), targets, MicroBatches(recipe))
    optimizer = build_optimizer(list(model.parameters()), recipe)
    return list(run_steps(model, optimizer, batches, recipe, **options))


def all_readable(values: torch.Tensor) -> Features:
    return Features(values, torch.ones(len(values), dtype=torch.bool))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_steps_equal_adamw_written_by_hand():
    recipe = resolve(Recipe(epochs=6, batch_size=N_IMAGES, lr=0.01, label_smoothing=0.1), N_IMAGES)
    model, twin = make_model(), make_model()
    reports = run(model, recipe)
    inputs, targets = make_data()
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in twin.parameters()]
    for step in range(6):
        twin.zero_grad()
        log_p = torch.log_softmax(twin(inputs), dim=1)
        smooth = 0.9 * torch.eye(4, dtype=torch.float64)[targets] + 0.1 / 4
        loss = -(smooth * log_p).sum(dim=1).mean()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters()))
        lr = 0.01 * (1 + math.cos(math.pi * step / 6)) / 2
        with torch.no_grad():
            for p, (m, v) in zip(twin.parameters(), moments, strict=True):
                grad = p.grad * min(1.0, 1.0 / (norm + 1e-6))
                m.mul_(0.9).add_(0.1 * grad)
                v.mul_(0.999).add_(0.001 * grad**2)
                p.mul_(1 - lr * 0.1)
                m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                p.sub_(lr * m_hat / (v_hat.sqrt() + 1e-8))
        assert reports[step].loss == pytest.approx(float(loss.detach()), rel=1e-12)
        assert reports[step].grad_norm == pytest.approx(norm, rel=1e-12)
        assert reports[step].lr == pytest.approx(lr, rel=1e-12)
    torch.testing.assert_close(weights(model), weights(twin), rtol=0, atol=1e-12)


def test_steps_of_lion_equal_its_paper():
    keys = {"optimizer": "lion", "betas": (0.9, 0.99), "weight_decay": 0.3, "schedule": "constant"}
    recipe = resolve(Recipe(steps=6, batch_size=N_IMAGES, lr=0.01, warmup=0, **keys), N_IMAGES)
    model, twin = make_model(), make_model()
    run(model, recipe)
    inputs, targets = make_data()
    moments = [torch.zeros_like(p) for p in twin.parameters()]
    for _ in range(6):
        twin.zero_grad()
        nn.functional.cross_entropy(twin(inputs), targets).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        with torch.no_grad():
            for p, m in zip(twin.parameters(), moments, strict=True):
                update = (0.9 * m + 0.1 * p.grad).sign()
                p.sub_(0.01 * (update + 0.3 * p))
                m.mul_(0.99).add_(0.01 * p.grad)
    torch.testing.assert_close(weights(model), weights(twin), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_accumulated_passes_equal_the_whole_batch(size):
    keys = {"epochs": 4, "batch_size": 6, "lr": 0.01, "label_smoothing": 0.1}
    whole, divided = make_model(), make_model()
    reports = run(whole, resolve(Recipe(**keys), N_IMAGES))
    others = run(divided, resolve(Recipe(**keys, micro_batch_size=size), N_IMAGES))
    torch.testing.assert_close(weights(whole), weights(divided), rtol=0, atol=1e-10)
    assert [r.n_images for r in reports] == [r.n_images for r in others] == [6, 5] * 4
    assert [r.loss for r in reports] == pytest.approx([r.loss for r in others], abs=1e-10)


def test_weight_decay_applies_to_every_tensor_with_a_gradient():
    recipe = resolve(Recipe(epochs=3, batch_size=N_IMAGES, lr=0.5, clip_grad_norm=0), N_IMAGES)
    bias = nn.Parameter(torch.ones(4, dtype=torch.float64))
    inputs, targets = make_data()
    batches = feature_batches(all_readable(inputs), targets, MicroBatches(recipe))
    # A gradient of zero leaves the decay as the only thing that moves the tensor.
    logits = torch.zeros(N_IMAGES, 4, dtype=torch.float64)
    reports = list(
        run_steps(
            lambda _: logits + 0 * bias,
            build_optimizer([bias], recipe),
            batches,
            recipe,
        )
    )
    expected = math.prod(1 - report.lr * 0.1 for report in reports)
    torch.testing.assert_close(bias.detach(), torch.full((4,), expected, dtype=torch.float64))


def test_loss_shares_of_any_division_add_up_to_the_mean():
    logits, targets = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 4
    whole = nn.functional.cross_entropy(logits, targets, label_smoothing=0.2)
    parts = [
        mean_loss_share(logits[a:b], targets[a:b], 7, label_smoothing=0.2)
        for a, b in ((0, 1), (1, 5), (5, 7))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_random_layers_depend_only_on_the_seed_and_the_step():
    first, again, other = (make_model(dropout=0.5) for _ in range(3))
    recipe = resolve(Recipe(epochs=2, batch_size=4, lr=0.01), N_IMAGES)
    run(first, recipe)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        run(again, recipe)
    run(other, resolve(Recipe(epochs=2, batch_size=4, lr=0.01, seed=1), N_IMAGES))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_overflowing_fp16_step_is_skipped_and_lowers_the_scale():
    model = make_model()
    recipe = resolve(Recipe(epochs=2, batch_size=N_IMAGES, lr=0.01, precision="fp16"), N_IMAGES)
    inputs, targets = make_data()
    batches = feature_batches(all_readable(inputs), targets, MicroBatches(recipe))
    optimizer = build_optimizer(list(model.parameters()), recipe)
    scaler = build_scaler("fp16", CPU)
    scale, passes = scaler.get_scale(), iter(range(2))

    def logits_of(values: torch.Tensor) -> torch.Tensor:
        logits = model(values)
        if next(passes) == 1:  # a finite loss with a gradient that is not
            logits.register_hook(lambda gradient: gradient * math.inf)
        return logits

    steps = run_steps(logits_of, optimizer, batches, recipe, scaler=scaler)
    assert not next(steps).is_skipped
    before, state = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    report = next(steps)
    assert report.is_skipped
    assert math.isfinite(report.loss)
    assert torch.equal(weights(model), before)
    for number, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, state[number][name]), name
    assert scaler.get_scale() == scale / 2


def test_nonfinite_loss_raises_before_the_weights_change():
    model = make_model()
    recipe = resolve(Recipe(epochs=2, batch_size=8, lr=0.01), N_IMAGES)
    with torch.no_grad():
        model[0].bias[0] = math.nan
    before = weights(model)
    with pytest.raises(RecipeError) as caught:
        run(model, recipe)
    assert caught.value.message == (
        "training diverged at step 1 of 4 (epoch 1): loss nan, gradient norm nan,"
        " expected both finite; no checkpoint was written"
    )
    assert caught.value.hint == "lower --lr (now 0.01) or lengthen --warmup (now 0 steps)"
    assert torch.equal(weights(model).nan_to_num(), before.nan_to_num())


def test_features_computed_once_give_the_steps_of_an_encoder_in_every_step():
    recipe = resolve(Recipe(epochs=3, batch_size=4, lr=0.01, freeze="encoder"), N_IMAGES)
    encoder = make_model()[:2].eval().requires_grad_(False)
    cached, head = make_model()[3], make_model()[3]
    inputs, targets = make_data()
    for logits_of, values, layer in (
        (cached, encoder(inputs), cached),
        (lambda x: head(encoder(x)), inputs, head),
    ):
        batches = feature_batches(all_readable(values), targets, MicroBatches(recipe))
        optimizer = build_optimizer(list(layer.parameters()), recipe)
        list(run_steps(logits_of, optimizer, batches, recipe))
    torch.testing.assert_close(weights(cached), weights(head), rtol=0, atol=1e-10)

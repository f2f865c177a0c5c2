from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.errors import RecipeError
from wiseft_cli.training.batches import span_of
from wiseft_cli.training.recipe import FEW_STEPS, Recipe, recipe_warnings, resolve


def test_defaults_are_those_of_the_paper():
    recipe = resolve(Recipe(), 1_281_167)
    assert recipe.as_mapping() == {
        "epochs": 10,
        "steps": 25030,
        "batch_size": 512,
        "micro_batch_size": 512,
        "optimizer": "adamw",
        "schedule": "cosine",
        "precision": "fp32",
        "lr": 3e-5,
        "weight_decay": 0.1,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "warmup_steps": 500,
        "clip_grad_norm": 1.0,
        "label_smoothing": 0.0,
        "freeze": "none",
        "batch_norm": "train",
        "augment": "crop",
        "grad_checkpointing": False,
        "deterministic": False,
    }
    assert recipe.seed == 0
    assert recipe_warnings(recipe) == ()


def test_mapping_for_the_card_survives_json():
    mapping = resolve(Recipe(lr=1e-3), 1000).as_mapping()
    assert json.loads(json.dumps(mapping)) == mapping


@pytest.mark.parametrize(("n_images", "warmup"), [(64, 1), (63, 0), (640, 10), (64 * 6000, 500)])
def test_default_warmup_is_a_tenth_of_the_steps_and_at_most_500(n_images, warmup):
    recipe = resolve(Recipe(epochs=10 if n_images != 63 else 9, batch_size=64), n_images)
    assert recipe.warmup == warmup


@pytest.mark.parametrize(("warmup", "percent"), [(4, "100"), (5, "80"), (500, "0.8")])
def test_warmup_as_long_as_the_run_is_a_warning(warmup, percent):
    recipe = resolve(Recipe(epochs=2, batch_size=5, warmup=warmup), 10)
    assert recipe.warmup == warmup
    assert recipe_warnings(recipe)[0] == (
        f"the warm-up of {warmup} steps is not shorter than the run of 4: the learning rate rises"
        f" to {percent} % of lr and never falls; --warmup 0.1 would be a tenth of the run"
    )
    assert "warm-up" not in recipe_warnings(resolve(Recipe(steps=4, warmup=3), 10))[0]


def test_methods_are_in_the_card_only_if_they_are_on():
    default = resolve(Recipe(), 1000).as_mapping()
    on = resolve(Recipe(ema=0.5, l2_sp=0.25), 1000)
    assert on.methods == ("ema", "l2_sp")
    assert on.as_mapping() == {**default, "ema": 10, "l2_sp": 0.25}
    assert resolve(Recipe(ema=0.001), 1000).ema == 1


def test_half_life_longer_than_the_run_is_a_warning():
    warnings = recipe_warnings(resolve(Recipe(steps=100, batch_size=4, ema=101), 10))
    assert warnings == (
        "the half-life of ema, 101 steps, is longer than the run of 100: the average is close to"
        " the plain mean of all steps",
    )


def test_last_batch_of_an_epoch_is_kept():
    recipe = resolve(Recipe(epochs=3, batch_size=4), 9)
    assert (recipe.steps, recipe.steps_per_epoch, recipe.last_batch_size) == (9, 3, 1)


@pytest.mark.parametrize(("share", "warmup"), [(0.29, 29), (0.1, 10), (0.999, 99), (0.0, 0)])
def test_fractional_warmup_is_the_exact_decimal_fraction_of_the_run(share, warmup):
    recipe = resolve(Recipe(steps=100, batch_size=4, warmup=share), 10)
    assert recipe.warmup == warmup


@given(st.integers(1, 500), st.integers(1, 100), st.integers(1, 80))
def test_run_draws_as_many_images_as_its_batches_hold(n_images, steps, batch_size):
    recipe = resolve(Recipe(steps=steps, batch_size=batch_size), n_images)
    spans = [span_of(step, recipe) for step in range(steps)]
    assert recipe.images_drawn(steps) == sum(span.n_images for span in spans)
    assert recipe.epochs == spans[-1].epoch + 1
    assert recipe.steps == steps


def test_frozen_encoder_decides_augmentation_and_batch_norm():
    recipe = resolve(Recipe(freeze="encoder"), 100)
    assert (recipe.augment, recipe.batch_norm) == ("none", "frozen")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epochs": 0}, "recipe: epochs is 0, expected an integer of at least 1"),
        ({"batch_size": 0}, "recipe: batch_size is 0, expected an integer of at least 1"),
        ({"lr": -0.1}, "recipe: lr is -0.1, expected a number above 0, at most 1e+06"),
        ({"lr": float("nan")}, "recipe: lr is nan, expected a number above 0, at most 1e+06"),
        ({"lr": float("inf")}, "recipe: lr is inf, expected a number above 0, at most 1e+06"),
        ({"weight_decay": -1.0}, "recipe: weight_decay is -1.0, expected a number of at least 0"),
        ({"betas": (0.9, 1.0)}, "recipe: betas is (0.9, 1.0), expected two numbers in [0, 1)"),
        (
            {"warmup": -1},
            "recipe: warmup is -1, expected a number of steps, or a fraction of the run below 1",
        ),
        ({"label_smoothing": 1.0}, "recipe: label_smoothing is 1.0, expected a number in [0, 1)"),
        ({"seed": -1}, "recipe: seed is -1, expected an integer from 0 to 4294967295"),
        ({"freeze": "all"}, "recipe: freeze is 'all', expected one of none, encoder, head"),
        (
            {"micro_batch_size": 8, "batch_size": 4},
            "recipe: micro_batch_size is 8, expected at most batch_size (4)",
        ),
        (
            {"freeze": "encoder", "augment": "crop"},
            "recipe: augment is 'crop' with freeze 'encoder', expected 'none':"
            " each image's features are computed once",
        ),
        (
            {"freeze": "encoder", "batch_norm": "train"},
            "recipe: batch_norm is 'train' with freeze 'encoder', expected 'frozen':"
            " the encoder is not trained",
        ),
        (
            {"freeze": "encoder", "grad_checkpointing": True},
            "recipe: grad_checkpointing is True with freeze 'encoder', expected False:"
            " no gradient passes through the encoder",
        ),
        (
            {"epochs": 3, "steps": 4},
            "recipe: epochs is 3 and steps is 4; give one of the two, not both",
        ),
        (
            {"min_lr": 1e-6, "schedule": "constant"},
            "recipe: min_lr is 1e-6 with schedule constant: there is no cosine to end",
        ),
        ({"min_lr": 1e-3}, "recipe: min_lr is 0.001 with lr 3e-5: the cosine falls"),
        (
            {"spd": 1.0},
            "recipe: spd is 1 with weight_decay 0.1: SPD replaces weight decay",
        ),
        (
            {"spd": 1.0, "weight_decay": 0.0, "l2_sp": 0.1},
            "recipe: spd is 1 with l2_sp 0.1: SPD is the selective form of L2-SP",
        ),
        (
            {"layer_decay": 0.0},
            "recipe: layer_decay is 0.0, expected a number above 0, at most 1 (1 for none)",
        ),
        (
            {"ema": 1.5},
            "recipe: ema is 1.5, expected a number of steps, or a fraction of the run below 1"
            " (0 for none)",
        ),
        (
            {"freeze": "encoder", "distill": 0.5},
            "recipe: distill is 0.5 with freeze 'encoder', expected 0.0:"
            " the encoder is not trained",
        ),
        ({"schedule": "step"}, "recipe: schedule is 'step', expected one of cosine, constant"),
        ({"precision": "fp8"}, "recipe: precision is 'fp8', expected one of fp32, bf16, fp16"),
        (
            {"epochs": 0, "lr": 0.0},
            "recipe: 2 keys are wrong:\n"
            "  epochs is 0, expected an integer of at least 1\n"
            "  lr is 0.0, expected a number above 0, at most 1e+06",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_value_out_of_range_is_rejected_with_the_range(keys, message):
    with pytest.raises(RecipeError) as caught:
        Recipe(**keys)
    assert caught.value.message == message


def test_batch_larger_than_the_training_set_is_a_warning():
    assert recipe_warnings(resolve(Recipe(batch_size=512, epochs=100), 30)) == (
        "the batch size 512 is larger than the training set (30 images): every step uses all of it",
    )


def test_few_steps_are_a_warning_that_proposes_a_batch_size():
    assert recipe_warnings(resolve(Recipe(epochs=10, batch_size=512), 2000)) == (
        "only 40 optimizer steps; --batch-size 128 would make 160",
    )


def test_few_images_are_a_warning_that_proposes_epochs():
    assert recipe_warnings(resolve(Recipe(epochs=1, batch_size=2), 30)) == (
        "only 15 optimizer steps; --epochs 7 would make 105",
    )
    assert recipe_warnings(resolve(Recipe(epochs=2, batch_size=32), 64)) == (
        "only 4 optimizer steps; --batch-size 8 --epochs 13 would make 104",
    )


def test_few_steps_of_the_recipe_are_a_warning_that_proposes_steps():
    assert recipe_warnings(resolve(Recipe(steps=50, batch_size=8), 30)) == (
        "only 50 optimizer steps; --steps 100 would make 100",
    )


@given(st.integers(1, 3000), st.integers(1, 12), st.integers(1, 600))
def test_proposed_settings_make_the_number_of_steps_they_name(n_images, epochs, batch_size):
    recipe = resolve(Recipe(epochs=epochs, batch_size=batch_size), n_images)
    for warning in recipe_warnings(recipe):
        words = warning.replace(";", "").split()
        if words[0] != "only":
            continue
        given_options = dict(itertools.pairwise(words))
        proposed = Recipe(
            epochs=int(given_options.get("--epochs", epochs)),
            batch_size=int(given_options.get("--batch-size", batch_size)),
        )
        assert proposed.batch_size >= min(8, batch_size)
        assert resolve(proposed, n_images).steps == int(words[-1]) >= FEW_STEPS

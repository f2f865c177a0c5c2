from __future__ import annotations

import pytest
import torch

from wiseft_cli.training.batches import (
    Draw,
    MicroBatches,
    Purpose,
    derive_seed,
    epoch_order,
    seeded_cpu_generator,
    span_of,
)
from wiseft_cli.training.recipe import Recipe, ResolvedRecipe, resolve


def recipe(**keys: int) -> ResolvedRecipe:
    return resolve(Recipe(**{"epochs": 3, "batch_size": 4, "seed": 1, **keys}), 10)  # type: ignore[arg-type]


def test_each_epoch_draws_each_image_once():
    draws = [draw for batch in MicroBatches(recipe()) for draw in batch]
    assert sorted(draws) == [Draw(epoch, image) for epoch in range(3) for image in range(10)]


def test_last_batch_of_an_epoch_is_smaller_and_no_batch_crosses_epochs():
    assert [len(batch) for batch in MicroBatches(recipe())] == [4, 4, 2] * 3
    assert all(len({draw.epoch for draw in batch}) == 1 for batch in MicroBatches(recipe()))


def test_orders_differ_between_epochs_and_between_seeds():
    orders = [
        tuple(epoch_order(recipe(seed=seed), epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_micro_batches_divide_the_same_steps(size):
    whole = [draw for batch in MicroBatches(recipe()) for draw in batch]
    divided = list(MicroBatches(recipe(micro_batch_size=size)))
    assert [draw for batch in divided for draw in batch] == whole
    assert max(len(batch) for batch in divided) == size


@pytest.mark.parametrize("first_step", range(10))
def test_a_later_first_step_draws_the_remaining_batches(first_step):
    later = list(MicroBatches(recipe(), first_step=first_step))
    assert later == list(MicroBatches(recipe()))[first_step:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shares_of_all_processes_cover_each_image_of_a_step_once(world_size):
    recipe = resolve(Recipe(epochs=2, batch_size=5, micro_batch_size=2), 11)
    for step in range(recipe.steps):
        span = span_of(step, recipe)
        shares = [span.share(rank, world_size) for rank in range(world_size)]
        places = [at for share in shares for at in range(share.start, share.stop)]
        assert places == list(range(span.start, span.stop))
        sizes = [share.n_images for share in shares]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1
        assert all(share.micro_batches for share in shares)


def test_process_without_images_has_one_empty_pass():
    recipe = resolve(Recipe(epochs=1, batch_size=5), 11)
    last = list(MicroBatches(recipe, rank=1, world_size=2))[-1]
    assert span_of(2, recipe).share(1, 2).n_images == 0
    assert last == []


def test_derived_seeds_never_change():
    # A change of these numbers changes every fine-tuned file.
    assert derive_seed(0, Purpose.SHUFFLING, 0) == 496832271
    assert derive_seed(7, Purpose.AUGMENTATION, 3, 1_281_166) == 1200941199


def test_seeds_differ_by_purpose_epoch_and_image():
    seeds = {
        derive_seed(seed, purpose, epoch, image)
        for seed in range(3)
        for purpose in Purpose
        for epoch in range(5)
        for image in range(20)
    }
    assert len(seeds) == 3 * len(Purpose) * 5 * 20
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_global_generator_state_is_restored_after_an_error():
    before = torch.get_rng_state()

    def draw_and_fail() -> None:
        with seeded_cpu_generator(5):
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_random_numbers_depend_on_the_seed():
    drawn = []
    for seed in (5, 5, 6):
        with seeded_cpu_generator(seed):
            drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] != drawn[2]

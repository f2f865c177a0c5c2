from __future__ import annotations

import pytest

from wiseft_cli.training.batches import Draw, MicroBatches, epoch_order, span_of
from wiseft_cli.training.recipe import Recipe, ResolvedRecipe, resolve


def recipe(**keys: int) -> ResolvedRecipe:
    return resolve(Recipe(**{"epochs": 3, "batch_size": 4, "seed": 1, **keys}), 10)  # type: ignore[arg-type]


def test_each_epoch_draws_each_image_once():
    draws = [draw for batch in MicroBatches(recipe()) for draw in batch]
    assert sorted(draws) == [Draw(epoch, image) for epoch in range(3) for image in range(10)]


def test_the_last_batch_of_an_epoch_is_smaller_and_none_crosses_epochs():
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
def test_a_run_that_begins_later_draws_the_rest(first_step):
    later = list(MicroBatches(recipe(), first_step=first_step))
    assert later == list(MicroBatches(recipe()))[first_step:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_shares_of_all_processes_are_the_step_each_image_once(world_size):
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


def test_a_process_without_an_image_has_one_pass_without_a_draw():
    recipe = resolve(Recipe(epochs=1, batch_size=5), 11)
    last = list(MicroBatches(recipe, rank=1, world_size=2))[-1]
    assert span_of(2, recipe).share(1, 2).n_images == 0
    assert last == []

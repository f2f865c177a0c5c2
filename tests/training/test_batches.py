from __future__ import annotations

import pytest

from wiseft_cli.training.batches import Draw, MicroBatches, epoch_order
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

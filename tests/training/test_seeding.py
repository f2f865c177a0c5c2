from __future__ import annotations

import pytest
import torch

from wiseft_cli.training.seeding import Purpose, derive_seed, seeded_cpu_generator


def test_derived_seeds_stay_what_they_are():
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


def test_the_global_generator_gets_its_state_back_even_after_an_error():
    before = torch.get_rng_state()

    def draw_and_fail() -> None:
        with seeded_cpu_generator(5):
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_numbers_within_follow_the_seed():
    drawn = []
    for seed in (5, 5, 6):
        with seeded_cpu_generator(seed):
            drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] != drawn[2]

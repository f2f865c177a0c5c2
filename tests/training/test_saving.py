from __future__ import annotations

import pytest

from wiseft_cli.errors import UsageError
from wiseft_cli.training.saving import (
    DEFAULT_INTERVAL,
    NEVER,
    SaveInterval,
    SaveSchedule,
    parse_save_interval,
)


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        (None, DEFAULT_INTERVAL),
        ("3", SaveInterval(steps=3)),
        ("90s", SaveInterval(seconds=90)),
        ("10m", SaveInterval(seconds=600)),
        ("2h", SaveInterval(seconds=7200)),
        ("never", NEVER),
    ],
)
def test_interval_is_a_number_of_steps_or_a_time(text, interval):
    assert parse_save_interval(text) == interval


@pytest.mark.parametrize("text", ["", "0", "0m", "-3", "1.5", "10 m", "10d", "often"])
def test_other_intervals_are_rejected(text):
    with pytest.raises(UsageError) as caught:
        parse_save_interval(text)
    assert caught.value.message == (
        f"--save-every {text!r}, expected steps such as 3, a time such as 90s, 10m or 2h, or never"
    )


def due(schedule: SaveSchedule, step: int, now: float, *, ends_epoch: bool = False) -> bool:
    return schedule.is_due(step, ends_epoch=ends_epoch, now=now)


def test_steps_are_counted_from_the_start_of_the_run():
    schedule = SaveSchedule(SaveInterval(steps=3), state_bytes=1, now=0)
    assert [step for step in range(1, 10) if due(schedule, step, 0)] == [3, 6, 9]


def test_time_is_counted_from_the_last_state():
    schedule = SaveSchedule(SaveInterval(seconds=60), state_bytes=1, now=0)
    assert not due(schedule, 1, 59)
    assert due(schedule, 2, 60)
    schedule.add_save(began=60, ended=65)
    assert not due(schedule, 3, 124)
    assert due(schedule, 4, 125)


def test_epoch_is_not_saved_if_saving_takes_more_than_a_hundredth_of_the_time():
    schedule = SaveSchedule(DEFAULT_INTERVAL, state_bytes=250_000_000, now=0)  # a second
    assert not due(schedule, 10, 99, ends_epoch=True)
    assert due(schedule, 20, 100, ends_epoch=True)
    schedule.add_save(began=100, ended=102)  # two, as it turns out
    assert not due(schedule, 30, 399, ends_epoch=True)
    assert due(schedule, 40, 400, ends_epoch=True)


def test_slow_disk_stretches_only_the_default_interval():
    for interval, wait in ((DEFAULT_INTERVAL, 2000), (SaveInterval(seconds=600), 600)):
        schedule = SaveSchedule(interval, state_bytes=1, now=0)
        assert due(schedule, 1, 600)
        schedule.add_save(began=600, ended=620)
        assert next(now for now in range(621, 9999) if due(schedule, 2, now)) == 620 + wait


@pytest.mark.parametrize("seconds_per_state", [0.1, 4, 15, 90])
@pytest.mark.parametrize("seconds_per_epoch", [7, 500, 4000])
def test_default_interval_takes_less_than_a_fiftieth_of_the_time(
    seconds_per_state, seconds_per_epoch
):
    schedule = SaveSchedule(DEFAULT_INTERVAL, state_bytes=int(250e6 * seconds_per_state), now=0)
    now, spent, epoch_ends = 0.0, 0.0, float(seconds_per_epoch)
    while now < 200_000:
        now += 5.0  # one step
        ends_epoch = now - spent >= epoch_ends
        epoch_ends += seconds_per_epoch * ends_epoch
        if due(schedule, 1, now, ends_epoch=ends_epoch):
            schedule.add_save(began=now, ended=now + seconds_per_state)
            now, spent = now + seconds_per_state, spent + seconds_per_state
    assert 0 < spent < 0.02 * now


def test_never_saves_nothing():
    schedule = SaveSchedule(NEVER, state_bytes=0, now=0)
    assert not due(schedule, 10, 1e9, ends_epoch=True)

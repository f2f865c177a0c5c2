from __future__ import annotations

import os
import signal

import pytest

from wiseft_cli.errors import UsageError
from wiseft_cli.training.launch import Launch, read_launch
from wiseft_cli.training.stopping import StopRequest

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_a_process_knows_its_place_from_torchruns_environment():
    assert read_launch(TORCHRUN) == Launch(3, 1, 4, 2)
    assert not read_launch(TORCHRUN).is_first


@pytest.mark.parametrize("missing", sorted(TORCHRUN))
def test_an_environment_that_is_not_torchruns_means_one_process(missing):
    rest = {name: value for name, value in TORCHRUN.items() if name != missing}
    assert read_launch(rest) == Launch()


@pytest.mark.parametrize(("name", "value"), [("RANK", "4"), ("RANK", "x"), ("LOCAL_RANK", "2")])
def test_an_environment_that_contradicts_itself_is_refused(name, value):
    with pytest.raises(UsageError) as caught:
        read_launch({**TORCHRUN, name: value})
    assert f"{name}='{value}'" in caught.value.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_acts_as_before(number):
    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    before = signal.signal(number, stop)
    try:
        with StopRequest() as wish:
            assert not wish
            os.kill(os.getpid(), number)
            assert wish
            assert wish.signal_number == number
            with pytest.raises(StopError):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)

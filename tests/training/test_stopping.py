from __future__ import annotations

import os
import signal

import pytest

from wiseft_cli.training.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_recorded_and_the_second_acts_as_before(number):
    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    before = signal.signal(number, stop)
    try:
        with StopRequest() as request:
            assert not request
            os.kill(os.getpid(), number)
            assert request
            assert request.signal_number == number
            with pytest.raises(StopError):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)

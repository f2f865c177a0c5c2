"""Reading the rank of a process from torchrun's environment."""

from __future__ import annotations

import pytest

from wiseft_cli.compute.torchrun import Launch, read_launch
from wiseft_cli.errors import UsageError

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_rank_is_read_from_torchruns_environment():
    assert read_launch(TORCHRUN) == Launch(3, 1, 4, 2)
    assert not read_launch(TORCHRUN).is_first


@pytest.mark.parametrize("missing", sorted(TORCHRUN))
def test_an_incomplete_environment_means_a_single_process(missing):
    rest = {name: value for name, value in TORCHRUN.items() if name != missing}
    assert read_launch(rest) == Launch()


@pytest.mark.parametrize(("name", "value"), [("RANK", "4"), ("RANK", "x"), ("LOCAL_RANK", "2")])
def test_contradicting_variables_are_rejected(name, value):
    with pytest.raises(UsageError) as caught:
        read_launch({**TORCHRUN, name: value})
    assert f"{name}='{value}'" in caught.value.message

"""Out-of-memory errors of devices and libraries become one message with a remedy."""

from __future__ import annotations

import pytest
import torch

from wiseft_cli.compute.memory import report_out_of_memory
from wiseft_cli.errors import ModelError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("could not create a primitive"),
        MemoryError(),
    ],
)
def test_a_failed_allocation_is_reported_with_the_remedy(error: BaseException) -> None:
    with (
        pytest.raises(ModelError) as caught,
        report_out_of_memory("a batch of 8 images on cpu", hint="use a smaller batch"),
    ):
        raise error
    assert caught.value.message.startswith("not enough memory for a batch of 8 images on cpu: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "use a smaller batch"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), report_out_of_memory("x", hint="y"):
        raise RuntimeError("shapes")

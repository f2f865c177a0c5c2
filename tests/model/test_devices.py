"""A device is resolved only when it is really there."""

from __future__ import annotations

import pytest
import torch

from wiseft_cli.errors import ModelError, UsageError
from wiseft_cli.model.devices import resolve_device


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_cuda_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_unknown_kind_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_device("gpu")
    assert caught.value.message == "--device gpu: unknown device"


def test_absent_device_is_named_with_a_remedy() -> None:
    absent = f"cuda:{torch.cuda.device_count() if torch.cuda.is_available() else 0}"
    with pytest.raises(ModelError, match=f"--device {absent}: cannot be used on this machine: "):
        resolve_device(absent)

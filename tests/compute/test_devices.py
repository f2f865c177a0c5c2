"""A device is resolved only when it is really there."""

from __future__ import annotations

import pytest
import torch

from wiseft_cli.compute.devices import resolve_device
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.errors import ModelError, UsageError


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


def test_one_device_for_several_processes_is_rejected() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_device("cuda:1", Launch(1, 1, 2, 2))
    assert caught.value.message == (
        "--device cuda:1 for 2 processes, expected auto, cuda or cpu:"
        " each process uses a GPU of its own"
    )


def test_each_process_uses_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch.zeros(1))
    assert resolve_device("auto", Launch(3, 1, 4, 2)) == torch.device("cuda:1")
    with pytest.raises(ModelError, match=r"^4 processes on a machine with 2 GPUs"):
        resolve_device("cuda", Launch(3, 1, 4, 4))


def test_processes_share_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto", Launch(1, 1, 2, 2)) == torch.device("cpu")

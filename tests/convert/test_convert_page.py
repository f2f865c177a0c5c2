"""The code of docs/foreign-checkpoints.md does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from wiseft_cli.convert.convert import convert_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "foreign-checkpoints.md"


def test_the_check_of_a_converted_file_can_pass_and_fail(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    state = {f"module.{name}": torch.randn(3) for name in "ab"}
    torch.save({"state_dict": state, "epoch": 10}, "epoch_10.pt")
    convert_checkpoint("epoch_10.pt", "run-a.safetensors")
    (code,) = [
        text
        for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "epoch_10.pt" in text
    ]
    exec(code, {})
    state["module.a"][0] += 1
    torch.save({"state_dict": state, "epoch": 10}, "epoch_10.pt")
    with pytest.raises(AssertionError):
        exec(code, {})

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.reporting.lines import FINETUNED, ZEROSHOT, digest, line, sweep_lines
from wiseft_cli.reporting.curves import arrange_panels, collect_curves
from wiseft_cli.reporting.drawing import ScaleName
from wiseft_cli.reporting.figure import Look, draw_figure
from wiseft_cli.reporting.results import ResultLine
from wiseft_cli.reporting.statistics import BaselineModel

STORED = Path(__file__).parent
BASELINES = [
    BaselineModel(f"model {at}", {"val": across, "shift-a": a, "shift-b": b})
    for at, (across, a, b) in enumerate([(0.42, 0.2, 0.12), (0.6, 0.36, 0.27), (0.85, 0.66, 0.6)])
]


def drawn(
    lines: list[ResultLine],
    file_format: str = "png",
    *,
    baselines: Sequence[BaselineModel] = (),
    scale: ScaleName = "linear",
) -> bytes:
    data = collect_curves(lines)
    return draw_figure(
        data, arrange_panels(data, baselines), file_format, look=Look(scale=scale), lines=lines
    )


def one_shift() -> list[ResultLine]:
    return [line for line in sweep_lines() if line.set_name != "shift-b"]


def ensemble() -> list[ResultLine]:
    counts = {"val": 790, "shift-a": 570, "shift-b": 510}
    fields: dict[str, Any] = {"checkpoints": (ZEROSHOT, FINETUNED), "ensemble": True}
    return [line(name, n, reference=name == "val", **fields) for name, n in counts.items()]


def pictures() -> dict[str, bytes]:
    """The stored pictures: `python -m tests.reporting.test_figure` writes them again."""
    return {
        "curve.png": drawn(one_shift()),
        "panels.png": drawn([*sweep_lines(), *ensemble()]),
        "baselines.png": drawn(sweep_lines(), baselines=BASELINES, scale="logit"),
    }


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def two_pairs() -> list[ResultLine]:
    other = (sweep_lines()[0].checkpoints[0], replace(FINETUNED, name="b$_c$", digest=digest("2")))
    return [*sweep_lines(), *(replace(line, checkpoints=other) for line in sweep_lines())]


@pytest.mark.parametrize("name", ["curve.png", "panels.png", "baselines.png"])
def test_picture_equals_the_stored_one(name: str) -> None:
    both = (pixels(pictures()[name]), pixels((STORED / name).read_bytes()))
    assert both[0].shape == both[1].shape
    # Another version of matplotlib or its fonts moves edges by a pixel, and nothing further.
    height, width, _ = both[0].shape
    coarse = [
        np.asarray(Image.fromarray(p.astype(np.uint8)).resize((width // 8, height // 8)))
        for p in both
    ]
    assert np.abs(coarse[0].astype(float) - coarse[1]).mean() < 1.5


DRAW_ALL = """
import hashlib
from tests.reporting.test_figure import drawn, two_pairs
for file_format in ("png", "svg", "pdf"):
    data = drawn(two_pairs(), file_format)
    print(file_format, data[:5], hashlib.sha256(data).hexdigest())
"""


def test_same_lines_give_the_same_bytes_in_every_process() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", DRAW_ALL],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    for start in (r"png b'\x89PNG", "svg b'<?xml", "pdf b'%PDF-"):
        assert start in outputs[0]


def test_matplotlib_settings_of_the_user_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    expected = drawn(sweep_lines(), "png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "figure.dpi": 20}):
        assert drawn(sweep_lines(), "png") == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_labels_and_axes_name_what_is_drawn() -> None:
    import matplotlib

    with matplotlib.rc_context():
        text = drawn(two_pairs(), "svg").decode()
    # Text is drawn as paths, with its words in comments.
    for words in (
        "zero-shot",
        "\u03b1 = 0.5",
        "fine-tuned",
        "in-distribution accuracy: val (%)",
        "mean over 2 distribution shifts",
        "shift-a",
        "shift-b",
        "zeroshot to b$_c$",
    ):
        assert f"<!-- {words} -->" in text
    single = drawn(one_shift(), "svg").decode()
    assert "<!-- accuracy under shift: shift-a (%) -->" in single


def test_legend_names_baselines_and_their_fit_if_there_are_any() -> None:
    words = ("baseline models", "their fit on logits")
    plain = drawn(sweep_lines(), "svg").decode()
    compared = drawn(sweep_lines(), "svg", baselines=BASELINES).decode()
    of_one = drawn(sweep_lines(), "svg", baselines=BASELINES[:1]).decode()
    assert [f"<!-- {word} -->" in plain for word in words] == [False, False]
    assert [f"<!-- {word} -->" in compared for word in words] == [True, True]
    assert [f"<!-- {word} -->" in of_one for word in words] == [True, False]


def test_accuracies_of_0_and_1_can_be_drawn_on_a_logit_axis() -> None:
    ends = {"0": (0, 0), "0.5": (7, 12), "1": (12, 0)}
    lines = [
        line(name, count, 12, alpha=alpha, reference=name == "val")
        for alpha, counts in ends.items()
        for name, count in zip(("val", "shift"), counts, strict=True)
    ]
    assert drawn(lines, scale="logit").startswith(b"\x89PNG")


def test_single_checkpoints_are_named_points() -> None:
    singles = [line(name, 500, reference=name == "val") for name in ("val", "shift-a", "shift-b")]
    text = drawn(singles, "svg").decode()
    assert "<!-- zeroshot -->" in text


if __name__ == "__main__":
    for name, picture in pictures().items():
        few_colours = Image.open(io.BytesIO(picture)).convert("RGB").quantize(64)
        few_colours.save(STORED / name, optimize=True)

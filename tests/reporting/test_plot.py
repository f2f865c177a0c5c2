from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.reporting.lines import FINETUNED, digest, line, sweep_lines
from wiseft_cli.reporting.curves import collect_curves
from wiseft_cli.reporting.label_layout import Box, place_labels
from wiseft_cli.reporting.plot import draw_curves

STORED = Path(__file__).with_name("curve.png")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def two_pairs() -> list:
    other = (sweep_lines()[0].checkpoints[0], replace(FINETUNED, name="b$_c$", digest=digest("2")))
    return [*sweep_lines(), *(replace(line, checkpoints=other) for line in sweep_lines())]


def test_the_picture_is_the_stored_one() -> None:
    drawn, stored = (
        pixels(draw_curves(collect_curves(sweep_lines()), "png")),
        pixels(STORED.read_bytes()),
    )
    assert drawn.shape == stored.shape
    # Another version of matplotlib or its fonts moves edges by a pixel, and nothing further.
    coarse = [
        np.asarray(Image.fromarray(p.astype(np.uint8)).resize((140, 110))).astype(float)
        for p in (drawn, stored)
    ]
    assert np.abs(coarse[0] - coarse[1]).mean() < 1.5


DRAW_ALL = """
import hashlib
from tests.reporting.test_plot import two_pairs
from wiseft_cli.reporting.curves import collect_curves
from wiseft_cli.reporting.plot import draw_curves
for file_format in ("png", "svg", "pdf"):
    data = draw_curves(collect_curves(two_pairs()), file_format)
    print(file_format, data[:5], hashlib.sha256(data).hexdigest())
"""


def test_the_same_lines_give_the_same_bytes_in_every_process() -> None:
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


def test_settings_of_the_user_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    expected = draw_curves(collect_curves(sweep_lines()), "png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "figure.dpi": 20}):
        assert draw_curves(collect_curves(sweep_lines()), "png") == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_labels_and_axes_say_what_is_drawn() -> None:
    import matplotlib

    with matplotlib.rc_context():
        text = draw_curves(collect_curves(two_pairs()), "svg").decode()
    # Text is drawn as paths, with its words in comments.
    for words in (
        "zero-shot",
        "\u03b1 = 0.5",
        "fine-tuned",
        "in-distribution accuracy: val (%)",
        "mean accuracy over 2 distribution shifts (%)",
        "zeroshot to b$_c$",
    ):
        assert f"<!-- {words} -->" in text
    one_shift = [x for x in sweep_lines() if x.set_name != "shift-b"]
    single = draw_curves(collect_curves(one_shift), "svg").decode()
    assert "<!-- accuracy under shift: shift-a (%) -->" in single


def test_checkpoints_as_they_are_become_named_points() -> None:
    singles = [line(name, 500, reference=name == "val") for name in ("val", "shift-a", "shift-b")]
    text = draw_curves(collect_curves(singles), "svg").decode()
    assert "<!-- zeroshot -->" in text


positions = st.tuples(st.floats(200, 800), st.floats(200, 600))


@given(st.lists(positions, min_size=1, max_size=5), st.data())
def test_labels_stay_in_the_frame_and_off_each_other(
    anchors: list[tuple[float, float]], data: st.DataObject
) -> None:
    sizes = [data.draw(st.tuples(st.floats(20, 90), st.floats(10, 20))) for _ in anchors]
    frame = Box(0, 0, 1000, 800)
    centres = place_labels(anchors, sizes, anchors, frame, pixels_per_point=1.0)
    boxes = [
        Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        for (x, y), (w, h) in zip(centres, sizes, strict=True)
    ]
    for at, box in enumerate(boxes):
        assert box.overlap(frame) == pytest.approx((box.right - box.left) * (box.top - box.bottom))
        assert not any(box.holds(x, y) for x, y in anchors)
        assert all(box.overlap(other) == 0 for other in boxes[:at])

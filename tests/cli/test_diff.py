"""`wiseft diff`: differences from the headers, distances from the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunWiseft
from tests.merging.pairs import tensors, write_foreign, write_pair
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.merging.distance import measure_distances


def test_differences_and_their_likely_cause_are_shown(
    tmp_path: Path, run_wiseft: RunWiseft
) -> None:
    one = np.zeros(1, np.float32)
    write_foreign(tmp_path / "a", {"visual.w": one, "visual.b": one})
    write_foreign(tmp_path / "b", {"module.visual.w": one, "module.visual.b": one})
    shown = run_wiseft("diff", "a", "b")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        "common tensors: 0, differences in headers and cards: 4\n"
        "  visual.b: only in a\n"
        "  visual.w: only in a\n"
        "  module.visual.b: only in b\n"
        "  module.visual.w: only in b\n"
        "likely cause: the names in the second file start with 'module.'; save it without the "
        "prefix; --match-names matches such names\n"
        "values: not compared; --values compares them\n"
    )


def test_without_values_the_digests_in_the_cards_are_compared(
    tmp_path: Path, run_wiseft: RunWiseft
) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    lines = run_wiseft("diff", zeroshot, finetuned).stdout.splitlines()
    assert lines[-1] == (
        "values: different, by the content digests in both cards; --values shows where"
    )
    lines = run_wiseft("diff", zeroshot, zeroshot).stdout.splitlines()
    assert lines[-1] == "values: equal, by the content digests in both cards"
    shown = json.loads(run_wiseft("diff", zeroshot, finetuned, "--json").stdout)
    assert shown["equal_content"] is False


def test_values_are_listed_by_decreasing_distance(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    ones = np.ones(4, np.float32)
    write_foreign(tmp_path / "a", {"small": ones, "large": ones, "same": ones})
    write_foreign(tmp_path / "b", {"small": 1.25 * ones, "large": 3 * ones, "same": ones})
    assert run_wiseft("diff", "a", "b", "--values").stdout == (
        "common tensors: 3, differences in headers and cards: 0\n"
        "relative L2  largest    tensor\n"
        "2            2          large\n"
        "0.25         0.25       small\n"
        "bitwise equal: 1 of 3\n"
    )


def test_values_are_summed_by_block_from_the_stem_to_the_head(
    tmp_path: Path, run_wiseft: RunWiseft
) -> None:
    names = [
        *(f"visual.transformer.resblocks.{block}.{part}" for block in (10, 2) for part in "ab"),
        "visual.proj",
        "visual.conv1.weight",
        "classification_head.bias",
    ]
    theta_0 = {name: np.full(3, 2.0) for name in names}
    theta_1 = {name: x + i for i, (name, x) in enumerate(theta_0.items())}
    write_foreign(tmp_path / "a", theta_0)
    write_foreign(tmp_path / "b", theta_1)
    blocks = json.loads(run_wiseft("diff", "a", "b", "--values", "--json").stdout)["blocks"]
    assert [block["name"] for block in blocks] == [
        "visual.conv1",
        "visual.transformer.resblocks.2",
        "visual.transformer.resblocks.10",
        "classification_head",
        "visual.proj",
    ]
    assert blocks[1] == {
        "name": "visual.transformer.resblocks.2",
        "relative_l2": pytest.approx(np.sqrt((4 + 9) / (4 + 4))),
        "largest": 3.0,
        "n_tensors": 2,
    }
    shown = run_wiseft("diff", "a", "b", "--values").stdout
    assert "\n1.275        3          visual.transformer.resblocks.2\n" in shown


def test_json_output_contains_no_infinity_or_nan(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    write_foreign(tmp_path / "a", {"w": np.zeros(2), "v": np.array([np.nan, 1])})
    write_foreign(tmp_path / "b", {"w": np.ones(2), "v": np.array([1, np.inf])})
    shown = run_wiseft("diff", "a", "b", "--values", "--json").stdout
    document = json.loads(shown, parse_constant=pytest.fail)
    assert document["is_compatible"] is True
    assert document["distances"] == [
        {"name": "w", "relative_l2": None, "largest": 1.0, "n_not_finite": 0, "is_equal": False},
        {"name": "v", "relative_l2": 0.0, "largest": 0.0, "n_not_finite": 2, "is_equal": False},
    ]


def test_distances_agree_with_numpy_on_whole_tensors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal(200_000).astype(np.float32)
    y = (x + 0.01 * random.standard_normal(200_000)).astype(np.float16)
    write_foreign(tmp_path / "a", {"w": x})
    write_foreign(tmp_path / "b", {"w": y})
    with (
        open_checkpoint(tmp_path / "a") as a,
        open_checkpoint(tmp_path / "b") as b,
    ):
        (found,) = measure_distances(a, b)
    difference = y.astype(np.float64) - x
    relative = np.linalg.norm(difference) / np.linalg.norm(x.astype(np.float64))
    assert found.relative_l2 == pytest.approx(relative, rel=1e-12)
    assert found.largest == np.abs(difference).max()


def test_distances_of_complex_tensors_agree_with_numpy(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((2, 70_000)).view(np.complex128) for _ in range(2))
    x, y = x.astype(np.complex64), y.astype(np.complex64)
    x[0, 3] = complex(np.nan, 0)
    y[1, 4] = complex(0, np.inf)
    for name, values in (("a", x), ("b", y)):
        write_foreign(tmp_path / name, {"w": values}, dtypes={"w": "C64"})
    with open_checkpoint(tmp_path / "a") as a, open_checkpoint(tmp_path / "b") as b:
        (found,) = measure_distances(a, b)
    is_finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[is_finite].astype(np.complex128), y[is_finite].astype(np.complex128)
    assert found.relative_l2 == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-12)
    assert found.largest == pytest.approx(np.abs(y - x).max(), rel=1e-12)
    assert found.n_not_finite == 2
    assert not found.is_equal


def test_tensors_whose_values_are_not_compared_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = np.zeros(2, np.uint8)
    for name, shape in (("a", 2), ("b", 3)):
        write_foreign(
            tmp_path / name,
            {"packed": packed, "scale": packed, "w": np.ones(shape)},
            dtypes={"packed": "F4", "scale": "F8_E8M0"},
        )
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["diff", *files, "--values"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "values not compared: packed (dtype F4), scale (dtype F8_E8M0), w (shapes [2] and [3])"
    )
    assert main(["diff", *files, "--values", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["not_compared"]
    assert sorted(found) == ["packed", "scale", "w"]


def test_a_zero_shot_and_finetuned_pair_differs_only_in_values(
    tmp_path: Path, run_wiseft: RunWiseft
) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    shown = run_wiseft("diff", zeroshot, finetuned, "--values").stdout
    assert shown.startswith("common tensors: 6, differences in headers and cards: 0\n")
    assert shown.endswith(f"bitwise equal: 1 of {len(tensors(0))}\n")

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from wiseft_cli.evaluation.row import DeviceBatch
from wiseft_cli.evaluation.weights import WeightBank

from tests.evaluation import tiny
from tests.evaluation.tiny import (
    CLASSES,
    PREPROCESS,
    RESNET,
    VIT,
    make_checkpoint,
    make_images,
    make_pair,
)
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.data import loading
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import DatasetError, ModelError
from wiseft_cli.evaluation import sweep as sweep_module
from wiseft_cli.evaluation.plan import Job, plan_jobs
from wiseft_cli.evaluation.sweep import SweepSettings, chunked, sweep
from wiseft_cli.evaluation.weight_sets import (
    NamedCheckpoint,
    WeightSet,
    plan_weight_sets,
    read_checkpoints,
)
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.merging.merge import merge_checkpoints
from wiseft_cli.model.classifier import load_classifier, state_arrays
from wiseft_cli.reporting.results import ResultLine

LABELS = [entry.id for entry in CLASSES]
CPU = torch.device("cpu")
RANGE = "0:1:0.25"


def plan(
    paths: Sequence[Path], folders: Sequence[Path], alphas: str | None = None
) -> Sequence[Job]:
    rows = plan_weight_sets(read_checkpoints(paths), parse_alphas([alphas]) if alphas else ())
    return plan_jobs(rows, [list_image_folder(folder) for folder in folders], reference=None)


def run(jobs: Sequence[Job], **options: Any) -> list[ResultLine]:
    settings = SweepSettings(**({"batch_size": 8, "workers": 0, "device": CPU} | options))
    return [line for lines in sweep(jobs, settings) for line in lines.values()]


def open_bank(pair: Sequence[Path], alphas: str) -> tuple[WeightBank, tuple[NamedCheckpoint, ...]]:
    checkpoints = read_checkpoints(pair)
    rows = plan_weight_sets(checkpoints, parse_alphas([alphas]))
    return WeightBank(rows, CPU), checkpoints


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        make_images(tmp_path / "val", LABELS, per_class=4, seed=1),
        make_images(tmp_path / "shift", LABELS[1:6], per_class=3, seed=2),
    ]


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_a_row_of_the_sweep_is_merging_to_a_file_and_evaluating_that(
    tmp_path: Path, folders: list[Path], config: dict[str, Any]
) -> None:
    pair = make_pair(tmp_path, config=config)
    swept = run(plan(pair, folders, RANGE))
    outputs = [(alpha, tmp_path / f"m{alpha.text}.safetensors") for alpha in parse_alphas([RANGE])]
    merge_checkpoints(*pair, outputs)
    merged = run(plan([path for _, path in outputs], folders))
    assert len(swept) == 10
    for row, alone in zip(swept, merged, strict=True):
        assert (
            replace(row, checkpoints=alone.checkpoints, alpha=None, protocol=alone.protocol)
            == alone
        )
    assert len({row.value for row in swept if row.set_name == "val"}) > 1


def test_weights_in_memory_are_the_bits_that_a_merge_writes(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, config=RESNET)
    bank, checkpoints = open_bank(pair, "0,0.1,0.7,1")
    for text in ("0", "0.1", "0.7", "1", "0.1"):
        alpha = Alpha(text, float(text))
        path = tmp_path / f"m{text}.safetensors"
        if not path.exists():
            merge_checkpoints(*pair, [(alpha, path)])
        arrays = state_arrays(bank.classifier(WeightSet(checkpoints, alpha)))
        expected = state_arrays(load_classifier(path)[0])
        assert arrays.keys() == expected.keys()
        for name in arrays:
            assert arrays[name].tobytes() == expected[name].tobytes(), name
    # Integers come from the fine-tuned side, at alpha 0 too.
    counters = [name for name in arrays if name.endswith("num_batches_tracked")]
    at_zero = state_arrays(bank.classifier(WeightSet(checkpoints, Alpha("0", 0.0))))
    assert counters
    assert all(at_zero[name] == 2 for name in counters)
    # The parts of an ensemble are the checkpoints themselves, integers included.
    for checkpoint in checkpoints:
        arrays = state_arrays(bank.classifier(WeightSet((checkpoint,))))
        expected = state_arrays(load_classifier(checkpoint.path)[0])
        for name in arrays:
            assert arrays[name].tobytes() == expected[name].tobytes(), name


def test_a_bfloat16_pair_is_rounded_to_bfloat16_as_a_merge_does(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    narrow = []
    for path in pair:
        merge_checkpoints(
            path, path, [(Alpha("1", 1.0), tmp_path / f"n-{path.name}")], dtype="bfloat16"
        )
        narrow.append(tmp_path / f"n-{path.name}")
    merge_checkpoints(*narrow, [(Alpha("0.3", 0.3), tmp_path / "m.safetensors")])
    with open_checkpoint(tmp_path / "m.safetensors") as reader:
        assert reader.tensors["classification_head.weight"].dtype == "BF16"
    expected = state_arrays(load_classifier(tmp_path / "m.safetensors")[0])
    bank, checkpoints = open_bank(narrow, "0.3")
    arrays = state_arrays(bank.classifier(WeightSet(checkpoints, Alpha("0.3", 0.3))))
    for name in arrays:
        assert np.array_equal(arrays[name], expected[name]), name


def test_lines_are_the_same_for_any_workers_and_chunks(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = plan(make_pair(tmp_path), folders, RANGE)
    expected = run(jobs)
    assert run(jobs, workers=2) == expected
    monkeypatch.setattr(sweep_module, "CHUNK_BYTES", 1)
    assert run(jobs) == expected


def test_images_are_decoded_once_for_any_number_of_alphas(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    load_image_of = loading.load_image_of

    def load(image_set: ImageSet, index: int) -> Image.Image:
        decoded.append(image_set.root / image_set.records[index].path)
        return load_image_of(image_set, index)

    monkeypatch.setattr(loading, "load_image_of", load)
    monkeypatch.setattr(sweep_module, "CHUNK_BYTES", 10 * 3 * 32 * 32 * 4)
    run(plan(make_pair(tmp_path), folders, "0:1:0.1"))
    assert len(decoded) == len(set(decoded)) == 32 + 15


def test_checkpoints_of_other_preprocessing_and_class_order_keep_their_own(
    tmp_path: Path, folders: list[Path]
) -> None:
    options: list[dict[str, Any]] = [
        {"seed": 1},
        {"seed": 1, "preprocess": PREPROCESS | {"mean": [0.1] * 3}},
        {"seed": 1, "classes": CLASSES[::-1]},
        {"seed": 4, "config": RESNET},
    ]
    paths = [
        make_checkpoint(tmp_path / f"{at}.safetensors", **option)
        for at, option in enumerate(options)
    ]
    together = run(plan(paths, folders[:1]))
    alone = [run(plan([path], folders[:1]))[0] for path in paths]
    assert together == alone
    # The same weights under a reversed list of classes are another classifier.
    assert together[0].value != together[2].value


def test_memory_is_bounded_by_chunks_that_hold_whole_batches() -> None:
    batches = [
        DeviceBatch(torch.zeros(2, 3, 4, 4), torch.zeros(2), None, torch.zeros(2), ())
        for _ in range(7)
    ]
    n_bytes = batches[0].images.nbytes
    sizes = [len(chunk) for chunk in chunked(batches, 3 * n_bytes)]
    assert sizes == [3, 3, 1]
    assert [len(chunk) for chunk in chunked(batches, 0)] == [1] * 7


def damage(folder: Path, count: int) -> list[Path]:
    paths = sorted(folder.rglob("*.png"))[:count]
    for path in paths:
        path.write_bytes(b"damaged")
    return paths


def test_the_first_unreadable_image_stops_unless_some_are_allowed(
    tmp_path: Path, folders: list[Path]
) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=1)
    bad = damage(folders[0], 2)
    jobs = plan([path], folders[:1])
    with pytest.raises(DatasetError) as caught:
        run(jobs, max_unreadable=1)
    assert caught.value.message.splitlines() == [
        "image set 'val': 2 unreadable images among the first 8 of 32, at most 1 allowed:",
        *(f"  cannot read image {at}: not an image in a format that Pillow knows" for at in bad),
    ]
    (line,) = run(jobs, max_unreadable=2)
    assert (line.n_images, line.n_unreadable) == (30, 2)
    for at in bad:
        at.unlink()
    (without,) = run(plan([path], folders[:1]))
    assert without.metrics == line.metrics


def test_a_set_without_a_readable_image_is_an_error(tmp_path: Path, folders: list[Path]) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=1)
    damage(folders[1], 15)
    with pytest.raises(DatasetError, match="none of its 15 images is readable"):
        run(plan([path], folders[1:]), max_unreadable=99)


def test_broken_weights_are_told_with_checkpoint_and_set(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    random_tensors = tiny.random_tensors

    def broken(*args: Any, **options: Any) -> dict[str, Any]:
        tensors = random_tensors(*args, **options)
        tensors["classification_head.bias"][3] = np.nan
        return tensors

    monkeypatch.setattr(tiny, "random_tensors", broken)
    path = make_checkpoint(tmp_path / "bad.safetensors", seed=1)
    with pytest.raises(ModelError, match=r"^bad on 'val': the classifier's logits are not finite$"):
        run(plan([path], folders[:1]))


def test_progress_counts_every_image_for_every_row(tmp_path: Path, folders: list[Path]) -> None:
    damage(folders[0], 1)
    seen: list[int] = []
    jobs = plan(make_pair(tmp_path), folders, RANGE)
    settings = SweepSettings(8, 0, CPU, max_unreadable=1)
    list(sweep(jobs, settings, on_progress=seen.append))
    assert sum(seen) == 5 * (32 + 15)

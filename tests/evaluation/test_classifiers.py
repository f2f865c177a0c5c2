"""The classifiers of an evaluation have the bits that a merge writes, and few are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation.tiny import (
    CLASSES,
    RESNET,
    VIT,
    jobs_of,
    make_checkpoint,
    make_images,
    make_pair,
    run_jobs,
)
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.errors import CheckpointError
from wiseft_cli.evaluation import classifiers as classifiers_module
from wiseft_cli.evaluation.classifiers import ClassifierPool, interpolate_tensors
from wiseft_cli.evaluation.weight_sets import (
    NamedCheckpoint,
    WeightSet,
    plan_weight_sets,
    read_checkpoints,
)
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.merging.arithmetic import interpolate_arrays
from wiseft_cli.merging.merge import merge_checkpoints
from wiseft_cli.model.classifier import load_classifier, state_arrays

LABELS = [entry.id for entry in CLASSES]
CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "val", LABELS, per_class=4, seed=1)


def open_pool(
    pair: Sequence[Path], alphas: str
) -> tuple[ClassifierPool, tuple[NamedCheckpoint, ...]]:
    checkpoints = read_checkpoints(pair)
    rows = plan_weight_sets(checkpoints, parse_alphas([alphas]))
    return ClassifierPool(rows, CPU), checkpoints


def test_tensor_interpolation_has_the_bits_of_a_merge() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, size=200_000, dtype=np.uint32).view(np.float32)
    x = bits[np.isfinite(bits)]
    y = random.permutation(x)
    y[: len(y) // 4] = x[: len(y) // 4]
    out = torch.empty(len(x))
    for alpha in (0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0):
        interpolate_tensors(torch.from_numpy(x), torch.from_numpy(y), alpha, out=out)
        assert out.numpy().tobytes() == interpolate_arrays(x, y, alpha).tobytes()


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_weights_computed_on_a_device_have_the_bits_of_a_merge(
    tmp_path: Path, images: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers_module, "_interpolates_on", lambda device: True)
    pair = make_pair(tmp_path, config=config)
    jobs = jobs_of(pair, [images], "0,0.3,1,0.7")
    pool = ClassifierPool([job.weights for job in jobs], CPU)
    for job in jobs:
        assert job.weights.alpha is not None
        merged = tmp_path / f"{job.line.alpha}.safetensors"
        merge_checkpoints(*pair, [(job.weights.alpha, merged)])
        arrays = state_arrays(pool.classifier(job.weights))
        expected = state_arrays(load_classifier(merged)[0])
        for name in expected:
            assert arrays[name].tobytes() == expected[name].tobytes(), name
        # Its parts in between: nothing of the last weights may stay.
        arrays = state_arrays(pool.classifier(WeightSet(job.weights.checkpoints[:1])))
        expected = state_arrays(load_classifier(pair[0])[0])
        assert all(arrays[name].tobytes() == expected[name].tobytes() for name in expected)


def test_weights_computed_on_the_cpu_have_the_bits_of_a_merge(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, config=RESNET)
    pool, checkpoints = open_pool(pair, "0,0.1,0.7,1")
    for text in ("0", "0.1", "0.7", "1", "0.1"):
        alpha = Alpha(text, float(text))
        path = tmp_path / f"m{text}.safetensors"
        if not path.exists():
            merge_checkpoints(*pair, [(alpha, path)])
        arrays = state_arrays(pool.classifier(WeightSet(checkpoints, alpha)))
        expected = state_arrays(load_classifier(path)[0])
        assert arrays.keys() == expected.keys()
        for name in arrays:
            assert arrays[name].tobytes() == expected[name].tobytes(), name
    # Integers come from the fine-tuned side, at alpha 0 too.
    counters = [name for name in arrays if name.endswith("num_batches_tracked")]
    at_zero = state_arrays(pool.classifier(WeightSet(checkpoints, Alpha("0", 0.0))))
    assert counters
    assert all(at_zero[name] == 2 for name in counters)
    # The parts of an ensemble are the checkpoints themselves, integers included.
    for checkpoint in checkpoints:
        arrays = state_arrays(pool.classifier(WeightSet((checkpoint,))))
        expected = state_arrays(load_classifier(checkpoint.path)[0])
        for name in arrays:
            assert arrays[name].tobytes() == expected[name].tobytes(), name


def test_bfloat16_pair_is_rounded_to_bfloat16_as_in_a_merge(tmp_path: Path) -> None:
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
    pool, checkpoints = open_pool(narrow, "0.3")
    arrays = state_arrays(pool.classifier(WeightSet(checkpoints, Alpha("0.3", 0.3))))
    for name in arrays:
        assert np.array_equal(arrays[name], expected[name]), name


def test_merged_file_keeps_its_weights_beside_its_parents(tmp_path: Path, images: Path) -> None:
    pair = make_pair(tmp_path, config=RESNET)
    merged = tmp_path / "merged.safetensors"
    merge_checkpoints(*pair, [(parse_alphas(["0.3"])[0], merged)])
    pool = ClassifierPool([job.weights for job in jobs_of([*pair, merged], [images])], CPU)
    for checkpoint in read_checkpoints([*pair, merged]):
        arrays = state_arrays(pool.classifier(WeightSet((checkpoint,))))
        expected = state_arrays(load_classifier(checkpoint.path)[0])
        assert all(arrays[name].tobytes() == expected[name].tobytes() for name in expected)


def test_only_a_few_of_many_checkpoints_are_in_memory(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        make_checkpoint(tmp_path / f"{at}.safetensors", seed=at, config=RESNET if at == 4 else VIT)
        for at in range(6)
    ]
    expected = [run_jobs(jobs_of([path], [images]))[0] for path in paths]
    loads: list[Path] = []
    load = classifiers_module.load_classifier
    monkeypatch.setattr(
        classifiers_module,
        "load_classifier",
        lambda path, **options: (loads.append(path), load(path, **options))[1],
    )
    pool = ClassifierPool([WeightSet((item,)) for item in read_checkpoints(paths)], CPU)
    assert pool.changes_weights
    assert run_jobs(jobs_of(paths, [images])) == expected
    # Two stay; of the others one is loaded, and again where the architecture changes.
    assert loads == [paths[at] for at in (0, 1, 2, 4, 5)]
    loads.clear()
    assert run_jobs(jobs_of(paths[:3], [images])) == expected[:3]
    assert loads == paths[:3]


def test_file_whose_tensors_do_not_match_its_card_is_rejected(tmp_path: Path, images: Path) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=1)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its tensors do not match its card"):
        run_jobs(jobs_of([path], [images]))

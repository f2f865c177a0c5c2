"""Every merge method has the same bits in an evaluation as in the file that merge writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation.tiny import CLASSES, RESNET, VIT, make_checkpoint, make_images
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import CheckpointError, UsageError, WiseftError
from wiseft_cli.evaluation import classifiers as classifiers_module
from wiseft_cli.evaluation.classifiers import ClassifierPool
from wiseft_cli.evaluation.evaluate import evaluate, write_merge
from wiseft_cli.evaluation.fisher import compute_fisher, plan_fisher
from wiseft_cli.evaluation.merged_weights import MappedFile
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.evaluation.weight_sets import (
    WeightSet,
    plan_weight_sets,
    read_checkpoints,
)
from wiseft_cli.model.classifier import load_classifier, state_arrays

CPU = torch.device("cpu")
LABELS = [entry.id for entry in CLASSES]


def make_seeds(
    folder: Path, n_finetuned: int = 3, *, config: Mapping[str, Any] = VIT
) -> list[Path]:
    """Write a zero-shot checkpoint and fine-tuned ones near it; some tensors stay equal."""
    zeroshot = make_checkpoint(folder / "zeroshot.safetensors", seed=1, config=config)
    with open_checkpoint(zeroshot) as reader:
        arrays = {name: reader.read_array(name) for name in reader.tensors}
    paths = [zeroshot]
    for seed in range(n_finetuned):
        path = folder / f"seed{seed}.safetensors"
        make_checkpoint(path, seed=5, role="finetuned", parent=zeroshot, config=config)
        random = np.random.default_rng(seed)
        moved = {
            name: array + 3 + seed
            if array.dtype == np.int64
            else array
            if name.endswith("ln_pre.weight")
            else array + 0.05 * random.standard_normal(array.shape).astype(np.float32)
            for name, array in arrays.items()
        }
        write_checkpoint(path, moved, read_card(path), force=True)
        paths.append(path)
    return paths


def add_fishers(paths: list[Path]) -> list[Path]:
    """Write the Fisher file of each checkpoint, from a few images."""
    folder = paths[0].parent
    data = folder / "fisher-data"
    if not data.exists():
        make_images(data, LABELS[:2], per_class=2)
    files = []
    for path in paths:
        plan = plan_fisher(path, str(data), folder / f"{path.stem}-fisher.safetensors")
        files.append(compute_fisher(plan, device="cpu", workers=0).path)
    return files


METHODS: list[dict[str, Any]] = [
    {"method": "linear", "alpha": ["0", "0.3", "1"]},
    {"method": "linear", "alpha": "0.3", "weights": "0.2,0.3,0.5"},
    {"alpha": "0.6", "layer_alpha": ["visual.transformer.*=0.1", "*bias=0.9"]},
    {"method": "task-arithmetic"},
    {"method": "ties", "alpha": "0.3,1"},
    {"method": "ties", "options": {"trim_scope": "tensor", "density": 0.4}},
    {"method": "dare", "alpha": "0.5", "options": {"seed": 3}},
    {"method": "dare", "options": {"then": "ties"}},
    {"method": "model-stock"},
    {"method": "lines", "alpha": "0.9", "options": {"layer_alpha_from": 0.2}},
    {"method": "fisher", "alpha": "0.25,0.75"},
    {"method": "soup"},
    {"method": "soup", "weights": "0.2,0.2,0.5,0.1"},
]


def name_of(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values() if isinstance(value, str))


def rows_of(paths: list[Path], options: dict[str, Any]) -> tuple[WeightSet, ...]:
    fishers = add_fishers(paths) if options.get("method") == "fisher" else []
    request = EvalRequest(paths, **options, fisher=fishers)
    return plan_weight_sets(
        read_checkpoints(paths), request.alphas, settings=request.settings, fishers=fishers
    )


def assert_rows_equal_files(rows: tuple[WeightSet, ...], folder: Path) -> None:
    pool = ClassifierPool(rows, CPU)
    for at, row in enumerate(rows):
        merged = folder / f"merged-{at}.safetensors"
        write_merge(row, merged, force=False)
        expected = state_arrays(load_classifier(merged)[0])
        arrays = state_arrays(pool.classifier(row))
        assert arrays.keys() == expected.keys()
        for name in arrays:
            assert arrays[name].tobytes() == expected[name].tobytes(), name
        # An input in between: nothing of the last weights may stay.
        first = row.checkpoints[0]
        arrays = state_arrays(pool.classifier(WeightSet((first,))))
        expected = state_arrays(load_classifier(first.path)[0])
        assert all(arrays[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("options", METHODS, ids=name_of)
def test_rows_have_the_bits_of_the_merged_file(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_rows_equal_files(rows_of(make_seeds(tmp_path), options), tmp_path)


@pytest.mark.parametrize("options", [METHODS[0], METHODS[4], METHODS[8], METHODS[11]], ids=name_of)
def test_batch_norm_and_its_counters_are_those_of_the_merged_file(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    assert_rows_equal_files(rows_of(make_seeds(tmp_path, config=RESNET), options), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "slerp", "alpha": "0,0.4,1"},
        {"method": "lines", "options": {"layer_alpha_from": "0.1", "outside_blocks": "ends"}},
        {"alpha": "0.5", "layer_alpha": "visual.proj=0"},
    ],
    ids=name_of,
)
@pytest.mark.parametrize("on_device", [False, True])
def test_pairs_have_the_bits_of_the_merged_file(
    tmp_path: Path, options: dict[str, Any], on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers_module, "_interpolates_on", lambda device: on_device)
    assert_rows_equal_files(rows_of(make_seeds(tmp_path, 1), options), tmp_path)


def test_mapped_tensors_equal_the_file_and_cannot_be_written(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "c.safetensors", seed=1, config=RESNET)
    file = MappedFile(path)
    with open_checkpoint(path) as reader:
        for name in file.shapes:
            array, expected = file.array(name), reader.read_array(name)
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            assert array.tobytes() == expected.tobytes()
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


def test_encoders_are_shared_only_where_they_are_equal(tmp_path: Path) -> None:
    paths = make_seeds(tmp_path)
    rows = [
        *rows_of(paths, {"method": "ties", "alpha": "0.3,1"}),
        *rows_of(paths, {"method": "linear", "alpha": "0.3,1"}),
        *rows_of(paths[:2], {"alpha": "0,0.3,1"}),
        *(WeightSet((at,)) for at in read_checkpoints(paths[:2])),
    ]
    pool = ClassifierPool(rows, CPU)
    keys = [pool.encoder_key(row) for row in rows]
    assert keys[6] == keys[8]  # alpha 1 of the pair, and the fine-tuned checkpoint
    del keys[6]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tis"}, "method 'tis': unknown"),
        ({"method": "slerp"}, "method slerp: 3 fine-tuned inputs given"),
        ({"method": "model-stock", "alpha": 0.5}, "method model-stock: has no alpha"),
        ({"method": "linear", "options": {"density": 0.2}}, "--density is an option of ties"),
        ({"method": "ties", "options": {"density": 2}}, "--density is '2'"),
        ({"method": "linear", "weights": [0.5, 0.5]}, "2 weights for 3 fine-tuned inputs"),
        ({"method": "fisher"}, "method fisher: 0 files given with --fisher, expected 4"),
        (
            {"method": "ties", "fisher": ["f"]},
            "ties: 1 file given with --fisher, expected 0",
        ),
        ({"weights": "0.5,0.25,0.25"}, "--weights needs --method or --alpha"),
        ({"options": {"density": 0.2}}, "--density needs --method or --alpha"),
        ({"alpha": 0.5, "layer_alpha": "nothing.*=0.1"}, "matches none of"),
    ],
)
def test_options_that_do_not_fit_are_rejected_before_an_image_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    data = tmp_path / "data" / LABELS[0]
    data.mkdir(parents=True)
    (data / "0.png").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=message):
        evaluate(EvalRequest(make_seeds(tmp_path), data=data.parent, workers=0, **options))


def test_fisher_files_in_the_wrong_order_or_damaged_are_rejected(tmp_path: Path) -> None:
    paths = make_seeds(tmp_path, 1)
    fishers = add_fishers(paths)
    data = make_images(tmp_path / "data", LABELS[:2], per_class=1)
    words: dict[str, Any] = {"data": data, "workers": 0, "method": "fisher"}
    with pytest.raises(WiseftError, match="is the Fisher information of checkpoint"):
        evaluate(EvalRequest(paths, fisher=fishers[::-1], **words))
    damaged = bytearray(fishers[1].read_bytes())
    damaged[-1] ^= 1
    fishers[1].write_bytes(damaged)
    with pytest.raises(CheckpointError, match="do not match its description"):
        evaluate(EvalRequest(paths, fisher=fishers, **words))


def test_results_are_held_by_method_and_options(tmp_path: Path) -> None:
    paths = make_seeds(tmp_path)
    data = make_images(tmp_path / "data", LABELS, per_class=2)
    words: dict[str, Any] = {"data": data, "workers": 0, "results": tmp_path / "r.jsonl"}
    evaluate(EvalRequest(paths, method="ties", alpha=0.5, **words))
    for path in data.rglob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    held = evaluate(EvalRequest(paths, method="ties", alpha=0.5, **words))
    (line,) = held.lines
    assert line.merged_by is not None
    assert line.merged_by.options == {"density": "0.2", "trim_scope": "model"}
    assert [checkpoint.name for checkpoint in line.checkpoints] == [path.stem for path in paths]
    for other in (
        {"method": "ties", "options": {"density": 0.3}},
        {"method": "dare"},
        {"method": "ties", "weights": "0.5,0.25,0.25"},
        {},
    ):
        with pytest.raises(WiseftError, match="unreadable images"):
            evaluate(EvalRequest(paths, alpha=0.5, **words, **other))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ties", "alpha": "0:1:0.25", "select_on": "val"},
        {"method": "model-stock"},
        {"method": "soup"},
    ],
    ids=name_of,
)
def test_best_merge_is_the_file_whose_row_was_chosen(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    paths = make_seeds(tmp_path)
    test = make_images(tmp_path / "test", LABELS, per_class=3)
    val = make_images(tmp_path / "val", LABELS, per_class=3, seed=1)
    best = tmp_path / "best.safetensors"
    words: dict[str, Any] = {"data": [str(test), str(val)], "workers": 0}
    found = evaluate(EvalRequest(paths, merge_best=best, **words, **options))
    alpha = None if found.selected_alpha is None else found.selected_alpha.text
    rows = {line.set_name: line for line in found.lines if line.alpha == alpha}
    alone = evaluate(EvalRequest(best, **words))
    assert {line.set_name: line.metrics for line in alone.lines} == {
        name: line.metrics for name, line in rows.items()
    }
    assert (read_card(best).alpha, read_card(best).role) == (alpha, "merged")

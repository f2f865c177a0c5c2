"""A sweep gives each row the numbers of its weights alone, in one pass over the images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation import tiny
from tests.evaluation.tiny import (
    CLASSES,
    PREPROCESS,
    RESNET,
    VIT,
    jobs_of,
    make_checkpoint,
    make_images,
    make_pair,
    run_jobs,
)
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.data import loading as loading_module
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.loading import ImageBatch
from wiseft_cli.errors import DatasetError, ModelError
from wiseft_cli.evaluation import sweep as sweep_module
from wiseft_cli.evaluation.scoring import load_images
from wiseft_cli.evaluation.sweep import SweepSettings, chunked, sweep
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.merge import merge_checkpoints
from wiseft_cli.model.classifier import ImageClassifier, load_classifier

LABELS = [entry.id for entry in CLASSES]
CPU = torch.device("cpu")
RANGE = "0:1:0.25"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        make_images(tmp_path / "val", LABELS, per_class=4, seed=1),
        make_images(tmp_path / "shift", LABELS[1:6], per_class=3, seed=2),
    ]


def with_encoder_of(path: Path, encoder: Path, head: Path) -> Path:
    """Write a checkpoint with the encoder of one and the head of another."""
    with open_checkpoint(encoder) as first, open_checkpoint(head) as second:
        tensors = {
            name: (first if name.startswith("visual.") else second).read_array(name)
            for name in first.tensors
        }
        assert second.card is not None
        write_checkpoint(path, tensors, second.card)
    return path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the number of images of each forward pass of an image encoder."""
    calls: list[int] = []
    encode_image = ImageClassifier.encode_image

    def counting(self: ImageClassifier, images: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append(len(images))
        return encode_image(self, images, **options)

    monkeypatch.setattr(ImageClassifier, "encode_image", counting)
    return calls


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_row_of_a_sweep_equals_merging_to_a_file_and_evaluating_it(
    tmp_path: Path, folders: list[Path], config: dict[str, Any]
) -> None:
    pair = make_pair(tmp_path, config=config)
    swept = run_jobs(jobs_of(pair, folders, RANGE))
    outputs = [(alpha, tmp_path / f"m{alpha.text}.safetensors") for alpha in parse_alphas([RANGE])]
    merge_checkpoints(*pair, outputs)
    merged = run_jobs(jobs_of([path for _, path in outputs], folders))
    assert len(swept) == 10
    for row, alone in zip(swept, merged, strict=True):
        assert (
            replace(row, checkpoints=alone.checkpoints, alpha=None, protocol=alone.protocol)
            == alone
        )
    assert len({row.value for row in swept if row.set_name == "val"}) > 1


def test_lines_are_equal_for_any_workers_and_chunks(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(make_pair(tmp_path), folders, RANGE)
    expected = run_jobs(jobs)
    assert run_jobs(jobs, workers=2) == expected
    monkeypatch.setattr(sweep_module, "CHUNK_BYTES", 1)
    assert run_jobs(jobs) == expected


def test_images_are_decoded_once_for_any_number_of_alphas(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    load_image_of = loading_module.load_image_of

    def load(image_set: ImageSet, index: int) -> Image.Image:
        decoded.append(image_set.root / image_set.records[index].path)
        return load_image_of(image_set, index)

    monkeypatch.setattr(loading_module, "load_image_of", load)
    monkeypatch.setattr(sweep_module, "CHUNK_BYTES", 10 * 3 * 32 * 32 * 4)
    run_jobs(jobs_of(make_pair(tmp_path), folders, "0:1:0.1"))
    assert len(decoded) == len(set(decoded)) == 32 + 15


def test_each_checkpoint_keeps_its_preprocessing_and_class_order(
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
    together = run_jobs(jobs_of(paths, folders[:1]))
    alone = [run_jobs(jobs_of([path], folders[:1]))[0] for path in paths]
    assert together == alone
    # The same weights under a reversed list of classes are another classifier.
    assert together[0].value != together[2].value


def test_checkpoints_with_equal_encoders_share_features(
    tmp_path: Path, folders: list[Path], encoded: list[int]
) -> None:
    theta_0, theta_1 = make_pair(tmp_path, config=RESNET)
    probe = with_encoder_of(tmp_path / "probe.safetensors", theta_0, theta_1)
    expected = [run_jobs(jobs_of([path], folders[:1]))[0] for path in (theta_0, probe)]
    encoded.clear()
    assert run_jobs(jobs_of([theta_0, probe], folders[:1])) == expected
    assert sum(encoded) == 32
    encoded.clear()
    # A sweep of a linear classifier sets heads, and runs the encoder once.
    lines = run_jobs(jobs_of([theta_0, probe], folders[:1], "0:1:0.1"))
    assert sum(encoded) == 32
    assert [line.metrics for line in (lines[0], lines[-1])] == [line.metrics for line in expected]
    encoded.clear()
    run_jobs(jobs_of([theta_0, theta_1], folders[:1], "0,0.5,1"))
    assert sum(encoded) == 3 * 32


def test_output_ensemble_averages_the_logits_of_both(
    tmp_path: Path, folders: list[Path], encoded: list[int]
) -> None:
    pair = make_pair(tmp_path, config=RESNET)
    jobs = jobs_of(pair, folders[:1], ensemble=True)
    encoded.clear()
    *plain, ensemble = run_jobs(jobs)
    assert sum(encoded) == 2 * 32  # the rows of the two give the parts
    assert (ensemble.ensemble, ensemble.alpha, len(ensemble.checkpoints)) == (True, None, 2)
    # Independently: averaging logits is one head on the two models' features side by side.
    logits, image_set = [], list_image_folder(folders[0])
    for path in pair:
        batches = []
        classifier = load_classifier(path)[0]
        for batch in load_images(image_set, PREPROCESS, batch_size=8, workers=0, device=CPU):
            with torch.no_grad():
                batches.append(classifier(batch.images))
        logits.append(torch.cat(batches))
    predicted = ((logits[0] + logits[1]) / 2).argmax(dim=1)
    targets = torch.arange(8).repeat_interleave(4)
    assert ensemble.value == float((predicted == targets).double().mean())
    assert len({line.value for line in (*plain, ensemble)}) > 1
    swept = run_jobs(jobs_of(pair, folders[:1], "0,0.3,1", ensemble=True))
    assert swept[-1] == ensemble


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_of_the_encoder_is_in_the_line(
    tmp_path: Path, folders: list[Path], precision: str
) -> None:
    pair = make_pair(tmp_path)
    exact_jobs = jobs_of(pair, folders[:1])
    jobs = jobs_of(pair, folders[:1], precision=precision)
    assert [job.line.key for job in jobs] != [job.line.key for job in exact_jobs]
    for line, exact in zip(run_jobs(jobs), run_jobs(exact_jobs), strict=True):
        assert line.precision == precision
        assert abs(line.value - exact.value) <= 0.1


def test_chunks_hold_whole_batches_and_bound_memory() -> None:
    batches = [
        ImageBatch(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2), {}) for _ in range(7)
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


def test_more_unreadable_images_than_allowed_are_an_error(
    tmp_path: Path, folders: list[Path]
) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=1)
    bad = damage(folders[0], 2)
    jobs = jobs_of([path], folders[:1])
    with pytest.raises(DatasetError) as caught:
        run_jobs(jobs, max_unreadable=1)
    assert caught.value.message.splitlines() == [
        "image set 'val': 2 unreadable images among the first 8 of 32, at most 1 allowed:",
        *(f"  cannot read image {at}: not an image in a format that Pillow knows" for at in bad),
    ]
    (line,) = run_jobs(jobs, max_unreadable=2)
    assert (line.n_images, line.n_unreadable) == (30, 2)
    for at in bad:
        at.unlink()
    (without,) = run_jobs(jobs_of([path], folders[:1]))
    assert without.metrics == line.metrics


def test_set_without_a_readable_image_is_an_error(tmp_path: Path, folders: list[Path]) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=1)
    damage(folders[1], 15)
    with pytest.raises(DatasetError, match="none of its 15 images is readable"):
        run_jobs(jobs_of([path], folders[1:]), max_unreadable=99)


def test_non_finite_logits_are_reported_with_checkpoint_and_set(
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
        run_jobs(jobs_of([path], folders[:1]))


def test_progress_counts_every_image_for_every_row(tmp_path: Path, folders: list[Path]) -> None:
    damage(folders[0], 1)
    seen: list[int] = []
    jobs = jobs_of(make_pair(tmp_path), folders, RANGE)
    settings = SweepSettings(8, 0, CPU, max_unreadable=1)
    list(sweep(jobs, settings, on_progress=seen.append))
    assert sum(seen) == 5 * (32 + 15)

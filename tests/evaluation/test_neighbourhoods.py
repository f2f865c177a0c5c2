"""pm-0 and pm-10 against their definition, batch by batch and with unreadable frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wiseft_cli.evaluation.neighbourhoods import FrameTally

from tests.evaluation.tiny import CLASSES, make_checkpoint, make_images
from wiseft_cli.data.image_set import ImageRecord, ImageSet
from wiseft_cli.data.label_join import join_image_set
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError, UsageError
from wiseft_cli.evaluation.metrics import AnchorCount, SetAccuracy
from wiseft_cli.evaluation.plan import plan_jobs
from wiseft_cli.evaluation.scoring import evaluate_image_set
from wiseft_cli.evaluation.weight_sets import plan_weight_sets, read_checkpoints
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.reporting.statistics import clopper_pearson

CPU = torch.device("cpu")


def frames(n: int, neighbourhoods: dict[int, tuple[int, ...]]) -> ImageSet:
    names = {str(at): tuple(map(str, around)) for at, around in neighbourhoods.items()}
    records = tuple(ImageRecord(str(at), "a", 1) for at in range(n))
    return ImageSet("video", Path("/"), records, neighbourhoods=names)


@given(st.integers(0, 2**32 - 1))
def test_counts_follow_the_definition_whatever_the_batches(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 20
    sets = {
        int(anchor): tuple(
            int(at) for at in random.choice(n, random.integers(0, 4)) if at != anchor
        )
        for anchor in random.choice(n, 6, replace=False)
    }
    state = random.choice(["right", "right", "wrong", "unreadable"], n)
    state[next(iter(sets))] = "right"
    tally = FrameTally(frames(n, sets), CPU)
    order = [at for at in random.permutation(n) if state[at] != "unreadable"]
    for part in np.array_split(order, 3):
        tally.add(torch.tensor(part), torch.tensor(state[part] == "right"))
    anchors = [anchor for anchor in sets if state[anchor] != "unreadable"]
    right = [anchor for anchor in anchors if state[anchor] == "right"]
    all_right = [anchor for anchor in right if not any(state[at] == "wrong" for at in sets[anchor])]
    assert tally.finish() == AnchorCount(len(anchors), len(right), len(all_right))


def test_a_set_of_single_images_has_no_anchors_and_none_readable_is_an_error() -> None:
    single = FrameTally(frames(3, {}), CPU)
    single.add(torch.tensor([0]), torch.tensor([True]))
    assert single.finish() is None
    tally = FrameTally(frames(3, {0: (1,), 2: ()}), CPU)
    tally.add(torch.tensor([1]), torch.tensor([True]))
    with pytest.raises(DatasetError) as caught:
        tally.finish()
    assert caught.value.message == "image set 'video': none of its 2 anchor frames is readable"


def test_both_metrics_have_the_exact_interval_over_the_anchors() -> None:
    counts = SetAccuracy(70, {"top1": 60}, 0, 5, anchors=AnchorCount(9, 7, 4))
    metrics = counts.metrics()
    assert (metrics["pm0"].value, metrics["pm10"].value) == (7 / 9, 4 / 9)
    assert metrics["pm0"].interval == clopper_pearson(7, 9)
    assert metrics["pm10"].interval == clopper_pearson(4, 9)


def test_a_validation_set_of_frames_has_its_anchors_counted_in_training_too(
    tmp_path: Path,
) -> None:
    classifier, card = load_classifier(make_checkpoint(tmp_path / "z.safetensors", seed=1))
    root = make_images(tmp_path / "v", [entry.id for entry in CLASSES[:2]], per_class=3)
    images = open_image_set(str(root))
    paths = [record.path for record in images.records]
    images = ImageSet("v", root, images.records, neighbourhoods={paths[0]: (paths[1], paths[4])})
    counts = evaluate_image_set(
        classifier,
        images,
        join_image_set(images, card.classes),
        card.preprocess,
        batch_size=2,
        workers=0,
        device=CPU,
    )
    assert counts.anchors is not None
    assert counts.anchors.n_anchors == 1


def test_a_set_of_single_images_cannot_be_reported_by_pm10(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "z.safetensors", seed=1)
    root = make_images(tmp_path / "v", [CLASSES[0].id, CLASSES[1].id], per_class=1)
    rows = plan_weight_sets(read_checkpoints([checkpoint]), ())
    with pytest.raises(UsageError) as caught:
        plan_jobs(rows, [open_image_set(f"{root}?primary=pm10")])
    assert caught.value.message == (
        "image set 'v': its primary metric is 'pm10', which it does not have; it has top1,"
        " mean_per_class, macro_f1"
    )
    assert "pm0 and pm10 a published set of video frames" in (caught.value.hint or "")

"""Joining image sets with heads, the primary metric, held results, and checked requests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.test_shards import png, write_tar
from tests.evaluation.tiny import CLASSES, PREPROCESS, VIT, make_checkpoint, make_images
from tests.reporting.lines import line
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import JoinOptions, data_fingerprint
from wiseft_cli.data.records import ImageRecords
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError, UsageError
from wiseft_cli.evaluation.plan import Job, find_held, plan_evaluation, plan_jobs
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.evaluation.weight_sets import plan_weight_sets, read_checkpoints
from wiseft_cli.reporting.results import Metric

LABELS = [entry.id for entry in CLASSES]


def test_metrics_depend_on_classes_and_groups_and_the_set_chooses_its_primary(
    tmp_path: Path,
) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=0)
    rows = plan_weight_sets(read_checkpoints([path]), ())
    images = list_image_folder(make_images(tmp_path / "val", LABELS[:6], per_class=1))
    (job,) = plan_jobs(rows, [images])
    assert (tuple(job.line.metrics), job.line.primary) == (
        ("top1", "top5", "mean_per_class", "macro_f1"),
        "top1",
    )
    (job,) = plan_jobs(rows, [replace(images, join_options=JoinOptions(primary="macro_f1"))])
    assert job.line.primary == "macro_f1"
    grouped = ImageRecords(replace(record, group="g") for record in images.records)
    (job,) = plan_jobs(rows, [replace(images, records=grouped)])
    assert [*job.line.metrics][-1] == "worst_group"
    with pytest.raises(UsageError, match="'worst_group', which it does not have; it has top1, top"):
        plan_jobs(rows, [replace(images, join_options=JoinOptions(primary="worst_group"))])
    with pytest.raises(UsageError, match="is 'accuracy', expected one of top1, top5"):
        plan_jobs(rows, [replace(images, join_options=JoinOptions(primary="accuracy"))])


def test_protocol_distinguishes_class_orders_models_and_preprocessing(tmp_path: Path) -> None:
    options: list[dict[str, object]] = [
        {},
        {},
        {"classes": CLASSES[::-1]},
        {"preprocess": PREPROCESS | {"mean": [0.1] * 3}},
        {"config": VIT | {"quick_gelu": True}},
    ]
    paths = [
        make_checkpoint(tmp_path / f"{at}.safetensors", seed=0, **option)
        for at, option in enumerate(options)
    ]
    images = list_image_folder(make_images(tmp_path / "val", LABELS[:3], per_class=1))
    jobs = plan_jobs(plan_weight_sets(read_checkpoints(paths), ()), [images])
    assert jobs[0].line.protocol == jobs[1].line.protocol
    assert len({job.line.protocol for job in jobs}) == 4


def plan(tmp_path: Path, *sets: str, reference: str | None = None) -> tuple[Job, ...]:
    path = tmp_path / "a.safetensors"
    if not path.exists():
        make_checkpoint(path, seed=0)
    for name in sets:
        if not (tmp_path / name).exists():
            make_images(tmp_path / name, LABELS[:3], per_class=1)
    image_sets = [list_image_folder(tmp_path / name) for name in sets]
    rows = plan_weight_sets(read_checkpoints([path]), ())
    return plan_jobs(rows, image_sets, reference=reference)


def test_first_set_is_the_reference_unless_another_is_named(tmp_path: Path) -> None:
    assert [job.line.reference for job in plan(tmp_path, "a", "b", "c")] == [True, False, False]
    jobs = plan(tmp_path, "a", "b", "c", reference="b")
    assert [job.line.reference for job in jobs] == [False, True, False]
    with pytest.raises(UsageError, match=r"^--reference 'x' is not an image set; there are a, b$"):
        plan(tmp_path, "a", "b", reference="x")


def test_two_sets_with_the_same_name_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        plan(tmp_path, "a", "a")
    assert caught.value.message == "more than one image set is named 'a'"


def test_each_checkpoint_joins_by_its_own_classes(tmp_path: Path) -> None:
    reversed_classes = CLASSES[::-1]
    paths = [
        make_checkpoint(tmp_path / "a.safetensors", seed=0),
        make_checkpoint(tmp_path / "b.safetensors", seed=0, classes=reversed_classes),
    ]
    images = list_image_folder(make_images(tmp_path / "val", LABELS[:3], per_class=1))
    rows = plan_weight_sets(read_checkpoints(paths), ())
    first, second = plan_jobs(rows, [images], reference=None)
    assert first.join.index == {"n00": 0, "n01": 1, "n02": 2}
    assert second.join.index == {"n00": 7, "n01": 6, "n02": 5}
    stranger = list_image_folder(make_images(tmp_path / "no", ["x"], per_class=1))
    with pytest.raises(DatasetError):
        plan_jobs(rows, [stranger], reference=None)


def test_held_line_is_reused_only_for_the_same_measurement(tmp_path: Path) -> None:
    (job,) = plan(tmp_path, "val")
    held = line(
        "val",
        2,
        3,
        checkpoints=(replace(job.line.checkpoints[0], name="older name"),),
        data_fingerprint=data_fingerprint(job.image_set),
        protocol=job.line.protocol,
        metrics={name: Metric(1.0, 1.0, 1.0) for name in job.line.metrics},
    )
    done = find_held([job], [held], max_unreadable=0)
    assert done[job] == replace(held, checkpoints=job.line.checkpoints, reference=True)
    for change in (
        {"set_name": "other"},
        {"data_fingerprint": "sha256:0"},
        {"join": "name"},
        {"precision": "bf16"},
        {"n_unreadable": 1},
        {"alpha": "0.5"},
        {"protocol": "sha256:0"},
        {"checkpoints": (replace(job.line.checkpoints[0], digest="sha256:0"),)},
        {"metrics": {**held.metrics, "top5": held.metrics["top1"]}},
    ):
        assert find_held([job], [replace(held, **change)], max_unreadable=0) == {}


def test_optional_sets_are_left_out_for_heads_of_other_classes(tmp_path: Path) -> None:
    animals = [ClassEntry(name, name) for name in ("cat", "dog", "daisy")]
    flowers = [ClassEntry(name, name) for name in ("rose", "tulip", "daisy", "lily")]
    rows = plan_weight_sets(
        read_checkpoints(
            [
                make_checkpoint(tmp_path / "animals.safetensors", seed=0, classes=animals),
                make_checkpoint(tmp_path / "flowers.safetensors", seed=1, classes=flowers),
            ]
        ),
        (),
        output_ensemble=False,
    )
    labels = {"animals": ["cat", "dog"], "flowers": ["daisy", "lily", "rose"]}
    sets = [
        list_image_folder(make_images(tmp_path / name, of_set, per_class=1), name=name)
        for name, of_set in labels.items()
    ]
    jobs = plan_jobs(rows, sets, optional=list(labels))
    assert [(job.weights.name, job.image_set.name, job.line.reference) for job in jobs] == [
        ("animals", "animals", True),
        ("flowers", "flowers", True),  # the first that this head fits
    ]
    (job,) = plan_jobs(rows[1:], sets, optional=list(labels))
    assert (job.image_set.name, job.line.reference) == ("flowers", True)
    with pytest.raises(DatasetError) as caught:
        plan_jobs(rows[1:], sets[:1], optional=["animals"])
    assert caught.value.message == ("no checkpoint has a head for the classes of animals")
    with pytest.raises(DatasetError, match="2 of 2 labels are not classes of the head"):
        plan_jobs(rows[1:], sets)


def test_set_of_single_images_has_no_pm10(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "z.safetensors", seed=1)
    root = make_images(tmp_path / "v", [CLASSES[0].id, CLASSES[1].id], per_class=1)
    rows = plan_weight_sets(read_checkpoints([checkpoint]), ())
    with pytest.raises(UsageError) as caught:
        plan_jobs(rows, [open_image_set(f"{root}?primary=pm10")])
    assert caught.value.message == (
        "image set 'v': its primary metric is 'pm10', which it does not have; it has top1,"
        " mean_per_class, macro_f1"
    )
    assert "pm10 needs a published set of video frames" in (caught.value.hint or "")


def test_single_shards_of_one_pattern_are_reported(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "z.safetensors", seed=1)
    for name in ("x-000.tar", "x-001.tar", "y.tar"):
        write_tar(tmp_path / name, {"0.png": png(1), "0.cls": b"class a"})
    for names, n_warnings in ((["x-000", "x-001"], 1), (["x-000", "y"], 0), (["y"], 0)):
        specs = [str(tmp_path / f"{name}.tar") for name in names]
        warnings = plan_evaluation(EvalRequest(checkpoint, data=specs)).warnings
        found = [text for text in warnings if "are image sets of their own" in text]
        assert len(found) == n_warnings
        assert all("quote the pattern: --data 'x-{...}.tar'" in text for text in found)
    pattern = str(tmp_path / "x-{000..001}.tar")
    assert plan_evaluation(EvalRequest(checkpoint, data=[pattern])).warnings == ()

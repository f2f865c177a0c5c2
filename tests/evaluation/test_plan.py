from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.tiny import (
    CLASSES,
    PREPROCESS,
    VIT,
    make_checkpoint,
    make_images,
    make_pair,
)
from tests.reporting.lines import line
from wiseft_cli.checkpoint.card import Card, ClassEntry
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import JoinOptions, data_fingerprint
from wiseft_cli.errors import (
    CheckpointError,
    DatasetError,
    IncompatibleCheckpointsError,
    NotACheckpointError,
    UsageError,
)
from wiseft_cli.evaluation.plan import Job, plan_jobs, split_held
from wiseft_cli.evaluation.weight_sets import (
    doubts_about_pair,
    plan_weight_sets,
    read_checkpoints,
)
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.reporting.results import Metric

LABELS = [entry.id for entry in CLASSES]


def test_checkpoints_are_named_by_as_much_of_their_path_as_tells_them_apart(tmp_path: Path) -> None:
    paths = []
    for at, name in enumerate(("x/run1/best", "x/run2/best", "x/run2/last")):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.append(make_checkpoint(path, seed=at))
    assert [item.name for item in read_checkpoints(paths[1:])] == ["best", "last"]
    names = [item.name for item in read_checkpoints(paths)]
    assert names == ["run1/best", "run2/best", "run2/last"]


def test_a_folder_among_the_checkpoints_proposes_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_checkpoints([tmp_path])
    assert (
        caught.value.message
        == f"{tmp_path} is a folder without a checkpoint, expected a checkpoint"
    )
    assert caught.value.hint == f"did you mean `--data {tmp_path}`?"


def test_a_folder_with_one_checkpoint_is_that_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = make_checkpoint(tmp_path / "run" / "best.safetensors", seed=0)
    (checkpoint,) = read_checkpoints([tmp_path / "run"])
    assert (checkpoint.path, checkpoint.name) == (path, "best")
    make_checkpoint(tmp_path / "run" / "last.safetensors", seed=1)
    with pytest.raises(NotACheckpointError, match="contains 2 checkpoints, expected one"):
        read_checkpoints([tmp_path / "run"])


def test_a_sharded_checkpoint_is_refused_since_it_has_no_card(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name in "ab":
        save_file({name: np.zeros(2, np.float32)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}')
    for path in (index, tmp_path):
        with pytest.raises(CheckpointError, match="a sharded checkpoint has no card"):
            read_checkpoints([path])


def test_an_ensemble_is_of_exactly_two_with_one_label_space(tmp_path: Path) -> None:
    pair = read_checkpoints(make_pair(tmp_path))
    rows = plan_weight_sets(pair, (), output_ensemble=True)
    assert [row.name for row in rows] == [
        "zeroshot",
        "finetuned",
        "output ensemble of zeroshot to finetuned",
    ]
    assert [part.name for part in rows[-1].parts] == ["zeroshot", "finetuned"]
    with pytest.raises(UsageError, match=r"^--output-ensemble averages exactly two checkpoints, 1"):
        plan_weight_sets(pair[:1], (), output_ensemble=True)
    other = make_checkpoint(
        tmp_path / "b.safetensors", seed=1, classes=CLASSES[::-1], preprocess={"size": 64}
    )
    with pytest.raises(CheckpointError, match="has other classes and preprocessing than"):
        plan_weight_sets(read_checkpoints([pair[0].path, other]), (), output_ensemble=True)


def test_metrics_depend_on_classes_and_groups_and_the_set_names_its_primary(
    tmp_path: Path,
) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=0)
    rows = plan_weight_sets(read_checkpoints([path]), ())
    images = list_image_folder(make_images(tmp_path / "val", LABELS[:6], per_class=1))
    (job,) = plan_jobs(rows, [images])
    assert (job.metrics, job.primary) == (("top1", "top5", "mean_per_class", "macro_f1"), "top1")
    (job,) = plan_jobs(rows, [replace(images, join_options=JoinOptions(primary="macro_f1"))])
    assert job.primary == "macro_f1"
    grouped = tuple(replace(record, group="g") for record in images.records)
    (job,) = plan_jobs(rows, [replace(images, records=grouped)])
    assert job.metrics[-1] == "worst_group"
    with pytest.raises(UsageError, match="'worst_group', which it does not have; it has top1, top"):
        plan_jobs(rows, [replace(images, join_options=JoinOptions(primary="worst_group"))])
    with pytest.raises(UsageError, match="is 'accuracy', expected one of top1, top5"):
        plan_jobs(rows, [replace(images, join_options=JoinOptions(primary="accuracy"))])


def test_the_protocol_tells_class_orders_models_and_preprocessing_apart(tmp_path: Path) -> None:
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
    assert jobs[0].protocol == jobs[1].protocol
    assert len({job.protocol for job in jobs}) == 4


def test_a_checkpoint_given_twice_is_refused_also_through_a_link(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=0)
    (tmp_path / "b.safetensors").symlink_to(path)
    with pytest.raises(UsageError, match=r"^given more than once: .*a\.safetensors, .*b\.safe"):
        read_checkpoints([path, tmp_path / "b.safetensors"])


def test_files_without_a_card_or_a_model_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(NotACheckpointError, match="has no wiseft card"):
        read_checkpoints([tmp_path / "foreign.safetensors"])
    write_checkpoint(tmp_path / "m.safetensors", {"x": np.zeros(3, np.float32)}, Card("merged"))
    with pytest.raises(CheckpointError, match="names no model, preprocessing or classes"):
        read_checkpoints([tmp_path / "m.safetensors"])
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(NotACheckpointError):
        read_checkpoints([tmp_path / "text.safetensors"])


@pytest.mark.parametrize("count", [1, 3])
def test_alphas_need_exactly_two_checkpoints(tmp_path: Path, count: int) -> None:
    paths = [make_checkpoint(tmp_path / f"{at}.safetensors", seed=at) for at in range(count)]
    with pytest.raises(UsageError, match=f"exactly two checkpoints, {count} given$"):
        plan_weight_sets(read_checkpoints(paths), parse_alphas(["0.5"]))


def test_with_alphas_the_rows_are_the_points_between_and_nothing_else(tmp_path: Path) -> None:
    rows = plan_weight_sets(read_checkpoints(make_pair(tmp_path)), parse_alphas(["0:1:0.5"]))
    assert [row.alpha.text for row in rows if row.alpha] == ["0", "0.5", "1"]
    assert rows[1].name == "zeroshot to finetuned at alpha 0.5"


def test_a_pair_of_different_classes_or_preprocessing_is_refused(tmp_path: Path) -> None:
    theta_0 = make_checkpoint(tmp_path / "a.safetensors", seed=0)
    theta_1 = make_checkpoint(
        tmp_path / "b.safetensors",
        seed=1,
        role="finetuned",
        preprocess=PREPROCESS | {"size": 64},
        classes=(ClassEntry("other", "other"), *CLASSES[1:]),
    )
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        plan_weight_sets(read_checkpoints([theta_0, theta_1]), parse_alphas(["0.5"]))
    assert "'other', expected 'n00'" in caught.value.message
    assert "preprocessing.size: 64, expected 32" in caught.value.message


def test_a_reversed_pair_is_refused_and_a_strange_one_doubted(tmp_path: Path) -> None:
    theta_0, theta_1 = make_pair(tmp_path)
    with pytest.raises(CheckpointError, match="expected a zero-shot checkpoint"):
        plan_weight_sets(read_checkpoints([theta_1, theta_0]), parse_alphas(["0.5"]))
    stranger = make_checkpoint(tmp_path / "stranger.safetensors", seed=9)
    assert doubts_about_pair(*read_checkpoints([theta_0, theta_1])) == ()
    (doubt,) = doubts_about_pair(*read_checkpoints([stranger, theta_1]))
    assert "was fine-tuned from another zero-shot checkpoint" in doubt


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


def test_the_first_set_is_the_reference_unless_another_is_named(tmp_path: Path) -> None:
    assert [job.reference for job in plan(tmp_path, "a", "b", "c")] == [True, False, False]
    jobs = plan(tmp_path, "a", "b", "c", reference="b")
    assert [job.reference for job in jobs] == [False, True, False]
    with pytest.raises(UsageError, match=r"^--reference 'x' is no image set; there are a, b$"):
        plan(tmp_path, "a", "b", reference="x")


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
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


def test_a_held_line_is_reused_only_for_the_same_measurement(tmp_path: Path) -> None:
    (job,) = plan(tmp_path, "val")
    held = line(
        "val",
        2,
        3,
        checkpoints=(replace(job.checkpoint_names[0], name="older name"),),
        data_fingerprint=data_fingerprint(job.image_set),
        protocol=job.protocol,
        metrics={name: Metric(1.0, 1.0, 1.0) for name in job.metrics},
    )
    done, to_do = split_held([job], [held], max_unreadable=0)
    assert to_do == ()
    assert done[job] == replace(held, checkpoints=job.checkpoint_names, reference=True)
    for change in (
        {"set_name": "other"},
        {"data_fingerprint": "sha256:0"},
        {"join": "name"},
        {"precision": "bf16"},
        {"n_unreadable": 1},
        {"alpha": "0.5"},
        {"protocol": "sha256:0"},
        {"checkpoints": (replace(job.checkpoint_names[0], digest="sha256:0"),)},
        {"metrics": {**held.metrics, "top5": held.metrics["top1"]}},
    ):
        assert split_held([job], [replace(held, **change)], max_unreadable=0) == ({}, (job,))


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
    assert [(job.weights.name, job.image_set.name, job.reference) for job in jobs] == [
        ("animals", "animals", True),
        ("flowers", "flowers", True),  # the first that this head fits
    ]
    (job,) = plan_jobs(rows[1:], sets, optional=list(labels))
    assert (job.image_set.name, job.reference) == ("flowers", True)
    with pytest.raises(DatasetError) as caught:
        plan_jobs(rows[1:], sets[:1], optional=["animals"])
    assert caught.value.message == (
        "the heads of all checkpoints are of other classes than animals"
    )
    with pytest.raises(DatasetError, match="2 of 2 labels are not classes of the head"):
        plan_jobs(rows[1:], sets)

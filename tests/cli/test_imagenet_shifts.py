"""The paper's evaluation in one command: six sets as unpacked, against plain NumPy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from tests.cli.test_zeroshot_head import head
from tests.data.imagenet_labels import write_devkit
from tests.data.test_dataset_card import timm_subset
from tests.evaluation.patterns import draw, logits_of, make_pattern_checkpoint
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.data.dataset_card import read_dataset_card

IDS = ImageNetInfo("imagenet-1k").label_names()
OBJECTS = {
    "alarm_clock": ("n02708093", "n03196217"),
    "banana": ("n07753592",),
    "chair": ("n02791124", "n03376595", "n04099969"),
    "t-shirt": ("n03595614",),
}
"""Folders of ObjectNet and their ImageNet ids, as its own mapping says."""
FRUIT = "n07745940"
"""A class of ImageNet and ImageNet-R that is not in ObjectNet."""
SETS = ("imagenet", "imagenet-v2", "imagenet-r", "imagenet-sketch", "objectnet", "imagenet-a")
Truth = Mapping[Path, Sequence[str]]
"""Images and their right ids."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a few images of the six sets, in the layouts of their archives."""
    root = tmp_path_factory.mktemp("data")
    make_imagenet(root / "imagenet")
    for at in (0, 9, 10, 99, 100, 999):
        folder = root / f"imagenet-v2/imagenetv2-matched-frequency-format-val/{at}"
        for name in ("0a1b2c.jpeg", "d3e4f5.jpeg"):
            draw(folder / name, IDS[at], noise=0.4)
    for name, folder, subset in (
        ("imagenet-r", "imagenet-r", timm_subset("imagenet-r")),
        ("imagenet-sketch", "sketch", IDS),
        ("imagenet-a", "imagenet-a", timm_subset("imagenet-a")),
    ):
        for class_id in subset[:: len(subset) // 7]:
            for at in (1, 2):
                draw(root / name / folder / class_id / f"{at}.JPEG", class_id, noise=0.4)
        (root / name / folder / "README.txt").write_text("The archive has it.\n")
    make_objectnet(root / "objectnet/objectnet-1.0")
    return root


def make_imagenet(root: Path) -> None:
    """Write flat validation images as downloaded, with the development kit beside them."""
    truth = [IDS[at] for at in (20, 10, 500, 20, 0, 999, 7, 7)]
    for number, class_id in enumerate(truth, start=1):
        draw(root / f"val/ILSVRC2012_val_{number:08d}.JPEG", class_id, noise=0.35)
    write_devkit(root / "ILSVRC2012_devkit_t12/data", [*reversed(IDS)], truth)


def make_objectnet(root: Path) -> None:
    """Write four of the 113 folders and two others; the images have a red border."""
    for folder, ids in OBJECTS.items():
        for at in range(4):
            path = root / f"images/{folder}/{at:015x}.png"
            draw(path, ids[at % len(ids)], noise=0.45)
            pixels = np.array(Image.open(path))
            pixels[[0, -1]] = pixels[:, [0, -1]] = (255, 0, 0)
            Image.fromarray(pixels).save(path)
    for folder in ("air_freshener", "ziploc_bag"):
        draw(root / f"images/{folder}/{0:015x}.png", FRUIT, noise=0)
    for file in ("README", "LICENSE", "mappings/objectnet_to_imagenet_1k.json"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text("{}\n")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = [ClassEntry(class_id, "x") for class_id in IDS]
    return make_pattern_checkpoint(tmp_path_factory.mktemp("w") / "z.safetensors", classes)


def accuracies(checkpoint: Path, data: Path, *, border: int = 0) -> dict[str, float]:
    """Compute the top-1 of each set by its publishers' rules, from folder names and logits."""
    top1 = {}
    kit = data / "imagenet/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    numbers = [int(line) for line in kit.read_text().split()]
    for name in SETS:
        images = sorted(path for path in (data / name).rglob("*") if path.suffix[1:] in ENDINGS)
        logits = logits_of(checkpoint, images, border=border if name == "objectnet" else 0)
        if name == "imagenet":
            right = logits.argmax(axis=1) == [1000 - number for number in numbers]
        elif name == "imagenet-v2":
            right = logits.argmax(axis=1) == [int(path.parent.name) for path in images]
        elif name == "objectnet":
            right = objects_predicted(images, logits)
        else:
            ids = IDS if name == "imagenet-sketch" else timm_subset(name)
            scores = logits[:, [IDS.index(class_id) for class_id in ids]]
            right = scores.argmax(axis=1) == [ids.index(path.parent.name) for path in images]
        top1[name] = float(np.mean(right))
    return top1


ENDINGS = ("JPEG", "jpeg", "png")


def objects_predicted(images: Sequence[Path], logits: np.ndarray) -> list[bool]:
    """Score each of the 113 folders by the highest logit of its ids."""
    label_map = read_dataset_card("objectnet").label_map
    assert label_map is not None
    assert {name: label_map.classes[name] for name in OBJECTS} == OBJECTS
    folders = sorted(label_map.classes)
    scores = np.stack(
        [logits[:, [*map(IDS.index, label_map.classes[at])]].max(axis=1) for at in folders], axis=1
    )
    predicted = [folders[at] for at in scores.argmax(axis=1)]
    return [
        was == path.parent.name
        for was, path in zip(predicted, images, strict=True)
        if path.parent.name in OBJECTS
    ]


def test_suite_computes_the_papers_numbers_in_one_command(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "r.jsonl"
    words = ["eval", str(checkpoint), "--suite", "imagenet-shifts", "--root", str(data)]
    assert main([*words, "--results", str(results), "--workers", "0"]) == 0
    out, err = capsys.readouterr()
    expected = accuracies(checkpoint, data)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {line["set"]: line["metrics"]["top1"]["value"] for line in lines} == expected
    assert all(0 < value < 1 for value in expected.values()), expected
    assert [line["set"] for line in lines if line["reference"]] == ["imagenet"]
    assert [line["n_classes"] for line in lines] == [1000, 1000, 200, 1000, 113, 200]
    assert [line["join"] for line in lines] == ["id"] * 4 + ["map", "id"]
    shift = fmean(expected[name] for name in SETS[1:])
    average = (expected["imagenet"] + shift) / 2
    header, row, *_ = out.splitlines()
    assert re.split(r"  +", header) == ["checkpoint", *SETS, "mean shift", "average"]
    assert row.split()[1:] == [
        f"{100 * value:.2f}" for value in (*expected.values(), shift, average)
    ]
    assert (
        "image set 'objectnet': 2 images in 2 folders that are not among its 113 classes are left"
        " out, such as air_freshener" in err
    )


def test_crop_border_cuts_the_border_of_objectnet(
    data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"objectnet={data / 'objectnet'}?crop_border=2"
    assert main(["eval", str(checkpoint), "--data", given, "--json", "--workers", "0"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    expected = accuracies(checkpoint, data, border=2)["objectnet"]
    assert line["metrics"]["top1"]["value"] == expected
    assert expected != accuracies(checkpoint, data)["objectnet"]


@pytest.mark.usefixtures("place")
def test_head_of_objectnets_own_classes_is_evaluated_without_the_map(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--templates", "simple", "--truncate", "-o", "own.safetensors")
    assert head(*words, classes="objectnet") == 0
    classes = read_card(Path("own.safetensors")).classes
    assert len(classes) == 113
    assert ClassEntry("binder_closed", "binder (closed)") in classes
    own = make_pattern_checkpoint(
        tmp_path / "t.safetensors",
        [*reversed(classes)],
        pattern_ids=[OBJECTS.get(entry.id, (entry.id,))[0] for entry in reversed(classes)],
    )
    capsys.readouterr()
    given = f"objectnet={data / 'objectnet'}"
    assert main(["eval", str(own), "--data", given, "--json", "--workers", "0"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    images = [path for path in (data / "objectnet").rglob("*.png") if path.parent.name in OBJECTS]
    predicted = [classes[112 - at].id for at in logits_of(own, images).argmax(axis=1)]
    n_right = sum(was == path.parent.name for was, path in zip(predicted, images, strict=True))
    assert (line["n_images"], line["n_classes"]) == (16, 113)
    assert line["metrics"]["top1"]["value"] == n_right / 16
    assert 0 < n_right < 16


def test_finetune_accepts_the_training_split_of_imagenet(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for class_id in IDS[:3]:
        draw(tmp_path / f"imagenet/train/{class_id}/{class_id}_10026.JPEG", class_id, noise=0.3)
    words = [
        "finetune",
        str(checkpoint),
        "--train",
        f"imagenet={tmp_path / 'imagenet'}?split=train",
    ]
    words += ["--val", f"imagenet={data / 'imagenet'}", "-o", str(tmp_path / "f.safetensors")]
    quick = ["--epochs", "1", "--batch-size", "3", "--workers", "0", "--device", "cpu"]
    assert main([*words, *quick]) == 0
    err = capsys.readouterr().err
    assert "train    imagenet: 3 images of 3 classes (joined by id)" in err
    assert "split train has 1,281,167" in err

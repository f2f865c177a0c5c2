"""Published sets from their cards to the metric: head, fine-tuning and evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, recall_score

from tests.cli.test_zeroshot_head import head
from tests.data.published_copies import (
    Where,
    publish_cifar,
    publish_flowers102,
    write_cars,
    write_cifar10,
    write_cifar10_1,
    write_cifar10_2,
    write_cifar100,
    write_dtd,
    write_eurosat,
    write_flowers102,
    write_food101,
    write_sun397,
)
from tests.data.torchvision_copies import WRITERS, write_mnist
from tests.model.conftest import FAMILIES, write_model_folder
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.data.dataset_card import read_dataset_card

LINEAR = ["--freeze", "encoder", "--lr", "0.3", "--device", "cpu", "--threads", "1"]
"""A linear classifier on features of random weights learns the colour pattern of a class."""
SHORT = ["--epochs", "8", "--batch-size", "10", "--warmup", "1", "--weight-decay", "0"]


def finetune(train: str, output: str, *more: str) -> int:
    return main(
        ["finetune", "z.safetensors", "--train", train, *LINEAR, *SHORT, *more, "-o", output]
    )


def saved(name: str) -> list[dict]:
    lines = Path(f"predictions/{name}.f.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def results() -> dict[str, dict]:
    lines = map(json.loads, Path("r.jsonl").read_text().splitlines())
    return {line["set"]: line for line in lines}


def check_against_sklearn(name: str, expected_ids: Sequence[str]) -> float:
    """Compare a result with scikit-learn's value over the classes that were written."""
    predicted = [line["id"] for line in saved(name)]
    metrics = results()[name]["metrics"]
    assert metrics["top1"]["value"] == pytest.approx(accuracy_score(expected_ids, predicted))
    recall = recall_score(
        expected_ids, predicted, labels=sorted(set(expected_ids)), average="macro", zero_division=0
    )
    if "mean_per_class" in metrics:
        assert metrics["mean_per_class"]["value"] == pytest.approx(recall)
    return float(metrics["top1"]["value"])


@pytest.fixture
def cifars(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Write the three sets of the suite below `data/`; return the class numbers of each."""
    numbers = {
        "cifar10": [7, 1, 0, 9, 3, 3, 5, 8, 2, 6, 4, 1],
        "cifar10.1": [4, 9, 0, 2, 2, 8, 5],
        "cifar10.2": [6, 7, 1, 3, 9],
    }
    folder = write_cifar10(place / "data/cifar10", numbers["cifar10"], [*range(10)] * 5)
    publish_cifar(monkeypatch, "CIFAR10", folder)
    write_cifar10_1(place / "data/cifar10.1/datasets", numbers["cifar10.1"])
    write_cifar10_2(place / "data/cifar10.2", numbers["cifar10.2"])
    assert (
        head("--templates", "cifar10", "--truncate", "-o", "z.safetensors", classes="cifar10") == 0
    )
    return numbers


def test_cifar_suite_agrees_with_scikit_learn(cifars, capsys):
    card = read_card(Path("z.safetensors"))
    ids = read_dataset_card("cifar10").class_ids
    assert tuple(entry.id for entry in card.classes) == ids
    assert len(card.templates) == 18
    assert finetune("cifar10=data/cifar10?split=train", "f.safetensors") == 0
    words = ["--suite", "cifar-shifts", "--root", "data", "--results", "r.jsonl", "--workers", "2"]
    assert main(["eval", "f.safetensors", *words, "--save-predictions", "predictions"]) == 0
    err = capsys.readouterr().err
    assert "image set 'cifar10.1': 7 images, but CIFAR-10.1 (v6) has 2,000" in err
    assert list(results()) == ["cifar10", "cifar10.1", "cifar10.2"]
    for name, numbers in cifars.items():
        line = results()[name]
        assert (line["join"], line["n_classes"], line["n_images"]) == ("id", 10, len(numbers))
        # Patterns are easy to distinguish: a value below 1 means a wrong label.
        assert check_against_sklearn(name, [ids[number] for number in numbers]) == 1


@pytest.mark.usefixtures("cifars")
def test_workers_and_feature_cache_give_the_bytes_of_a_plain_run(capsys):
    train = "cifar10=data/cifar10?split=train"
    end_to_end = [*SHORT[2:], "--epochs", "1", "--device", "cpu", "--threads", "1"]
    for workers in ("0", "2"):
        words = [
            "--train",
            train,
            *end_to_end,
            "--workers",
            workers,
            "-o",
            f"w{workers}.safetensors",
        ]
        assert main(["finetune", "z.safetensors", *words]) == 0
        assert (
            finetune(train, f"l{workers}.safetensors", "--workers", workers, "--no-feature-cache")
            == 0
        )
    assert finetune(train, "kept.safetensors", "--feature-cache", "features") == 0
    assert "features of 50 images from" not in capsys.readouterr().err
    assert finetune(train, "found.safetensors", "--feature-cache", "features") == 0
    assert "features of 50 images from features" in capsys.readouterr().err
    assert Path("w0.safetensors").read_bytes() == Path("w2.safetensors").read_bytes()
    linear = [Path(f"{name}.safetensors").read_bytes() for name in ("l0", "l2", "kept", "found")]
    assert linear == linear[:1] * 4


@pytest.mark.usefixtures("cifars")
def test_datasets_check_decodes_pictures_in_arrays(capsys):
    assert main(["datasets", "check", "cifar10.2", "data/cifar10.2", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["n_images"], document["n_classes"], document["n_decoded"]) == (5, 5, 5)
    assert main(["datasets", "check", "cifar10", "data/cifar10", "--split", "train"]) == 1
    out, err = capsys.readouterr()
    assert out == "cifar10: data/cifar10/cifar-10-batches-py: 50 images of 10 classes; 50 decoded\n"
    assert "50 images, but CIFAR-10, split train has 50,000: the copy is incomplete" in err


TEST: Where = [(7, 1), (2, 2), (9, 3), (7, 4), (0, 5)]
TRAIN: Where = [(number, 11 + at) for at, number in enumerate([0, 2, 7, 9] * 4)]


def write_transfer_sets(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Write a copy of each set of the suite except CIFAR, in folders named after the sets."""
    write_cars(root / "stanford-cars", TEST, TRAIN)
    write_dtd(root / "dtd/dtd", test=TEST, train=TRAIN)
    write_sun397(root / "sun397/SUN397", test=TEST, train=TRAIN)
    write_food101(root / "food101/food-101", test=TEST, train=TRAIN)
    write_eurosat(root / "eurosat/2750", [*TEST, *TRAIN])
    publish_flowers102(patch, write_flowers102(root / "flowers102", test=TEST, train=TRAIN))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("stanford-cars", "?split=train"),
        ("dtd", "?split=train"),
        ("sun397", "?split=train"),
        ("food101", "?split=train"),
        ("eurosat", ""),
        ("flowers102", "?split=train"),
    ],
)
def test_transfer_set_agrees_with_scikit_learn(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str
):
    write_transfer_sets(place / "data", monkeypatch)
    # Prompts of long names differ only behind what fits into the tiny model's context.
    long = {**FAMILIES["vit"], "text_cfg": {**FAMILIES["vit"]["text_cfg"], "context_length": 77}}
    monkeypatch.setitem(FAMILIES, "vit-long", long)
    write_model_folder(place / "long", "vit-long", place / "bpe.txt.gz")
    built = head("--templates", name, "-o", "z.safetensors", classes=name, model="local-dir:long")
    assert built == 0
    ids = read_dataset_card(name).class_ids
    assert tuple(entry.id for entry in read_card(Path("z.safetensors")).classes) == ids
    more = ("--epochs", "40", "--workers", "0")
    assert finetune(f"{name}=data/{name}{split}", "f.safetensors", *more) == 0
    words = ["--data", f"{name}=data/{name}?primary=mean_per_class", "--workers", "0"]
    words += ["--results", "r.jsonl", "--save-predictions", "predictions"]
    assert main(["eval", "f.safetensors", *words]) == 0
    images = [*TEST, *TRAIN] if not split else TEST
    line = results()[name]
    assert (line["join"], line["n_classes"], line["n_images"]) == ("id", len(ids), len(images))
    # The paths of the images contain their numbers.
    expected = {f"{at}": ids[number] for number, at in images}
    paths = [line["path"] for line in saved(name)]
    found = [expected[re.findall(r"[0-9]+", path)[-1].lstrip("0")] for path in paths]
    assert check_against_sklearn(name, found) == 1


def test_transfer_suite_evaluates_each_checkpoint_on_the_sets_of_its_classes(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root = place / "data"
    write_transfer_sets(root, monkeypatch)
    for number, write in (("10", write_cifar10), ("100", write_cifar100)):
        folder = write(root / f"cifar{number}", [0, 1], [0, 1] * 5)
        publish_cifar(monkeypatch, f"CIFAR{number}", folder)
    for name in ("dtd", "cifar10"):
        given = ("--templates", "simple", "--truncate", "-o", "z.safetensors", "--force")
        assert head(*given, classes=name) == 0
        more = ("--epochs", "40", "--workers", "0")
        assert finetune(f"{name}=data/{name}?split=train", f"{name}.safetensors", *more) == 0
    capsys.readouterr()
    words = ["--suite", "transfer", "--root", "data", "--workers", "0", "--results", "r.jsonl"]
    assert main(["eval", "dtd.safetensors", "cifar10.safetensors", *words]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "checkpoint     dtd",
        "dtd         100.00",
        "",
        "dtd: in-distribution, top1 in %, 5 images, 47 classes joined by id, 95 % intervals within"
        " +-26.09",
        "",
        "checkpoint  cifar10",
        "cifar10      100.00",
        "",
        "cifar10: in-distribution, top1 in %, 2 images, 10 classes joined by id, 95 % intervals"
        " within +-42.09",
    ]
    assert list(results()) == ["dtd", "cifar10"]
    assert "image set 'stanford-cars' is left out for dtd, cifar10: the head is of" in err
    assert "image set 'cifar10' is left out for dtd: the head is of other classes" in err


FASHION = "torchvision:FashionMNIST"


def test_torchvision_set_agrees_with_scikit_learn(place, capsys):
    numbers = [0, 3, 9, 3, 7]
    write_mnist(place / "data", "FashionMNIST", test=numbers, train=[0, 3, 7, 9] * 5)
    assert head("--templates", FASHION, "--truncate", "-o", "z.safetensors", classes=FASHION) == 0
    card = read_card(Path("z.safetensors"))
    names = [entry.name for entry in card.classes]
    assert (names[0], names[9], len(names), len(card.templates)) == (
        "T-shirt/top",
        "Ankle boot",
        10,
        7,
    )
    made = [
        finetune(f"{FASHION}=data?split=train", f"{workers}.safetensors", "--workers", workers)
        for workers in ("0", "2")
    ]
    assert made == [0, 0]
    assert Path("0.safetensors").read_bytes() == Path("2.safetensors").read_bytes()
    Path("suite.yaml").write_text(f"- {{name: clothes, data: data, card: '{FASHION}'}}\n")
    Path("0.safetensors").rename("f.safetensors")
    words = ["--suite", "suite.yaml", "--data", f"other=data?card={FASHION},split=train"]
    words += ["--results", "r.jsonl", "--save-predictions", "predictions", "--workers", "2"]
    assert main(["eval", "f.safetensors", *words]) == 0
    assert check_against_sklearn("clothes", [names[number] for number in numbers]) == 1
    assert check_against_sklearn("other", [names[number] for number in [0, 3, 7, 9] * 5]) == 1
    assert (results()["clothes"]["n_classes"], results()["clothes"]["join"]) == (10, "id")


def test_datasets_shows_and_checks_torchvision_sets(place, monkeypatch, capsys):
    WRITERS["GTSRB"](place, monkeypatch)
    assert main(["datasets", "check", "torchvision:GTSRB", "."]) == 0
    assert capsys.readouterr().out == "torchvision:GTSRB: gtsrb: 2 images of 2 classes; 2 decoded\n"
    assert main(["datasets", "show", "torchvision:GTSRB"]) == 0
    out = capsys.readouterr().out
    assert "n_images   unknown\n" in out
    assert "class_ids  known from the data only\n" in out
    assert main(["datasets", "show", "torchvision:GTSRB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"][1]["split"] == "train"
    assert head("-o", "z.safetensors", classes="torchvision:GTSRB") == 1
    assert capsys.readouterr().err.splitlines()[0] == (
        "error: torchvision:GTSRB: torchvision does not know the class names without the data"
    )
    assert main(["datasets", "show", "torchvision:Fashion"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        "error: torchvision has no set 'Fashion' with one class per image"
    )

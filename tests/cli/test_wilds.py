"""iWildCam and FMoW agree with scikit-learn and with the package `wilds`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from tests.data.wilds_copies import make_fmow, make_iwildcam
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.demo.embedded import embedded_model_folder

SETS = ("iwildcam", "fmow")
TRAIN = {name: f"{name}=.?split=train" for name in SETS}
SUITE = {
    "iwildcam-id": ("iwildcam", "id_test"),
    "iwildcam-ood": ("iwildcam", "test"),
    "fmow-id": ("fmow", "id_test"),
    "fmow-ood": ("fmow", "test"),
}
MODEL = f"local-dir:{embedded_model_folder()}"
RECIPE = "--recipe linear-classifier --epochs 12 --lr 0.2 --batch-size 64 --no-feature-cache"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write both sets, and for each a zero-shot head and a head trained on its train split."""
    place = tmp_path_factory.mktemp("wilds")
    make_iwildcam(place)
    make_fmow(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in SETS:
            words = ["zeroshot-head", "--model", MODEL, "--classes", name, "--templates", name]
            assert main([*words, "--truncate", "-o", f"{name}-zeroshot.safetensors"]) == 0
            words = ["finetune", f"{name}-zeroshot.safetensors", "--train", TRAIN[name]]
            out = ["--workers", "0", "-o", f"{name}-finetuned.safetensors"]
            assert main([*words, *RECIPE.split(), *out]) == 0
        checkpoints = [f"{name}-finetuned.safetensors" for name in SETS]
        words = ["--suite", "wilds", "--root", ".", "--workers", "0"]
        words += ["--results", "results.jsonl", "--save-predictions", "predictions"]
        assert main(["eval", *checkpoints, *words]) == 0
    return place


def results(place: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (place / "results.jsonl").read_text().splitlines()]
    return {line["set"]: line for line in lines}


def predictions(place: Path, set_name: str) -> list[dict[str, Any]]:
    name = f"{set_name}.{SUITE[set_name][0]}-finetuned.jsonl"
    return [json.loads(line) for line in (place / "predictions" / name).read_text().splitlines()]


def labels_and_guesses(place: Path, set_name: str) -> tuple[list[int], list[int]]:
    """Return the label and the prediction of each image, as positions among the classes."""
    ids = list(read_dataset_card(SUITE[set_name][0]).class_ids)
    rows = predictions(place, set_name)
    return [ids.index(row["label"]) for row in rows], [ids.index(row["id"]) for row in rows]


def test_heads_have_the_names_and_templates_of_the_cards(place: Path) -> None:
    card = read_card(place / "iwildcam-zeroshot.safetensors")
    assert [entry.id for entry in card.classes] == [str(y) for y in range(182)]
    assert [card.classes[y].name for y in (0, 4, 181)] == [
        "empty",
        "cougar",
        "central american red brocket",
    ]
    assert card.templates == ("a photo of {}.", "{} in the wild.")
    card = read_card(place / "fmow-zeroshot.safetensors")
    assert len(card.classes) == 62
    assert (card.classes[1].id, card.classes[1].name) == ("airport_hangar", "airport hangar")
    assert len(card.templates) == 14


@pytest.mark.parametrize("set_name", ["iwildcam-id", "iwildcam-ood"])
def test_macro_f1_averages_over_classes_with_images_while_all_classes_compete(
    place: Path, set_name: str
) -> None:
    labels, guesses = labels_and_guesses(place, set_name)
    line = results(place)[set_name]
    found = line["metrics"]["macro_f1"]["value"]
    assert (line["primary"], line["n_classes"], line["join"]) == ("macro_f1", 182, "id")
    present = sorted(set(labels))
    assert found == pytest.approx(f1_score(labels, guesses, labels=present, average="macro"))
    assert 0.2 < found < 1
    if set_name == "iwildcam-id":  # a class without images is predicted, and not in the mean
        assert set(guesses) - set(labels)
        assert found > f1_score(labels, guesses, average="macro", zero_division=0) + 0.01


@pytest.mark.parametrize("set_name", ["fmow-id", "fmow-ood"])
def test_worst_region_excludes_other_and_top1_includes_it(place: Path, set_name: str) -> None:
    rows = predictions(place, set_name)
    regions: dict[str | None, list[bool]] = {}
    for row in rows:
        regions.setdefault(row["group"], []).append(row["right"])
    means = {region: float(np.mean(right)) for region, right in regions.items()}
    line = results(place)[set_name]
    metrics = {name: metric["value"] for name, metric in line["metrics"].items()}
    assert metrics["top1"] == pytest.approx(np.mean([row["right"] for row in rows]))
    named = {region: mean for region, mean in means.items() if region is not None}
    assert metrics["worst_group"] == pytest.approx(min(named.values()))
    assert means[line["worst_group"]] == min(named.values())
    assert 0 <= means[None] < metrics["worst_group"] < metrics["top1"] < 1
    assert line["primary"] == ("top1" if set_name == "fmow-id" else "worst_group")


def test_each_head_has_its_own_reference_average_and_table(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    found = results(place)
    assert {name for name, line in found.items() if line["reference"]} == {"iwildcam-id", "fmow-id"}
    words = ["eval", *(f"{name}-finetuned.safetensors" for name in SETS), "--suite", "wilds"]
    assert main([*words, "--root", ".", "--results", "results.jsonl"]) == 0
    out, err = capsys.readouterr()
    tables = [text.splitlines() for text in out.split("\n\n")]
    for name, (header, row), facts in zip(SETS, tables[::2], tables[1::2], strict=True):
        assert header.split() == ["checkpoint", f"{name}-id", f"{name}-ood", "average"]
        values = [100 * value_of(found[f"{name}-{part}"]) for part in ("id", "ood")]
        expected = [*values, np.mean(values)]
        assert row.split() == [f"{name}-finetuned", *(f"{value:.2f}" for value in expected)]
        assert facts[0].startswith(f"{name}-id: in-distribution, ")
        assert facts[1].startswith(f"{name}-ood: shift, ")
    left_out = "warning: image set 'fmow-ood' is left out for iwildcam-finetuned: the head is of"
    assert f"{left_out} other classes" in err.splitlines()


def test_gates_use_the_sets_of_their_own_row(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    checkpoints = [f"iwildcam-{role}.safetensors" for role in ("finetuned", "zeroshot")]
    words = ["eval", checkpoints[0], "--suite", "wilds", "--root", ".", "--workers", "0"]
    gate = ["--fail-under", "shifts:primary>=baseline-0.01"]
    assert main([*words, "--baseline", checkpoints[1], *gate]) == 0
    assert "gate holds: shifts:primary>=baseline-0.01" in capsys.readouterr().err
    assert main([*words, "--baseline", "fmow-finetuned.safetensors", *gate]) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error: --baseline fmow-finetuned: its head does not have the classes of iwildcam-id,"
        " iwildcam-ood",
        "hint: compare iwildcam-finetuned with a checkpoint of the same classes",
    ]


def value_of(line: dict[str, Any]) -> float:
    return float(line["metrics"][line["primary"]]["value"])


def test_check_reports_an_incomplete_copy(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["datasets", "check", "fmow", ".", "--split", "val"]) == 1
    out, err = capsys.readouterr()
    n_images = int(out.split()[2])
    assert out.startswith(f"fmow: fmow_v1.1: {n_images} images of ")
    assert (
        f"{n_images} images, but FMoW-WILDS 1.1, split val has 19,915: the copy is incomplete, or"
        " not of this set"
    ) in err
    assert " classes, " not in err.split("error:")[1]  # their number is not published


@pytest.fixture
def wilds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the package `wilds` without its version check and without torch_scatter."""
    monkeypatch.setitem(sys.modules, "outdated", None)  # it would ask the network
    monkeypatch.setenv("OUTDATED_IGNORE", "1")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # it sets its own
    scatter = ModuleType("torch_scatter")  # wilds needs it for means over groups
    scatter.scatter = _mean_of_groups  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_scatter", scatter)
    reason = "the package wilds is not installed: pip install 'wiseft-cli[wilds]'"
    return pytest.importorskip("wilds", reason=reason)


def _mean_of_groups(
    *, src: torch.Tensor, index: torch.Tensor, dim_size: int, reduce: str
) -> torch.Tensor:
    assert reduce == "mean"
    sums = torch.zeros(dim_size, dtype=src.dtype).index_add_(0, index, src)
    return sums / torch.bincount(index, minlength=dim_size).clamp(min=1)


@pytest.mark.parametrize("set_name", SUITE)
def test_splits_labels_and_metrics_agree_with_the_package_wilds(
    place: Path, set_name: str, wilds: ModuleType
) -> None:
    name, split = SUITE[set_name]
    whole = wilds.get_dataset(dataset=name, root_dir=str(place), download=False)
    subset = whole.get_subset(split)
    labels, guesses = labels_and_guesses(place, set_name)
    at = _by_path(whole, subset, name)
    assert sorted(at) == sorted(row["path"] for row in predictions(place, set_name))
    order = [at[row["path"]] for row in predictions(place, set_name)]
    assert subset.y_array[order].tolist() == labels
    found, _ = whole.eval(torch.tensor(guesses), torch.tensor(labels), subset.metadata_array[order])
    line = results(place)[set_name]
    metrics = {key: metric["value"] for key, metric in line["metrics"].items()}
    assert metrics["top1"] == pytest.approx(found["acc_avg"], abs=1e-6)
    if name == "iwildcam":
        assert metrics["macro_f1"] == pytest.approx(found["F1-macro_all"], abs=1e-6)
        assert metrics["mean_per_class"] == pytest.approx(found["recall-macro_all"], abs=1e-6)
    else:
        assert metrics["worst_group"] == pytest.approx(found["acc_worst_region"], abs=1e-6)


def _by_path(whole: Any, subset: Any, name: str) -> dict[str, int]:
    """Return the position of each image in a subset, by its path below the set's folder."""
    if name == "iwildcam":
        return {f"train/{whole._input_array[row]}": at for at, row in enumerate(subset.indices)}
    numbers = whole.full_idxs[subset.indices]
    return {f"images/rgb_img_{number}.png": at for at, number in enumerate(numbers)}

"""`wiseft eval` on ImageNet-Vid-Robust and YTBB-Robust agrees with plain Python."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.cli.test_zeroshot_head import head
from tests.cli.video_sets import (
    TENCH,
    VID_MAP,
    YTBB_MAP,
    make_vid,
    make_ytbb,
    plain_pm,
    predicted_classes,
    read_lines,
    vid_truth,
    ytbb_truth,
)
from tests.evaluation.patterns import logits_of, make_pattern_checkpoint
from tests.training.fork_server import ForkServer
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.data import loading
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.images import load_image_of

IDS = read_dataset_card("imagenet").class_ids


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write both sets below one folder, as the archive is unpacked, with the metadata."""
    root = tmp_path_factory.mktemp("data")
    make_vid(root / "imagenet-vid-robust")
    make_ytbb(root / "ytbb-robust")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Write two checkpoints of ImageNet's classes to interpolate between."""
    folder = tmp_path_factory.mktemp("weights")
    classes = [ClassEntry(class_id, "x") for class_id in IDS]
    return tuple(
        str(make_pattern_checkpoint(folder / f"{name}.safetensors", classes, seed=seed))
        for seed, name in enumerate(("zero", "fine"), start=1)
    )


def evaluate(words: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    results = folder / "results.jsonl"
    given = ("--results", str(results), "--save-predictions", str(folder / "p"), "--workers", "0")
    assert main(["eval", *words, *given, "--device", "cpu"]) == 0
    return read_lines(results)


def check_line(line: Mapping[str, Any], counts: tuple[int, int, int]) -> None:
    n_anchors, *n_right = counts
    assert (line["n_anchors"], line["primary"]) == (n_anchors, "pm10")
    for name, n_right_of in zip(("pm0", "pm10"), n_right, strict=True):
        interval = binomtest(n_right_of, n_anchors).proportion_ci(method="exact")
        assert line["metrics"][name] == pytest.approx(
            {"value": n_right_of / n_anchors, "low": interval.low, "high": interval.high}
        )


def test_suite_computes_pm0_and_pm10_at_every_alpha(
    data: Path,
    weights: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded = []
    monkeypatch.setattr(
        loading,
        "load_image_of",
        lambda images, at: decoded.append(images.records[at].path) or load_image_of(images, at),
    )
    words = [*weights, "--alpha", "0,0.5,1", "--suite", "temporal", "--root", str(data)]
    lines = evaluate(words, tmp_path)
    assert len(decoded) == len(set(decoded))  # each frame once for three rows
    seen = set()
    for name, truth, label_map, n_classes in (
        ("imagenet-vid-robust", vid_truth, VID_MAP, 30),
        ("ytbb-robust", ytbb_truth, YTBB_MAP, 19),
    ):
        pmsets, right = truth(data / name)
        of_set = [line for line in lines if line["set"] == name]
        assert [line["alpha"] for line in of_set] == ["0", "0.5", "1"]
        for line in of_set:
            predictions = read_lines(tmp_path / f"p/{name}.alpha-{line['alpha']}.jsonl")
            counts = plain_pm(pmsets, right, predicted_classes(predictions, label_map.classes))
            check_line(line, counts)
            assert (line["n_classes"], line["join"]) == (n_classes, "map")
            assert line["n_images"] == len(predictions) == len(right)
            seen.add(counts[1:])
    assert len(seen) > 2
    out = capsys.readouterr().out
    header, row, *_ = out.splitlines()
    assert re.split(r"  +", header)[2:6] == [
        *("imagenet-vid-robust", "imagenet-vid-robust pm0", "ytbb-robust", "ytbb-robust pm0"),
    ]
    assert f"{100 * lines[0]['metrics']['pm10']['value']:.2f}" in row
    assert "imagenet-vid-robust: in-distribution, pm10 in %, 12 anchor frames, " in out


@pytest.mark.parametrize("name", ["imagenet-vid-robust", "ytbb-robust"])
def test_class_of_a_frame_is_the_highest_of_the_mapped_logits(
    data: Path, weights: tuple[str, str], tmp_path: Path, name: str
) -> None:
    evaluate([weights[0], "--data", f"{name}={data / name}"], tmp_path)
    classes = (VID_MAP if name == "imagenet-vid-robust" else YTBB_MAP).classes
    predicted = predicted_classes(read_lines(tmp_path / f"p/{name}.zero.jsonl"), classes)
    logits = logits_of(Path(weights[0]), [data / name / path for path in predicted])
    scores = [logits[:, [*map(IDS.index, ids)]].max(axis=1) for ids in classes.values()]
    expected = [[*classes][at] for at in np.argmax(scores, axis=0)]
    assert [*predicted.values()] == expected
    mapped = {at for ids in classes.values() for at in ids}
    assert not mapped.issuperset(
        IDS[at] for at in logits.argmax(axis=1)
    )  # unmapped classes would have won


def test_pm10_follows_from_the_saved_predictions(
    data: Path, weights: tuple[str, str], tmp_path: Path
) -> None:
    words = [weights[0], "--data", f"imagenet-vid-robust={data / 'imagenet-vid-robust'}"]
    (line,) = evaluate(words, tmp_path)
    right_around: dict[str, list[bool]] = {}
    for frame in read_lines(tmp_path / "p/imagenet-vid-robust.zero.jsonl"):
        for anchor in frame["anchors"]:
            right_around.setdefault(anchor, []).append(frame["right"])
    value = sum(map(all, right_around.values())) / len(right_around)
    assert line["metrics"]["pm10"]["value"] == value
    assert 0 < value < line["metrics"]["pm0"]["value"] < 1


def test_class_missing_in_the_head_is_never_right(
    data: Path, weights: tuple[str, str], tmp_path: Path
) -> None:
    evaluate([weights[0], "--data", f"ytbb-robust={data / 'ytbb-robust'}"], tmp_path)
    cows = [
        line for line in read_lines(tmp_path / "p/ytbb-robust.zero.jsonl") if line["label"] == "cow"
    ]
    assert cows
    assert not any(line["right"] for line in cows)
    assert all(line["id"] != TENCH for line in cows)


def test_unreadable_frames_and_anchors_are_excluded(
    tmp_path: Path, weights: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "imagenet-vid-robust"
    make_vid(base)
    pmsets, right = vid_truth(base)
    anchors = list(pmsets)
    for path in (anchors[1], pmsets[anchors[4]][2]):
        (base / path).write_bytes(b"damaged")
    words = [weights[0], "--data", f"imagenet-vid-robust={base}"]
    (line,) = evaluate([*words, "--max-bad", "2"], tmp_path)
    predictions = read_lines(tmp_path / "p/imagenet-vid-robust.zero.jsonl")
    counts = plain_pm(pmsets, right, predicted_classes(predictions, VID_MAP.classes))
    check_line(line, counts)
    assert (counts[0], line["n_unreadable"]) == (11, 2)
    for path in anchors:
        (base / path).write_bytes(b"damaged")
    assert main(["eval", *words, "--max-bad", "50", "--workers", "0"]) == 1
    err = capsys.readouterr().err
    assert "'imagenet-vid-robust': none of its 12 anchor frames is readable" in err


def test_two_processes_give_the_results_of_one(
    data: Path,
    weights: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fork_server: ForkServer,
) -> None:
    words = ["eval", *weights, "--alpha", "0,0.5", "--suite", "temporal", "--root", str(data)]
    words += ["--json", "--batch-size", "3", "--workers", "0", "--device", "cpu"]
    code, out, err = fork_server.run_two_ranks(*words, folder=tmp_path)
    assert code == 0, err
    assert main(words) == 0
    assert json.loads(out) == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("least", "code"), [("0.01", 0), ("0.99", 3)])
def test_gate_uses_pm10_and_stored_results_are_reused(
    data: Path,
    weights: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    least: str,
    code: int,
) -> None:
    words = ["eval", weights[0], "--data", f"imagenet-vid-robust={data / 'imagenet-vid-robust'}"]
    words += ["--results", str(tmp_path / "r.jsonl"), "--workers", "0"]
    gate = ("--fail-under", f"imagenet-vid-robust:pm10>={least}")
    assert main([*words, *gate]) == code
    assert main([*words, *gate]) == code
    assert "holds 1 of 1 results already" in capsys.readouterr().err


def test_other_neighbourhoods_of_the_same_frames_give_a_new_result(
    tmp_path: Path, weights: tuple[str, str]
) -> None:
    base = tmp_path / "imagenet-vid-robust"
    make_vid(base)
    words = [weights[0], "--data", f"imagenet-vid-robust={base}", "--force"]
    (before,) = evaluate(words, tmp_path)
    pmsets, _ = vid_truth(base)
    anchors = list(pmsets)
    changed = {**pmsets, anchors[4]: pmsets[anchors[4]][1:], anchors[0]: pmsets[anchors[4]][:1]}
    (base / "metadata/pmsets.json").write_text(json.dumps(changed))
    lines = evaluate(words, tmp_path)
    assert lines[0] == before
    assert lines[1]["data_fingerprint"] != before["data_fingerprint"]


def test_plot_shows_pm10(
    data: Path, weights: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*weights, "--alpha", "0,1", "--suite", "temporal", "--root", str(data)]
    lines = evaluate(words, tmp_path)
    capsys.readouterr()
    out = tmp_path / "c.svg"
    assert main(["plot", str(tmp_path / "results.jsonl"), "-o", str(out), "--json"]) == 0
    assert "pm10" in out.read_text()
    document = json.dumps(json.loads(capsys.readouterr().out))
    assert all(str(line["metrics"]["pm10"]["value"]) in document for line in lines)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("name", "n_classes"), [("imagenet-vid-robust", 30), ("ytbb-robust", 23)])
def test_head_of_a_sets_own_classes_is_evaluated_without_the_map_and_skips_the_other_set(
    data: Path, tmp_path: Path, name: str, n_classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--templates", name, "--truncate", "-o", "own.safetensors")
    assert head(*given, classes=name) == 0
    classes = read_card(Path("own.safetensors")).classes
    assert len(classes) == n_classes
    (line,) = evaluate(["own.safetensors", "--suite", "temporal", "--root", str(data)], tmp_path)
    assert (line["set"], line["n_classes"]) == (name, n_classes)
    pmsets, right = (vid_truth if n_classes == 30 else ytbb_truth)(data / name)
    predicted = {at["path"]: at["id"] for at in read_lines(tmp_path / f"p/{name}.own.jsonl")}
    check_line(line, plain_pm(pmsets, right, predicted))
    other = "ytbb-robust" if n_classes == 30 else "imagenet-vid-robust"
    assert f"image set {other!r} is left out for own" in capsys.readouterr().err


def test_check_counts_anchor_frames(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "check", "ytbb-robust", str(data / "ytbb-robust"), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["n_images"], document["n_classes"], document["n_decoded"]) == (23, 11, 23)
    assert (
        "10 anchor frames, but YTBB-Robust, video frames of 24 classes (23 and none) has 2,030"
        in (document["faults"][2])
    )

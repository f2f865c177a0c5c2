"""Training images that cannot be read: counted, followed up by class, and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import tiny
from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.errors import DatasetError, RecipeError
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.training.callbacks import Callbacks
from wiseft_cli.training.finetune import Stopped, finetune
from wiseft_cli.training.images import UnreadableImages
from wiseft_cli.training.modes import set_training_modes, with_single_images
from wiseft_cli.training.plan import DataOptions, make_plan
from wiseft_cli.training.recipe import Recipe
from wiseft_cli.training.saving import SaveInterval
from wiseft_cli.training.stopping import StopRequest


def spoil(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.write_bytes(b"not an image")


def run(
    folder: Path,
    *,
    family: str = "vit",
    output: str = "out",
    stop_after: int | None = None,
    resume: bool = False,
    **keys: Any,
) -> tuple[Any, list[str], Any]:
    """Run `folder`/train; return the result, the warnings of the run, and the card."""
    zeroshot = folder / f"{family}.safetensors"
    if not zeroshot.exists():
        write_zeroshot(zeroshot, family)
    stop = StopRequest()

    def count(step: Any) -> None:
        if step.step + 2 == stop_after:
            stop.signal_number = 15

    warnings: list[str] = []
    plan = make_plan(
        parent=zeroshot,
        data=DataOptions(str(folder / "train"), max_bad=100),
        output=folder / output,
        recipe=Recipe(**{"epochs": 2, "batch_size": 5, "lr": 1e-3, **keys}),
        resume=resume,
    )
    result = finetune(
        plan,
        device=torch.device("cpu"),
        workers=0,
        stop=stop,
        save_interval=SaveInterval(steps=1),
        callbacks=Callbacks(on_step=count, on_warning=warnings.append),
    )
    card = read_card(folder / output) if (folder / output).exists() else None
    return result, warnings, card


@pytest.mark.parametrize("keys", [{}, {"freeze": "encoder"}, {"batch_size": 12, "epochs": 1}])
def test_run_without_any_readable_image_fails_and_writes_nothing(tmp_path, train_folder, keys):
    spoil(train_folder, "*/*.png")
    with pytest.raises(DatasetError) as caught:
        run(tmp_path, **keys)
    assert caught.value.message.startswith("none of the 12 training images can be read:\n  cannot")
    assert not (tmp_path / "out").exists()


def test_run_that_drew_no_readable_image_fails_though_others_are_readable(tmp_path, train_folder):
    spoil(train_folder, "*/*.png")
    write_images(tmp_path / "train", (0, 0, 30), seed=1)  # epoch 0 of the seed starts elsewhere
    for path in sorted(train_folder.glob("n03/*.png"))[1:]:
        path.write_bytes(b"not an image")
    with pytest.raises(RecipeError) as caught:
        run(tmp_path, epochs=None, steps=1)
    assert caught.value.message == (
        "none of the 1 optimizer steps changed the weights: none of the images that were drawn"
        " could be read; no checkpoint was written"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keys", [{}, {"freeze": "encoder"}, {"micro_batch_size": 1}])
def test_class_without_a_readable_image_is_named_and_the_card_counts_what_was_used(
    tmp_path, train_folder, keys
):
    spoil(train_folder, "n02/*.png", "n01/000.png")
    _, warnings, card = run(tmp_path, **keys)
    assert [text for text in warnings if text.startswith("class ")] == [
        "class 'tree frog' has no readable training image left (4 training images, none readable)"
    ]
    train = card.history[-1].options["train"]
    assert (train["n_images"], train["n_unreadable"]) == (7, 5)
    assert run(tmp_path, resume=True, **keys)[1] == []  # the finished run is recognized


def test_readable_set_has_no_such_record(tmp_path, train_folder):
    _, warnings, card = run(tmp_path)
    assert warnings == []
    assert card.history[-1].options["train"].keys() == {"fingerprint", "n_images"}


@pytest.mark.parametrize("stop_after", [3, 4, 5])
@pytest.mark.parametrize("keys", [{}, {"freeze": "encoder"}])
def test_resumed_run_counts_the_images_that_were_found_before(
    tmp_path, train_folder, keys, stop_after
):
    spoil(train_folder, "n02/*.png", "n03/001.png")
    _, _, whole = run(tmp_path, output="whole", **keys)
    assert isinstance(run(tmp_path, stop_after=stop_after, **keys)[0], Stopped)
    _, warnings, card = run(tmp_path, resume=True, **keys)
    assert card == whole
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    found = "5 training images could not be read in the earlier part of the run"
    assert (found in warnings) == (not keys)


def test_images_found_before_count_towards_the_maximum():
    unreadable = UnreadableImages(2, known=[3, 1])
    unreadable.add({3: "again"})
    assert unreadable.positions == (1, 3)
    with pytest.raises(DatasetError, match="3 images cannot be read, expected at most 2"):
        unreadable.add({7: "another"})


def test_class_is_named_once_in_the_pass_that_loses_its_last_image():
    warnings: list[str] = []
    unreadable = UnreadableImages(9, warnings.append, classes=["a", "b", "a", "c", "b"])
    unreadable.add({0: "x"})
    assert warnings == ["x"]
    unreadable.add({2: "y", 3: "z"})
    assert warnings[1:3] == ["y", "z"]
    assert [text.split()[1] for text in warnings[3:]] == ["'a'", "'c'"]
    unreadable.add({0: "x", 1: "w"})
    assert warnings[5:] == ["w"]


@pytest.mark.parametrize("size", [32, 64])
def test_batch_norm_left_with_one_readable_image_keeps_its_statistics(
    tmp_path, train_folder, monkeypatch, size
):
    # At 32 pixels the last layers have one value per channel and image.
    vision = {**tiny.RESNET, "image_size": size}
    monkeypatch.setitem(tiny.CONFIGS, "resnet", {**tiny.CONFIGS["resnet"], "vision_cfg": vision})
    paths = sorted(train_folder.glob("*/*.png"))
    for path in paths[1:]:
        path.write_bytes(b"not an image")
    _, warnings, card = run(tmp_path, family="resnet")
    text = (
        "a forward pass has a single readable image: BatchNorm uses its running statistics for it"
    )
    assert warnings.count(text) == 1
    assert card.history[-1].options["train"]["n_images"] == 1
    before, _ = load_classifier(tmp_path / "resnet.safetensors")
    after, _ = load_classifier(tmp_path / "out")
    for name, buffer in before.named_buffers():
        assert torch.equal(dict(after.named_buffers())[name], buffer), name
    assert not torch.equal(before.visual.bn1.weight, after.visual.bn1.weight)


def test_only_single_inputs_use_running_statistics(tmp_path):
    classifier, _ = load_classifier(write_zeroshot(tmp_path / "r", "resnet"))
    set_training_modes(classifier, freeze="none", batch_norm="train")
    forward = with_single_images(classifier, classifier, lambda _: None)
    inputs = torch.randn(3, 3, 64, 64)
    count = classifier.visual.bn1.num_batches_tracked.item()
    forward(inputs[:1])
    assert classifier.visual.bn1.num_batches_tracked == count
    assert classifier.visual.bn1.training
    forward(inputs)
    assert classifier.visual.bn1.num_batches_tracked == count + 1

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.training.plain_loop import KEYS, PlainClassifier, load_all, train_plainly
from tests.training.tiny import CLASSES, CONFIGS, write_images, write_zeroshot
from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import data_fingerprint
from wiseft_cli.errors import CheckpointError, DatasetError, OutputError, RecipeError
from wiseft_cli.training.callbacks import Callbacks, EpochReport
from wiseft_cli.training.finetune import finetune
from wiseft_cli.training.plan import DataOptions, make_plan
from wiseft_cli.training.recipe import Recipe, resolve

CPU = torch.device("cpu")
QUICK = {"epochs": 2, "batch_size": 5, "lr": 1e-3}


def run(
    zeroshot: Path, train: Path, output: Path, *, val=(), workers=0, callbacks=None, **keys
) -> Path:
    plan = make_plan(
        parent=zeroshot,
        data=DataOptions(str(train), val),
        output=output,
        recipe=Recipe(**{**QUICK, **keys}),
    )
    return finetune(plan, device=CPU, workers=workers, callbacks=callbacks).path


def changed(before: Path, after: Path) -> set[str]:
    old, new = load_file(before), load_file(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("in_our_order", [True, False], ids=["our order", "sorted"])
@pytest.mark.parametrize(("family", "tolerance"), [("vit", 1e-5), ("resnet", 1e-4)])
def test_finetuned_file_has_the_logits_of_a_plain_torch_loop(
    tmp_path, family, in_our_order, tolerance
):
    # To the rounding of float32; test_equivalence.py compares every weight in float64, to 1e-10.
    zeroshot = write_zeroshot(tmp_path / "zeroshot.safetensors", family)
    size = CONFIGS[family]["vision_cfg"]["image_size"]
    train = write_images(tmp_path / "train", size=size)
    output = run(zeroshot, train, tmp_path / "finetuned.safetensors", **KEYS)
    assert len(changed(zeroshot, output)) > 20
    images, _ = load_all(train, family)
    plain = train_plainly(zeroshot, train, family, in_our_order=in_our_order)
    with torch.no_grad():
        expected = plain(images)
        found = PlainClassifier(output, family).eval()(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(
    tmp_path, zeroshot, train_folder, run_wiseft
):
    words = ["finetune", zeroshot, "--train", train_folder, "--threads", 1, "--epochs", 2]
    words += ["--batch-size", 5, "--lr", "1e-3", "--device", "cpu", "--seed", 3]
    for workers in (0, 2):
        done = run_wiseft(*words, "--workers", workers, "-o", f"{workers}.safetensors")
        assert (done.returncode, done.stdout) == (0, f"{workers}.safetensors\n"), done.stderr
    first = (tmp_path / "0.safetensors").read_bytes()
    assert first == (tmp_path / "2.safetensors").read_bytes()
    here = run(zeroshot, train_folder, tmp_path / "here.safetensors", seed=4)
    assert here.read_bytes() != first


def test_validation_sets_and_callbacks_change_no_byte(tmp_path, train_folder):
    zeroshot = write_zeroshot(tmp_path / "zeroshot.safetensors", "vit-dropout")
    val = write_images(tmp_path / "val", (3, 2), seed=9)
    epochs: list[EpochReport] = []
    encoded: list[int] = []
    with_val = run(
        zeroshot,
        train_folder,
        tmp_path / "a.safetensors",
        val=[f"one={val}", f"two={train_folder}"],
        callbacks=Callbacks(on_epoch=epochs.append, on_encoded=encoded.append),
    )
    without = run(zeroshot, train_folder, tmp_path / "b.safetensors")
    assert with_val.read_bytes() == without.read_bytes()
    assert [report.epochs_done for report in epochs] == [0, 1, 2]
    assert epochs[0].mean_loss is None
    assert [accuracy.n_images for accuracy in epochs[2].accuracies] == [5, 12]
    assert encoded == []


def test_global_random_state_is_unchanged(tmp_path, zeroshot, train_folder):
    before = torch.get_rng_state()
    run(zeroshot, train_folder, tmp_path / "out.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_reported_loss_of_an_epoch_is_the_mean_over_its_images(tmp_path, zeroshot, train_folder):
    steps, epochs = [], []
    callbacks = Callbacks(on_step=steps.append, on_epoch=epochs.append)
    run(zeroshot, train_folder, tmp_path / "out.safetensors", callbacks=callbacks)
    assert [step.n_images for step in steps] == [5, 5, 2] * 2
    assert [step.ends_epoch for step in steps] == [False, False, True] * 2
    for epoch in (0, 1):
        own = [step for step in steps if step.epoch == epoch]
        mean = sum(step.loss * step.n_images for step in own) / 12
        assert epochs[epoch + 1].mean_loss == pytest.approx(mean)


def test_every_tensor_of_encoder_and_head_trains_by_default(tmp_path, zeroshot, train_folder):
    output = run(zeroshot, train_folder, tmp_path / "out.safetensors")
    assert changed(zeroshot, output) == load_file(zeroshot).keys()


def test_frozen_encoder_keeps_its_weights_and_statistics(tmp_path):
    zeroshot = write_zeroshot(tmp_path / "zeroshot.safetensors", "resnet")
    train = write_images(tmp_path / "train")
    encoded: list[int] = []
    output = run(
        zeroshot,
        train,
        tmp_path / "out.safetensors",
        freeze="encoder",
        callbacks=Callbacks(on_encoded=encoded.append),
    )
    assert changed(zeroshot, output) == {"classification_head.weight", "classification_head.bias"}
    assert encoded == [5, 5, 2]


def test_frozen_head_keeps_its_weights(tmp_path, zeroshot, train_folder):
    output = run(zeroshot, train_folder, tmp_path / "out.safetensors", freeze="head")
    names = load_file(zeroshot).keys()
    assert changed(zeroshot, output) == {name for name in names if name.startswith("visual.")}


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_batch_norm_statistics_follow_the_recipe_and_affine_weights_train(tmp_path, batch_norm):
    zeroshot = write_zeroshot(tmp_path / "zeroshot.safetensors", "resnet")
    train, val = write_images(tmp_path / "train"), write_images(tmp_path / "val", seed=1)
    output = run(
        zeroshot, train, tmp_path / "out.safetensors", val=[f"v={val}"], batch_norm=batch_norm
    )
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    moved = {name.rpartition(".")[2] for name in changed(zeroshot, output)}
    assert moved.issuperset(statistics) == (batch_norm == "train")
    assert moved.isdisjoint(statistics) == (batch_norm == "frozen")
    assert {"visual.bn1.weight", "visual.layer4.0.bn3.bias"} <= changed(zeroshot, output)
    assert load_file(output)["visual.bn1.num_batches_tracked"].dtype == torch.int64


def test_card_records_recipe_seed_data_and_parent(tmp_path, zeroshot, train_folder):
    output = run(zeroshot, train_folder, tmp_path / "out.safetensors", seed=7)
    parent, card = read_card(zeroshot), read_card(output)
    kept = ("model", "preprocess", "classes", "templates", "logit_scale")
    assert [getattr(card, name) for name in kept] == [getattr(parent, name) for name in kept]
    assert (card.role, card.alpha, card.seed) == ("finetuned", None, 7)
    recipe = resolve(Recipe(**QUICK), 12).as_mapping()
    assert card.recipe == recipe
    assert card.recipe["warmup_steps"] == 0
    first, last = card.history
    assert (first.command, first.output) == ("zeroshot-head", parent.digest)
    assert (last.command, last.output) == ("finetune", None)
    assert [(item.role, item.digest) for item in last.inputs] == [("zeroshot", parent.digest)]
    fingerprint = data_fingerprint(list_image_folder(train_folder))
    assert last.options == {
        "recipe": recipe,
        "seed": 7,
        "train": {"fingerprint": fingerprint, "n_images": 12},
    }
    text = json.dumps(dict(safe_open(output, "pt").metadata()))
    assert str(tmp_path) not in text


def test_finetuned_checkpoint_can_be_finetuned_again(tmp_path, zeroshot, train_folder):
    first = run(zeroshot, train_folder, tmp_path / "lp.safetensors", freeze="encoder")
    second = run(first, train_folder, tmp_path / "ft.safetensors")
    card: Card = read_card(second)
    assert [entry.command for entry in card.history] == ["zeroshot-head", "finetune", "finetune"]
    assert card.history[-1].inputs[0].role == "finetuned"
    assert card.history[-1].inputs[0].digest == card.history[-2].output == read_card(first).digest


def test_plan_notes_a_finetuned_parent(tmp_path, zeroshot, train_folder):
    first = run(zeroshot, train_folder, tmp_path / "a.safetensors")
    plan = make_plan(
        parent=first,
        data=DataOptions(str(train_folder)),
        output=tmp_path / "b.safetensors",
        recipe=Recipe(),
    )
    assert plan.notes == ("starting from a finetuned checkpoint, which continues its training",)


def test_diverging_run_writes_nothing(tmp_path, zeroshot, train_folder):
    with pytest.raises(RecipeError, match=r"^training diverged at step \d+ of 30 "):
        run(zeroshot, train_folder, tmp_path / "out.safetensors", lr=1e6, epochs=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "zeroshot.safetensors"]


def test_unreadable_image_ends_the_run_with_its_path(tmp_path, zeroshot, train_folder):
    broken = train_folder / "n03" / "002.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DatasetError) as caught:
        run(zeroshot, train_folder, tmp_path / "out.safetensors")
    assert caught.value.message == (
        f"cannot read image {broken}: not an image in a format that Pillow knows"
    )
    assert not (tmp_path / "out.safetensors").exists()


def test_batch_norm_rejects_a_batch_of_one_image(tmp_path, train_folder):
    zeroshot = write_zeroshot(tmp_path / "zeroshot.safetensors", "resnet")
    with pytest.raises(RecipeError) as caught:
        run(zeroshot, train_folder, tmp_path / "out.safetensors", batch_size=11)
    assert caught.value.message == (
        "a batch of each epoch has a single image, and BatchNorm cannot compute statistics of one"
        " (12 images, batch size 11)"
    )
    assert caught.value.hint == "use another --batch-size, or --batch-norm frozen"


def test_vit_accepts_a_batch_of_one_image(tmp_path, zeroshot, train_folder):
    run(zeroshot, train_folder, tmp_path / "out.safetensors", batch_size=11)


def test_labels_outside_the_head_are_listed(tmp_path, zeroshot, train_folder):
    (train_folder / "n03").rename(train_folder / "n99")
    with pytest.raises(DatasetError) as caught:
        make_plan(
            parent=zeroshot,
            data=DataOptions(str(train_folder)),
            output=tmp_path / "o.safetensors",
            recipe=Recipe(),
        )
    assert caught.value.message == (
        "image set 'train': 1 of 3 labels are not classes of the head"
        " (3 classes, the first 'n01'):\n  'n99'"
    )


def test_classes_without_training_images_are_a_warning(tmp_path, zeroshot):
    train = write_images(tmp_path / "train", (200,))
    plan = make_plan(
        parent=zeroshot,
        data=DataOptions(str(train)),
        output=tmp_path / "out.safetensors",
        recipe=Recipe(batch_size=1),
    )
    assert plan.warnings == ("2 of 3 classes have no training image: 'tree frog', 'lamp'",)


def test_folders_named_by_class_name_are_joined_by_name_not_by_position(
    tmp_path, zeroshot, train_folder
):
    for entry in CLASSES:
        (train_folder / entry.id).rename(train_folder / entry.name)
    plan = make_plan(
        parent=zeroshot,
        data=DataOptions(str(train_folder)),
        output=tmp_path / "o.safetensors",
        recipe=Recipe(),
    )
    labels = [record.label for record in plan.train.images.records]
    assert labels == ["lamp"] * 4 + ["tench"] * 4 + ["tree frog"] * 4
    assert plan.train.targets == [2] * 4 + [0] * 4 + [1] * 4
    assert plan.train.join.kind == "name"


def test_file_without_a_card_is_rejected(tmp_path, train_folder):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError) as caught:
        make_plan(
            parent=foreign,
            data=DataOptions(str(train_folder)),
            output=tmp_path / "o.safetensors",
            recipe=Recipe(),
        )
    assert caught.value.message == (
        f"{foreign}: has no wiseft card, expected a checkpoint written by wiseft"
    )
    assert "wiseft zeroshot-head" in str(caught.value.hint)


def test_merge_of_foreign_files_is_rejected(tmp_path, train_folder):
    from wiseft_cli.checkpoint.writer import write_checkpoint

    merged = tmp_path / "merged.safetensors"
    write_checkpoint(merged, {"x": torch.zeros(1).numpy()}, Card(role="merged", alpha="0.5"))
    with pytest.raises(CheckpointError) as caught:
        make_plan(
            parent=merged,
            data=DataOptions(str(train_folder)),
            output=tmp_path / "o.safetensors",
            recipe=Recipe(),
        )
    assert caught.value.message == (
        f"{merged}: its card has no model and no preprocessing and no classes,"
        " expected a classifier"
    )
    assert "wiseft zeroshot-head" in str(caught.value.hint)


def test_output_that_is_the_input_is_rejected_even_with_force(zeroshot, train_folder):
    with pytest.raises(OutputError, match="is also an input"):
        make_plan(
            parent=zeroshot,
            data=DataOptions(str(train_folder)),
            output=zeroshot,
            recipe=Recipe(),
            force=True,
        )


def test_plan_is_made_without_torch(tmp_path, zeroshot, train_folder):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from wiseft_cli.training.plan import DataOptions, make_plan\n"
        "from wiseft_cli.training.recipe import Recipe\n"
        f"plan = make_plan(parent=Path({str(zeroshot)!r}), data=DataOptions({str(train_folder)!r}),"
        f" output=Path({str(tmp_path / 'o.safetensors')!r}), recipe=Recipe())\n"
        "print(plan.recipe.steps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr

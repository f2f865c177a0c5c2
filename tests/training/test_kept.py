"""Which weights a run writes: the last, those of each epoch, or those that validate best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.cli.app import main
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import data_fingerprint
from wiseft_cli.errors import OutputError, UsageError
from wiseft_cli.training import loop
from wiseft_cli.training.callbacks import Callbacks
from wiseft_cli.training.finetune import Stopped, finetune
from wiseft_cli.training.kept import Keep, epoch_path, find_selection_set, parse_keep
from wiseft_cli.training.plan import DataOptions, FinetunePlan, make_plan
from wiseft_cli.training.recipe import Recipe
from wiseft_cli.training.saving import SaveInterval
from wiseft_cli.training.stopping import StopRequest

CPU = torch.device("cpu")
SCORES = {0: 0.9, 1: 0.2, 2: 0.6, 3: 0.6, 4: 0.1}
"""Accuracies by epoch: epoch 2 is the best after training began, and the first of two."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_zeroshot(tmp_path / "zs.safetensors")
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", (2, 2, 1), seed=5)
    return tmp_path


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each epoch its accuracy of `SCORES`."""
    evaluate = loop.evaluate_image_set
    steps = {"done": 0}
    monkeypatch.setattr(
        loop, "_count_step", _wrap(loop._count_step, lambda run: steps.update(done=run.steps_done))
    )

    def scored_evaluation(*values: Any, **named: Any) -> Any:
        found = evaluate(*values, **named)
        n_right = round(SCORES[steps["done"] // 3] * found.n_images * 10)
        object.__setattr__(found, "n_images", found.n_images * 10)
        object.__setattr__(found, "n_correct", {"top1": n_right})
        return found

    monkeypatch.setattr(loop, "evaluate_image_set", scored_evaluation)


def _wrap(function: Any, after: Any) -> Any:
    def wrapped(run: Any, *values: Any) -> None:
        function(run, *values)
        after(run)

    return wrapped


def plan_of(folder: Path, keep: str, output: str = "out", **options: Any) -> FinetunePlan:
    val = options.pop("val", [f"v={folder / 'val'}"])
    recipe = {"epochs": 4, "batch_size": 5, "lr": 1e-3, **options.pop("keys", {})}
    return make_plan(
        parent=folder / "zs.safetensors",
        data=DataOptions(str(folder / "train"), val),
        output=folder / f"{output}.safetensors",
        recipe=Recipe(**recipe),
        keep=parse_keep(keep),
        **options,
    )


def go(plan: FinetunePlan, *, stop_after: int | None = None, **named: Any) -> Any:
    stop = StopRequest()

    def count(step: Any) -> None:
        if step.step + 2 == stop_after:  # the next step reads the request
            stop.signal_number = 15

    named.setdefault("callbacks", Callbacks(on_step=count))
    return finetune(
        plan, device=CPU, workers=0, save_interval=SaveInterval(steps=1), stop=stop, **named
    )


def test_best_writes_the_weights_of_the_first_of_the_best_epochs(folder, scored):
    notes: list[str] = []
    go(plan_of(folder, "epochs", "all", val=[]))
    go(plan_of(folder, "best:v"), callbacks=Callbacks(on_note=notes.append))
    best, epoch = (
        load_file(folder / name) for name in ("out.safetensors", "all-epoch-2.safetensors")
    )
    assert all(np.array_equal(best[name], epoch[name]) for name in epoch)
    assert notes == ["kept the weights of epoch 2 of 4, the best on 'v' (60.00 %)"]
    options = read_card(folder / "out.safetensors").history[-1].options
    assert options["selection"] == {
        "set": "v",
        "fingerprint": data_fingerprint(list_image_folder(folder / "val")),
        "n_images": 5,
        "metric": "top1",
        "epoch": 2,
        "top1": 0.6,
    }


@pytest.mark.parametrize(
    ("keep", "stop_after"), [("best", 2), ("best", 6), ("best", 7), ("best", 11), ("epochs", 7)]
)
def test_stopped_run_keeps_the_same_weights_to_the_byte(folder, scored, keep, stop_after):
    whole = plan_of(folder, keep, "whole")
    go(whole)
    assert isinstance(go(plan_of(folder, keep), stop_after=stop_after), Stopped)
    resumed = plan_of(folder, keep, resume=True)
    # A stop that is requested with the last step of an epoch interrupts the evaluation after it.
    assert resumed.start.state.record.steps_done == (6 if stop_after == 7 else stop_after)
    go(resumed)
    paths = [whole.output, *whole.other_outputs]
    for path in paths:
        other = path.with_name(path.name.replace("whole", "out"))
        assert other.read_bytes() == path.read_bytes(), path
    assert plan_of(folder, keep, resume=True).start.digest is not None


def test_epochs_are_checkpoints_of_their_own(folder):
    plan = plan_of(folder, "epochs", val=[])
    go(plan)
    assert [path.name for path in plan.other_outputs] == [
        f"out-epoch-{epoch}.safetensors" for epoch in (1, 2, 3, 4)
    ]
    cards = [read_card(path) for path in plan.other_outputs]
    assert [card.history[-1].options["epoch"] for card in cards] == [1, 2, 3, 4]
    assert len({card.digest for card in cards}) == 4
    assert cards[-1].digest == read_card(plan.output).digest
    assert "epoch" not in read_card(plan.output).history[-1].options
    # A run that kept nothing else has the same last weights, to the byte.
    plain = plan_of(folder, "last", "plain", val=[])
    go(plain)
    assert plain.output.read_bytes() == plan.output.read_bytes()


def test_existing_checkpoint_of_an_epoch_is_rejected_without_force(folder):
    other = folder / "out-epoch-3.safetensors"
    other.write_bytes(b"kept by hand")
    with pytest.raises(OutputError, match=r"out-epoch-3.safetensors: exists already$"):
        plan_of(folder, "epochs")
    with pytest.raises(OutputError, match="exists already and was made by another run"):
        plan_of(folder, "epochs", resume=True)
    assert other.read_bytes() == b"kept by hand"
    assert plan_of(folder, "epochs", force=True).force


@pytest.mark.parametrize(
    ("keep", "names", "message"),
    [
        ("best", (), "--keep best needs a validation set"),
        ("best", ("a", "b"), "--keep best with several validation sets"),
        ("best:c", ("a", "b"), "--keep best:c: not a validation set of this run"),
    ],
)
def test_best_needs_one_of_the_validation_sets(keep, names, message):
    with pytest.raises(UsageError) as caught:
        find_selection_set(parse_keep(keep), names)
    assert caught.value.message == message
    assert caught.value.hint


def test_best_takes_the_only_set_or_the_named_one():
    assert find_selection_set(parse_keep("best"), ["a"]) == "a"
    assert find_selection_set(parse_keep("best:b"), ["a", "b"]) == "b"
    assert find_selection_set(parse_keep("last"), ["a"]) is None
    assert parse_keep("best:x:y") == Keep("best", "x:y")
    assert epoch_path(Path("a/out"), 3) == Path("a/out-epoch-3")


@pytest.mark.parametrize("text", ["", "first", "best:", "epochs:3", "Best"])
def test_other_values_of_keep_are_rejected(text):
    with pytest.raises(UsageError, match=r"expected last, best:VAL or epochs$"):
        parse_keep(text)


def test_set_that_chose_the_epoch_is_a_selection_set_of_an_evaluation(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    write_images(folder / "shift", (2, 2, 2), seed=8)
    words = ["finetune", "zs.safetensors", "--train", "train", "--val-fraction", "0.25"]
    words += ["-o", "best.safetensors", "--keep", "best", "--epochs", "2", "--batch-size", "5"]
    assert main([*words, "--workers", "0", "--device", "cpu", "--json"]) == 0
    capsys.readouterr()
    val = read_card(Path("best.safetensors")).history[-1].options["selection"]
    assert val["set"] == "train-val"
    write_images(folder / "copy", (2, 2, 1), seed=5)
    words[4:6] = ["--val", "val"]
    words[7] = "other.safetensors"
    assert main([*words, "--workers", "0", "--device", "cpu"]) == 0
    evaluate = ["eval", "zs.safetensors", "other.safetensors", "--data", "shift", "--workers", "0"]
    assert main([*evaluate, "--data", "mine=val", "--data", "far=train", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "mine: validation, " in out
    assert "far: shift, " in out
    assert (
        "warning: image set 'mine' chose the weights of other (by data fingerprint), so its"
        " accuracy there is optimistic\n"
    ) in err


def test_state_holds_the_best_weights_and_its_score(folder, scored):
    go(plan_of(folder, "best"), stop_after=7)
    (state, *_) = sorted((folder / "out.safetensors.state").iterdir(), reverse=True)
    with open_checkpoint(state) as reader:
        best = reader.read_array("copy.best.classification_head.weight")
        now = reader.read_array("weights.classification_head.weight")
    assert not np.array_equal(best, now)

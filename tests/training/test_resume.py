"""An interrupted run that resumes gives the bytes of an uninterrupted one."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import resource
import shutil
from pathlib import Path

import pytest
import torch

from tests.training.tiny import random_classifier, write_images, write_zeroshot, zeroshot_card
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.errors import OutputError, RecipeError
from wiseft_cli.model.classifier import state_arrays
from wiseft_cli.training.callbacks import Callbacks
from wiseft_cli.training.finetune import Finetuned, Stopped, finetune
from wiseft_cli.training.plan import DataOptions, make_plan
from wiseft_cli.training.recipe import Recipe
from wiseft_cli.training.saving import SaveInterval
from wiseft_cli.training.state_dir import list_states, state_folder
from wiseft_cli.training.stopping import StopRequest

CPU = torch.device("cpu")
EACH_STEP = SaveInterval(steps=1)
KEYS = {"epochs": 3, "batch_size": 5, "lr": 1e-3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "train")
    return tmp_path


def plan_of(
    folder: Path,
    family: str = "vit",
    *,
    output: str = "out",
    resume: bool = False,
    threads: int | None = None,
    launch: Launch | None = None,
    **keys,
):
    zeroshot = folder / f"{family}.safetensors"
    if not zeroshot.exists():
        write_zeroshot(zeroshot, family)
    return make_plan(
        parent=zeroshot,
        data=DataOptions(str(folder / "train")),
        output=folder / output,
        recipe=Recipe(**{**KEYS, **keys}),
        resume=resume,
        threads=threads,
        launch=launch,
    )


def go(plan, *, stop_after=None, save_interval=EACH_STEP, callbacks=None, workers=0, **named):
    """Run a plan; `stop_after` requests a stop after this number of steps."""
    stop = StopRequest()
    seen: list[int] = []

    def count(step) -> None:
        seen.append(step.step)
        if len(seen) + 1 == stop_after:  # the next step reads the request
            stop.signal_number = 15

    return finetune(
        plan,
        device=CPU,
        workers=workers,
        save_interval=save_interval,
        stop=stop,
        callbacks=callbacks or Callbacks(on_step=count),
        **named,
    )


@pytest.mark.parametrize("stop_after", [2, 3, 6, 8])
@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("vit", {}),
        ("vit-dropout", {"micro_batch_size": 2}),
        ("resnet", {}),
        ("vit", {"freeze": "encoder"}),
        ("vit", {"freeze": "head", "precision": "bf16"}),
    ],
)
def test_stopped_run_resumes_to_the_same_bytes(folder, family, keys, stop_after):
    whole = go(plan_of(folder, family, output="whole", **keys))
    stopped = go(plan_of(folder, family, **keys), stop_after=stop_after)
    assert stopped == Stopped(stop_after, folder / f"out.state/step-{stop_after:08}.safetensors")
    assert not (folder / "out").exists()
    resumed = go(plan_of(folder, family, resume=True, **keys))
    assert isinstance(resumed, Finetuned)
    assert (resumed.digest, resumed.path) == (whole.digest, folder / "out")
    assert (folder / "out").read_bytes() == (folder / "whole").read_bytes()
    assert not state_folder(folder / "out").exists()


@pytest.mark.parametrize(
    ("keys", "stop_after"),
    [
        ({"ema": 3, "l2_sp": 0.1}, 4),
        ({"ema": 0.2, "freeze": "encoder"}, 2),
        (
            {
                "mixup": 0.4,
                "cutmix": 1.0,
                "drop_path": 0.5,
                "randaugment": 9,
                "micro_batch_size": 2,
            },
            3,
        ),
        ({"optimizer": "lion", "lr": 1e-4, "layer_decay": 0.8}, 3),
        ({"spd": 1.0, "weight_decay": 0.0, "distill": 0.5, "layer_decay": 0.7}, 5),
    ],
)
def test_run_with_a_method_resumes_to_the_same_bytes(folder, keys, stop_after):
    whole = plan_of(folder, output="whole", **keys)
    go(whole)
    assert isinstance(go(plan_of(folder, **keys), stop_after=stop_after), Stopped)
    resumed = plan_of(folder, resume=True, **keys)
    go(resumed)
    pairs = zip(
        (whole.output, *whole.other_outputs), (resumed.output, *resumed.other_outputs), strict=True
    )
    for path, other in pairs:
        assert other.read_bytes() == path.read_bytes(), path


def test_states_do_not_depend_on_the_number_of_workers(folder):
    go(plan_of(folder), stop_after=4)
    go(plan_of(folder, output="other"), stop_after=4, workers=2)
    name = "step-00000004.safetensors"
    assert (folder / "out.state" / name).read_bytes() == (
        folder / "other.state" / name
    ).read_bytes()


def test_last_two_states_are_kept_until_the_run_finishes(folder):
    names = []

    def look(step) -> None:
        names.append([path.name for path in list_states(folder / "out")])

    go(plan_of(folder), callbacks=Callbacks(on_step=look))
    assert names[5] == ["step-00000005.safetensors", "step-00000004.safetensors"]
    assert not state_folder(folder / "out").exists()
    go(plan_of(folder, output="kept"), save_interval=SaveInterval(steps=4), keep_states=True)
    assert [path.name for path in list_states(folder / "kept")] == [
        "step-00000008.safetensors",
        "step-00000004.safetensors",
    ]


def test_damaged_newest_state_is_named_and_skipped(folder):
    whole = go(plan_of(folder, output="whole"))
    newest = go(plan_of(folder), stop_after=5).state
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(data)
    start = plan_of(folder, resume=True).start
    assert start.state.path.name == "step-00000004.safetensors"
    assert start.warnings == (
        f"{newest}: is damaged, its digest does not match its content; this state is skipped",
    )
    assert go(plan_of(folder, resume=True)).digest == whole.digest


def test_run_starts_again_if_all_states_are_damaged(folder):
    whole = go(plan_of(folder, output="whole"))
    go(plan_of(folder), stop_after=5)
    for path in list_states(folder / "out"):
        path.write_bytes(path.read_bytes()[:1000])
    start = plan_of(folder, resume=True).start
    assert start.state is None
    assert len(start.warnings) == 2
    assert go(plan_of(folder, resume=True)).digest == whole.digest


def test_resume_without_a_state_starts_at_the_first_step(folder):
    start = plan_of(folder, resume=True).start
    assert (start.state, start.digest, start.warnings) == (None, None, ())


def test_resume_of_a_finished_run_returns_its_digest(folder):
    done = go(plan_of(folder))
    assert plan_of(folder, resume=True).start.digest == done.digest


def test_resume_with_another_output_is_rejected(folder):
    go(plan_of(folder, seed=1))
    with pytest.raises(OutputError) as caught:
        plan_of(folder, resume=True)
    assert caught.value.message == (f"{folder / 'out'}: exists already and was made by another run")


def test_state_without_resume_or_force_is_rejected_with_both_as_remedies(folder):
    go(plan_of(folder), stop_after=4)
    with pytest.raises(OutputError) as caught:
        plan_of(folder)
    assert caught.value.message == (
        f"{folder / 'out.state'}: holds the state of an unfinished run (step-00000004.safetensors)"
    )
    assert caught.value.hint == (
        "continue with --resume, or discard it and start again with --force"
    )


def test_changed_recipe_is_rejected_with_its_changes(folder):
    go(plan_of(folder), stop_after=4)
    with pytest.raises(RecipeError) as caught:
        plan_of(folder, resume=True, lr=2e-3, seed=3)
    lines = caught.value.message.splitlines()
    assert lines[0].endswith("step-00000004.safetensors: is the state of another run:")
    assert [line.strip() for line in lines[1:]] == [
        "recipe.lr: 0.001 there, 0.002 now",
        "seed: 0 there, 3 now",
    ]


def test_changed_images_are_rejected(folder):
    go(plan_of(folder), stop_after=4)
    one = next((folder / "train").rglob("*.png"))
    shutil.copy(one, one.with_name("copy.png"))
    with pytest.raises(RecipeError, match="is the state of another run"):
        plan_of(folder, resume=True)


def test_another_parent_is_rejected(folder):
    go(plan_of(folder), stop_after=4)
    parent = folder / "vit.safetensors"
    parent.unlink()
    write_checkpoint(parent, state_arrays(random_classifier("vit", seed=1)), zeroshot_card("vit"))
    with pytest.raises(RecipeError, match="digest of the zeroshot checkpoint"):
        plan_of(folder, resume=True)


def test_another_number_of_threads_is_rejected(folder):
    go(plan_of(folder), stop_after=4, threads=1)
    with pytest.raises(RecipeError) as caught:
        plan_of(folder, resume=True, threads=3)
    assert "--threads: 1 there, 3 now" in caught.value.message


def test_other_versions_and_processes_are_warnings(folder, monkeypatch):
    go(plan_of(folder), stop_after=4)
    monkeypatch.setattr("wiseft_cli.training.resume.torch_version", lambda: "9.9")
    start = plan_of(folder, resume=True, launch=Launch(0, 0, 2, 2)).start
    version = importlib.metadata.version("torch")
    assert start.warnings == tuple(
        f"the state was saved with {what}: the result may differ in the last digits from that of"
        " an uninterrupted run"
        for what in (f"torch {version}, this is 9.9", "processes 1, this is 2")
    )


def test_diverging_run_keeps_the_last_good_state(folder, monkeypatch):
    calls = itertools.count()
    real = torch.nn.functional.cross_entropy

    def diverging(*values, **named):
        return real(*values, **named) * (math.nan if next(calls) >= 3 else 1)

    monkeypatch.setattr("torch.nn.functional.cross_entropy", diverging)
    with pytest.raises(RecipeError) as caught:
        go(plan_of(folder))
    newest = list_states(folder / "out")[0]
    assert caught.value.hint.endswith(f"the last good state is {newest}")
    with open_checkpoint(newest) as reader:
        weights = reader.read_array("weights.classification_head.weight")
    assert torch.isfinite(torch.from_numpy(weights)).all()
    assert not (folder / "out").exists()


def test_output_that_cannot_be_written_names_the_last_state(folder, monkeypatch):
    def unwritable(path, *_values, **_named):
        raise OutputError(f"{path}: cannot be written: Input/output error")

    monkeypatch.setattr("wiseft_cli.training.outputs.write_checkpoint", unwritable)
    with pytest.raises(OutputError) as caught:
        go(plan_of(folder))
    newest = list_states(folder / "out")[0]
    assert caught.value.message == f"{folder / 'out'}: cannot be written: Input/output error"
    assert caught.value.hint == f"the last good state is {newest}"


def test_unfinished_state_of_a_killed_run_is_removed_by_the_next_save(folder):
    state_folder(folder / "out").mkdir()
    left = state_folder(folder / "out") / ".step-00000001.safetensors.wiseft-tmp-abc"
    left.write_bytes(b"half")
    go(plan_of(folder), save_interval=SaveInterval(steps=2), keep_states=True)
    assert not left.exists()


def run_with_size_limit(_rank: int, limit: int, *words: str) -> int:
    """Run a command that can write the checkpoint, but not a state, which is larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return main(words)


def test_state_that_exceeds_the_file_size_limit_is_a_warning_and_the_run_finishes(
    folder, fork_server
):
    whole = go(plan_of(folder, output="whole"))
    limit = 2 * (folder / "whole").stat().st_size
    words = ["finetune", "vit.safetensors", "--train", "train", "-o", "out", "--save-every", "2"]
    words += ["--epochs", "3", "--batch-size", "5", "--lr", "0.001", "--workers", "0"]
    words += ["--device", "cpu", "--threads", "1"]
    target = f"{__name__}:run_with_size_limit"
    codes, out, err = fork_server.call(target, limit, *words, folders=[folder])
    assert (codes, out) == ([0], "out\n"), err
    assert (
        "warning: out.state/step-00000002.safetensors: cannot be written: File too large;"
        " nothing was kept; training continues without this state"
    ) in err
    if torch.get_num_threads() == 1:
        with open_checkpoint(folder / "out") as reader:
            assert reader.card.digest == whole.digest
    assert not (folder / "out.state").exists()

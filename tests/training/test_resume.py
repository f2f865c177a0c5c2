"""A run that is broken off and goes on gives the very bytes of one that was not."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.tiny import random_classifier, write_images, write_zeroshot, zeroshot_card
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import OutputError, RecipeError
from wiseft_cli.model.classifier import state_arrays
from wiseft_cli.training.finetune import Finetuned, Stopped, finetune
from wiseft_cli.training.listener import Listener
from wiseft_cli.training.plan import make_plan
from wiseft_cli.training.recipe import Recipe
from wiseft_cli.training.save_interval import SaveInterval, Saving
from wiseft_cli.training.starting import find_start
from wiseft_cli.training.state_folder import list_states, state_folder
from wiseft_cli.training.stopping import StopRequest
from wiseft_cli.training.training_data import DataChoice

CPU = torch.device("cpu")
EACH_STEP = Saving(SaveInterval(steps=1))
KEYS = {"epochs": 3, "batch_size": 5, "lr": 1e-3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "train")
    return tmp_path


def plan_of(folder: Path, family: str = "vit", *, output: str = "out", resume=False, **keys):
    zeroshot = folder / f"{family}.safetensors"
    if not zeroshot.exists():
        write_zeroshot(zeroshot, family)
    return make_plan(
        parent=zeroshot,
        data=DataChoice(str(folder / "train"), ()),
        output=folder / output,
        recipe=Recipe(**{**KEYS, **keys}),
        force=keys.pop("force", False),
        resume=resume,
    )


def go(plan, *, resume=False, stop_after=None, saving=EACH_STEP, listener=None, **named):
    """Run a plan; `stop_after` asks for the end after so many steps of this process."""
    stop = StopRequest()
    seen: list[int] = []

    def note(step) -> None:
        seen.append(step.step)
        if len(seen) + 1 == stop_after:  # read within the step after this one
            stop.signal_number = 15

    return finetune(
        plan,
        device=CPU,
        workers=named.pop("workers", 0),
        start=find_start(plan, resume=resume, threads=named.get("threads")),
        saving=saving,
        stop=stop,
        listener=listener or Listener(on_step=note),
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
def test_a_stopped_run_goes_on_to_the_same_bytes(folder, family, keys, stop_after):
    whole = go(plan_of(folder, family, output="whole", **keys))
    stopped = go(plan_of(folder, family, **keys), stop_after=stop_after)
    assert stopped == Stopped(stop_after, folder / f"out.state/step-{stop_after:08}.safetensors")
    assert not (folder / "out").exists()
    resumed = go(plan_of(folder, family, resume=True, **keys), resume=True)
    assert isinstance(resumed, Finetuned)
    assert (resumed.digest, resumed.path) == (whole.digest, folder / "out")
    assert (folder / "out").read_bytes() == (folder / "whole").read_bytes()
    assert not state_folder(folder / "out").exists()


def test_states_do_not_depend_on_the_number_of_decoding_processes(folder):
    go(plan_of(folder), stop_after=4)
    go(plan_of(folder, output="other"), stop_after=4, workers=2)
    name = "step-00000004.safetensors"
    assert (folder / "out.state" / name).read_bytes() == (
        folder / "other.state" / name
    ).read_bytes()


def test_the_last_two_states_are_kept_and_go_with_success(folder):
    names = []

    def look(step) -> None:
        names.append([path.name for path in list_states(folder / "out")])

    go(plan_of(folder), listener=Listener(on_step=look))
    assert names[5] == ["step-00000005.safetensors", "step-00000004.safetensors"]
    assert not state_folder(folder / "out").exists()
    go(plan_of(folder, output="kept"), saving=Saving(SaveInterval(steps=4), keep=True))
    assert [path.name for path in list_states(folder / "kept")] == [
        "step-00000008.safetensors",
        "step-00000004.safetensors",
    ]


def test_a_damaged_newest_state_is_named_and_skipped(folder):
    whole = go(plan_of(folder, output="whole"))
    newest = go(plan_of(folder), stop_after=5).state
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(data)
    start = find_start(plan_of(folder, resume=True), resume=True)
    assert start.state.path.name == "step-00000004.safetensors"
    assert start.warnings == (
        f"{newest}: is damaged, its content is not what was written; this state is skipped",
    )
    assert go(plan_of(folder, resume=True), resume=True).digest == whole.digest


def test_states_that_are_all_damaged_are_a_new_beginning(folder):
    whole = go(plan_of(folder, output="whole"))
    go(plan_of(folder), stop_after=5)
    for path in list_states(folder / "out"):
        path.write_bytes(path.read_bytes()[:1000])
    start = find_start(plan_of(folder, resume=True), resume=True)
    assert start.state is None
    assert len(start.warnings) == 2
    assert go(plan_of(folder, resume=True), resume=True).digest == whole.digest


def test_resume_without_a_state_begins_at_the_first_step(folder):
    start = find_start(plan_of(folder, resume=True), resume=True)
    assert (start.state, start.digest, start.warnings) == (None, None, ())


def test_resume_of_a_finished_run_gives_its_digest(folder):
    done = go(plan_of(folder))
    assert find_start(plan_of(folder, resume=True), resume=True).digest == done.digest


def test_resume_beside_another_output_is_refused(folder):
    go(plan_of(folder, seed=1))
    with pytest.raises(OutputError) as caught:
        find_start(plan_of(folder, resume=True), resume=True)
    assert caught.value.message == (
        f"{folder / 'out'}: exists already, and is not what this run would write"
    )


def test_a_state_without_resume_or_force_names_both(folder):
    go(plan_of(folder), stop_after=4)
    with pytest.raises(OutputError) as caught:
        find_start(plan_of(folder), resume=False)
    assert caught.value.message == (
        f"{folder / 'out.state'}: holds the state of a run that did not end"
        " (step-00000004.safetensors)"
    )
    assert caught.value.hint == (
        "go on from it with --resume, or begin anew and remove it with --force"
    )


def test_a_changed_recipe_is_refused_with_what_changed(folder):
    go(plan_of(folder), stop_after=4)
    with pytest.raises(RecipeError) as caught:
        find_start(plan_of(folder, resume=True, lr=2e-3, seed=3), resume=True)
    lines = caught.value.message.splitlines()
    assert lines[0].endswith("step-00000004.safetensors: is the state of another run")
    assert [line.strip() for line in lines[1:]] == [
        "recipe.lr: 0.001 there, 0.002 now",
        "seed: 0 there, 3 now",
    ]


def test_changed_images_are_refused(folder):
    go(plan_of(folder), stop_after=4)
    one = next((folder / "train").rglob("*.png"))
    shutil.copy(one, one.with_name("copy.png"))
    with pytest.raises(RecipeError, match="is the state of another run"):
        find_start(plan_of(folder, resume=True), resume=True)


def test_another_parent_is_refused(folder):
    go(plan_of(folder), stop_after=4)
    parent = folder / "vit.safetensors"
    parent.unlink()
    write_checkpoint(parent, state_arrays(random_classifier("vit", seed=1)), zeroshot_card("vit"))
    with pytest.raises(RecipeError, match="digest of the zeroshot checkpoint"):
        find_start(plan_of(folder, resume=True), resume=True)


def test_other_threads_are_refused(folder):
    go(plan_of(folder), stop_after=4, threads=1)
    with pytest.raises(RecipeError) as caught:
        find_start(plan_of(folder, resume=True), resume=True, threads=3)
    assert "--threads: 1 there, 3 now" in caught.value.message


def test_other_versions_and_processes_are_warnings(folder, monkeypatch):
    go(plan_of(folder), stop_after=4)
    monkeypatch.setattr("wiseft_cli.training.starting.torch_version", lambda: "9.9")
    start = find_start(plan_of(folder, resume=True), resume=True, world_size=2)
    version = importlib.metadata.version("torch")
    assert start.warnings == tuple(
        f"the state was saved with {what}: the result may differ in the last digits from that of a"
        " run without a break"
        for what in (f"torch {version}, this is 9.9", "processes 1, this is 2")
    )


def test_a_loss_that_diverges_keeps_the_last_good_state(folder, monkeypatch):
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


def test_an_output_that_cannot_be_written_names_the_state_alone_where_nothing_else_helps(
    folder, monkeypatch
):
    def unwritable(path, *_values, **_named):
        raise OutputError(f"{path}: cannot be written: Input/output error")

    monkeypatch.setattr("wiseft_cli.training.finetune.write_checkpoint", unwritable)
    with pytest.raises(OutputError) as caught:
        go(plan_of(folder))
    newest = list_states(folder / "out")[0]
    assert caught.value.message == f"{folder / 'out'}: cannot be written: Input/output error"
    assert caught.value.hint == f"the last good state is {newest}"


def test_what_a_killed_save_left_goes_with_the_next_one(folder):
    state_folder(folder / "out").mkdir()
    left = state_folder(folder / "out") / ".step-00000001.safetensors.wiseft-tmp-abc"
    left.write_bytes(b"half")
    go(plan_of(folder), saving=Saving(SaveInterval(steps=2), keep=True))
    assert not left.exists()


FULL_DISK = """
import resource, sys
from wiseft_cli.cli.app import main
# A state is three times as large as the checkpoint, and only the checkpoint fits.
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


def test_a_disk_that_is_full_while_saving_is_a_warning_and_the_run_ends_well(folder):
    whole = go(plan_of(folder, output="whole"))
    limit = 2 * (folder / "whole").stat().st_size
    words = ["finetune", "vit.safetensors", "--train", "train", "-o", "out", "--save-every", "2"]
    words += ["--epochs", "3", "--batch-size", "5", "--lr", "0.001", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(limit), *words, "--device", "cpu", "--threads", "1"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "out\n"), done.stderr
    assert (
        "warning: out.state/step-00000002.safetensors: cannot be written: File too large;"
        " nothing was kept; training goes on, and this state is missing"
    ) in done.stderr
    if torch.get_num_threads() == 1:
        with open_checkpoint(folder / "out") as reader:
            assert reader.card.digest == whole.digest
    assert not (folder / "out.state").exists()

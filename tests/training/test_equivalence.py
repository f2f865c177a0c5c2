"""A step that is divided in any way makes the same update: in float64, to 1e-10.

The training loop of the command runs a ViT on images with random crops: in one pass, in passes of
two, with gradient checkpointing, in two processes with an uneven last batch, and on cached
features. In float32, Adam would turn the rounding errors of a zero gradient into steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.optim.lr_scheduler import CosineAnnealingLR

from tests.training.plain_loop import KEYS as PLAIN_KEYS
from tests.training.plain_loop import train_plainly
from tests.training.tiny import CONFIGS, write_images, write_zeroshot
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform
from wiseft_cli.training.batches import epoch_order
from wiseft_cli.training.callbacks import Callbacks, StepReport
from wiseft_cli.training.kept import TextSource
from wiseft_cli.training.loop import train
from wiseft_cli.training.plan import DataOptions, make_plan
from wiseft_cli.training.recipe import Recipe, resolve
from wiseft_cli.training.state import open_run

CPU = torch.device("cpu")
KEYS = {"epochs": 3, "batch_size": 5, "lr": 1e-3, "label_smoothing": 0.1}

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_zeroshot(tmp_path / "vit.safetensors")
    # Eleven images in batches of five: the last one has a single image.
    write_images(tmp_path / "train", (4, 4, 3))
    return tmp_path


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def steps_of(
    folder: Path,
    processes: ProcessGroup = SINGLE_PROCESS,
    *,
    zeroshot: Path | None = None,
    feature_cache: Path | None = None,
    text: TextSource | None = None,
    **keys: Any,
) -> tuple[Weights, list[StepReport], list[str]]:
    """Take the steps of a run; return its weights, its steps and its notes."""
    plan = make_plan(
        parent=zeroshot or folder / "vit.safetensors",
        data=DataOptions(str(folder / "train")),
        output=folder / "out",
        recipe=Recipe(**{**KEYS, **keys}),
        text=text,
    )
    run = open_run(plan, processes)
    run.classifier.double()
    if run.anchor is not None:
        run.anchor.double()
    steps: list[StepReport] = []
    notes: list[str] = []
    callbacks = Callbacks(on_step=steps.append, on_note=notes.append)
    with torch.random.fork_rng():
        assert train(
            run, plan, processes=processes, feature_cache=feature_cache, callbacks=callbacks
        )
    assert all(tensor.dtype == torch.float64 for tensor in run.trainable.values())
    return {name: tensor.detach() for name, tensor in run.trainable.items()}, steps, notes


def assert_same(found: tuple[Weights, list[StepReport]], expected: tuple[Weights, Any]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-10)
    assert [step.n_images for step in found[1]] == [5, 5, 1] * 3
    for key in ("loss", "grad_norm"):
        assert [getattr(step, key) for step in found[1]] == pytest.approx(
            [getattr(step, key) for step in expected[1]], rel=0, abs=1e-10
        )


@pytest.mark.parametrize("in_our_order", [True, False], ids=["our order", "sorted"])
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_six_full_batch_steps_equal_a_plain_torch_loop(tmp_path, family, in_our_order):
    zeroshot = write_zeroshot(tmp_path / "zeroshot.safetensors", family)
    size = CONFIGS[family]["vision_cfg"]["image_size"]
    train = write_images(tmp_path / "train", size=size)
    found = steps_of(tmp_path, zeroshot=zeroshot, **PLAIN_KEYS, label_smoothing=0.0)[0]
    plain = train_plainly(zeroshot, train, family, in_our_order=in_our_order)
    expected = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "keys",
    [{"micro_batch_size": 2}, {"micro_batch_size": 1}, {"grad_checkpointing": True}],
    ids=["passes of 2", "passes of 1", "checkpointing"],
)
def test_divided_batch_makes_the_same_steps(folder, keys):
    whole = steps_of(folder)[:2]
    assert_same(steps_of(folder, **keys)[:2], whole)


DIVIDED = (
    {"micro_batch_size": 2},
    {"freeze": "encoder"},
    {"micro_batch_size": 2, "l2_sp": 0.1, "distill": 0.5, "layer_decay": 0.7, "min_lr": 1e-4},
    {"micro_batch_size": 2, "spd": 1.0, "weight_decay": 0.0},
    {"micro_batch_size": 2, "mixup": 0.4, "cutmix": 1.0, "random_erasing": 0.5, "randaugment": 5},
)


def work(rank: int) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with join_process_group(Launch(rank, rank, 2, 2), CPU) as processes:
        for number, keys in enumerate(DIVIDED):
            torch.save(steps_of(Path(), processes, **keys), f"{number}-{rank}")


def test_two_processes_with_an_uneven_last_batch_make_the_same_steps(folder, fork_server):
    codes, _, err = fork_server.call("tests.training.test_equivalence:work", folders=[folder] * 2)
    assert codes == [0, 0], err
    for number, keys in enumerate(DIVIDED):
        expected = steps_of(folder, **{**keys, "micro_batch_size": 5})[:2]
        for rank in (0, 1):
            found = torch.load(folder / f"{number}-{rank}", weights_only=False)
            assert_same(found[:2], expected)


def test_cached_features_make_the_steps_of_an_encoder_run_in_each_step(folder):
    keys = {"freeze": "encoder", "lr": 0.1}
    computed, steps, _ = steps_of(folder, feature_cache=folder / "kept", **keys)
    cached, again, notes = steps_of(folder, feature_cache=folder / "kept", **keys)
    assert notes[0].startswith("features of 11 images from ")
    assert_same((cached, again), (computed, steps))
    # The frozen encoder in every step gives the same, as images are not augmented.
    expected = linear_classifier_by_hand(folder)
    torch.testing.assert_close(cached, expected, rtol=0, atol=1e-10)


def linear_classifier_by_hand(folder: Path) -> Weights:
    """Train the head with torch's default AdamW, running the encoder on each batch."""
    model, card = load_classifier(folder / "vit.safetensors")
    model.double()
    head = model.classification_head
    plan = make_plan(
        parent=folder / "vit.safetensors",
        data=DataOptions(str(folder / "train")),
        output=folder / "out",
        recipe=Recipe(),
    )
    transform = eval_transform(card.preprocess or {})
    paths = sorted((folder / "train").glob("*/*.png"))
    images = torch.stack([transform(Image.open(path)) for path in paths])
    targets = torch.tensor(plan.train.targets)
    recipe = resolve(Recipe(**KEYS, freeze="encoder"), 11)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.1)
    schedule = CosineAnnealingLR(optimizer, T_max=9)
    for epoch in range(3):
        for rows in epoch_order(recipe, epoch).split(5):
            optimizer.zero_grad()
            scores = model(images[rows])
            torch.nn.CrossEntropyLoss(label_smoothing=0.1)(scores, targets[rows]).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return {f"classification_head.{name}": p.detach() for name, p in head.named_parameters()}

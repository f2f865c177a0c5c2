from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.tiny import CLASSES, write_images
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.loading import ImageDataset
from wiseft_cli.errors import DatasetError
from wiseft_cli.model.transforms import train_transform
from wiseft_cli.training.batches import Draw, MicroBatches
from wiseft_cli.training.images import load_training_batches
from wiseft_cli.training.recipe import Recipe, resolve

CPU = torch.device("cpu")
PREPROCESS = {"size": [16, 16], "mode": "RGB", "mean": [0.5] * 3, "std": [0.25] * 3}


def dataset(folder: Path, transform=None) -> ImageDataset:
    images = list_image_folder(folder)
    ids = [entry.id for entry in CLASSES]
    targets = [ids.index(record.label) for record in images.records]
    return ImageDataset(images, targets, transform or train_transform(PREPROCESS, augment="crop"))


def load(folder: Path, draws, *, seed=0, workers=0, transform=None):
    return list(
        load_training_batches(
            dataset(folder, transform), draws, seed=seed, workers=workers, device=CPU
        )
    )


def die(_image: Image.Image) -> torch.Tensor:
    os._exit(9)


def test_batches_are_the_same_for_any_number_of_workers(train_folder):
    draws = list(MicroBatches(resolve(Recipe(epochs=2, batch_size=5), 12)))
    here = load(train_folder, draws)
    there = load(train_folder, draws, workers=2)
    assert len(here) == len(there) == 6
    for (images, targets), (other_images, other_targets) in zip(here, there, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(targets, other_targets)


def test_augmentation_depends_only_on_seed_epoch_and_image(train_folder):
    (alone, _), (in_company, _) = load(
        train_folder, [[Draw(1, 3)], [Draw(1, 0), Draw(1, 3), Draw(2, 3)]]
    )
    assert torch.equal(alone[0], in_company[1])
    assert not torch.equal(in_company[1], in_company[2])
    ((other_seed, _),) = load(train_folder, [[Draw(1, 3)]], seed=1)
    assert not torch.equal(alone[0], other_seed[0])


def test_images_with_the_same_pixels_are_cropped_differently(tmp_path):
    folder = write_images(tmp_path / "twins", (1,), size=40)
    first = folder / "n01" / "000.png"
    (folder / "n01" / "001.png").write_bytes(first.read_bytes())
    ((images, _),) = load(folder, [[Draw(0, 0), Draw(0, 1)]])
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_unchanged(train_folder, workers):
    before = torch.get_rng_state()
    load(train_folder, [[Draw(0, 0)], [Draw(0, 1)]], workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(train_folder, workers):
    broken = train_folder / "n02" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DatasetError) as caught:
        load(train_folder, [[Draw(0, image) for image in range(12)]], workers=workers)
    assert caught.value.message.startswith(f"cannot read image {broken}: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint == (
        "replace or remove the files; --max-bad N ignores up to N unreadable images"
    )


def test_dead_worker_is_reported_without_a_traceback(train_folder):
    with pytest.raises(DatasetError) as caught:
        load(train_folder, [[Draw(0, 0)]], workers=1, transform=die)
    assert caught.value.message.startswith("one of the 1 workers that decode images died: ")
    assert caught.value.hint == (
        "often the machine or /dev/shm is out of memory; use fewer --workers"
    )

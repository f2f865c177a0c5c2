"""Mixup and CutMix: the formulas, and the same images for any division of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.training.plain_loop import KEYS, train_plainly
from tests.training.test_methods import assert_equal_weights, six_steps
from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.loading import ImageBatch, ImageDataset
from wiseft_cli.model.transforms import train_transform
from wiseft_cli.training.batches import Draw, MicroBatches, Purpose, derive_seed, epoch_order
from wiseft_cli.training.images import UnreadableImages, load_training_batches
from wiseft_cli.training.mixing import Mix, Mixing, draw_mix, mix_images
from wiseft_cli.training.recipe import Recipe, resolve

CPU = torch.device("cpu")
PREPROCESS = {"size": [16, 16], "mode": "RGB", "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_hand(step: int, images: torch.Tensor, labels: torch.Tensor, **alpha: float) -> Any:
    """Mix a batch as the papers do, with the numbers of the step."""
    numbers = np.random.default_rng(derive_seed(0, Purpose.MIXING, step))
    kind = "cutmix" if "cutmix" in alpha else "mixup"
    if len(alpha) == 2:
        kind = "cutmix" if numbers.random() < 0.5 else "mixup"
    share = numbers.beta(alpha[kind], alpha[kind])
    hot = torch.eye(3)[labels]
    if kind == "mixup":
        mixed = share * images + (1 - share) * images.roll(1, 0)
        return mixed, share * hot + (1 - share) * hot.roll(1, 0)
    height, width = images.shape[2:]
    row, column = numbers.random(2)
    half = math.sqrt(1 - share) / 2
    y1, y2 = (min(max(round((row + sign * half) * height), 0), height) for sign in (-1, 1))
    x1, x2 = (min(max(round((column + sign * half) * width), 0), width) for sign in (-1, 1))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    own = 1 - mask.double().mean()
    return torch.where(mask, images.roll(1, 0), images), own * hot + (1 - own) * hot.roll(1, 0)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("alpha", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_six_steps_equal_a_plain_torch_loop(tmp_path, alpha):
    zeroshot, train = write_zeroshot(tmp_path / "vit.safetensors"), write_images(tmp_path / "train")
    plain = train_plainly(zeroshot, train, "vit", mix=lambda *values: by_hand(*values, **alpha))
    assert_equal_weights(six_steps(tmp_path, **alpha), plain)
    assert_equal_weights(six_steps(tmp_path, **alpha, micro_batch_size=5), plain)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mix_is_that_of_torchvision(kind):
    images, labels = torch.rand(5, 3, 10, 12), torch.tensor([0, 1, 2, 0, 1])
    partners = images.roll(1, 0)
    params: dict[str, Any] = {"labels": labels, "batch_size": 5, "lam": 0.3}
    if kind == "mixup":
        found, share = mix_images(images, partners, Mix(0.3))
        expected = v2.MixUp(num_classes=3).transform(images, params)
    else:
        found, share = mix_images(images, partners, Mix(0.0, (0.2, 0.7, -0.5, 0.5)))
        assert share == pytest.approx(1 - 5 * 6 / 120)
        params |= {"box": (0, 2, 6, 7), "lam_adjusted": share}
        expected = v2.CutMix(num_classes=3).transform(images, params)
    torch.testing.assert_close(found, expected)
    assert 0 < share < 1


def batches_of(folder: Path, *, workers: int = 0, rank: int = 0, world_size: int = 1, **keys: Any):
    images = list_image_folder(folder)
    n_images = len(images.records)
    recipe = resolve(
        Recipe(**{"epochs": 2, "batch_size": 5, "mixup": 0.4, "cutmix": 1.0, **keys}), n_images
    )
    targets = [int(record.label[-1]) - 1 for record in images.records]
    unreadable = UnreadableImages(9)
    batches = load_training_batches(
        ImageDataset(images, targets, train_transform(PREPROCESS, augment="crop")),
        MicroBatches(recipe, rank=rank, world_size=world_size),
        seed=recipe.seed,
        mixing=Mixing(recipe, 3),
        workers=workers,
        device=CPU,
        unreadable=unreadable,
    )
    return list(batches)


def joined(batches: Any) -> tuple[torch.Tensor, torch.Tensor]:
    readable = [batch for batch in batches if len(batch[1])]
    return torch.cat([images for images, _ in readable]), torch.cat([of for _, of in readable])


@pytest.mark.parametrize("n_broken", [0, 3])
def test_mixed_images_do_not_depend_on_workers_passes_or_processes(train_folder, n_broken):
    for path in sorted(train_folder.glob("*/*.png"))[2 : 2 + n_broken]:
        path.write_bytes(b"not an image")
    whole = joined(batches_of(train_folder))
    assert len(whole[0]) == 2 * (12 - n_broken)
    torch.testing.assert_close(whole[1].sum(dim=1), torch.ones(len(whole[1])))
    others = [
        batches_of(train_folder, workers=2),
        batches_of(train_folder, micro_batch_size=2),
        batches_of(train_folder, micro_batch_size=1),
    ]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(joined(other), whole, strict=True))
    shares = [batches_of(train_folder, rank=rank, world_size=2) for rank in (0, 1)]
    pairs = [batch for step in zip(*shares, strict=True) for batch in step]
    assert all(torch.equal(a, b) for a, b in zip(joined(pairs), whole, strict=True))


def test_image_whose_partner_is_unreadable_stays_as_it_is():
    images = torch.rand(2, 3, 4, 4)
    batch = ImageBatch(images, torch.tensor([2, 0]), torch.tensor([7, 5]), {9: "why"})
    recipe = resolve(Recipe(mixup=1.0), 12)
    found, targets = Mixing(recipe, 3)(0, [Draw(0, 7), Draw(0, 9), Draw(0, 5)], batch)
    torch.testing.assert_close(found, images[1:])
    torch.testing.assert_close(targets, torch.tensor([[1.0, 0, 0]]))
    nothing = ImageBatch(images[:1], torch.tensor([2]), torch.tensor([7]), {9: "why"})
    found, targets = Mixing(recipe, 3)(0, [Draw(0, 7), Draw(0, 9)], nothing)
    assert (len(found), targets.shape) == (0, (0, 3))


def test_passes_draw_the_partner_of_their_first_image():
    recipe = resolve(Recipe(**{**KEYS, "batch_size": 5, "micro_batch_size": 2}, cutmix=1.0), 12)
    order = epoch_order(recipe, 0).tolist()
    passes = [[draw.image for draw in draws] for draws in MicroBatches(recipe)]
    assert passes[:3] == [
        [order[4], *order[0:2]],
        [order[1], *order[2:4]],
        [order[3], *order[4:5]],
    ]
    assert passes[6] == [order[11], *order[10:12]]


def test_both_methods_are_used_in_half_of_the_steps_each():
    recipe = resolve(Recipe(mixup=0.2, cutmix=1.0), 1000)
    mixes = [draw_mix(recipe, step) for step in range(400)]
    assert 160 < sum(mix.box is None for mix in mixes) < 240
    assert all(0 <= mix.share <= 1 for mix in mixes)
    assert len({mix.share for mix in mixes}) == 400


def test_randaugment_and_random_erasing_are_those_of_torchvision():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain = train_transform(PREPROCESS, augment="none")
    added = train_transform(PREPROCESS, augment="none", randaugment=9, random_erasing=0.7)
    crop = v2.Compose(
        [v2.Resize(16, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(16)]
    )
    changed = 0
    for seed in range(8):
        torch.manual_seed(seed)
        found = added(image)
        torch.manual_seed(seed)
        augmented = v2.RandAugment(magnitude=9)(crop(image))
        expected = (torch.from_numpy(np.array(augmented)).permute(2, 0, 1) / 255 - 0.5) / 0.25
        expected = v2.RandomErasing(p=0.7)(expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        changed += not torch.equal(found, plain(image))
    assert changed >= 6

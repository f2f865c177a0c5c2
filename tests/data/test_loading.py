from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from wiseft_cli.compute.workers import raise_on_dead_worker
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.loading import ImageBatch, ImageDataset, collate_images
from wiseft_cli.errors import DatasetError


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float()


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    for at in range(7):
        (tmp_path / f"{at % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (at, 0, 0)).save(tmp_path / f"{at % 2}" / f"{at}.png")
    (tmp_path / "0" / "4.png").write_bytes(b"damaged")
    return list_image_folder(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_number_of_workers(image_set: ImageSet, workers: int) -> None:
    dataset = ImageDataset(image_set, range(10, 17), to_tensor)
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate_images)
    first, second = loader
    assert first.indices.tolist() == [0, 1, 3]  # 0/0.png 0/2.png (0/4.png) 0/6.png
    assert first.targets.tolist() == [10, 11, 13]
    assert first.images[:, 0, 0, 0].tolist() == [0, 2, 6]
    assert second.images[:, 0, 0, 0].tolist() == [1, 3, 5]
    assert second.unreadable == {}
    path = image_set.root / "0" / "4.png"
    assert first.unreadable == {
        2: f"cannot read image {path}: not an image in a format that Pillow knows"
    }


def test_a_batch_without_readable_images_is_empty(image_set: ImageSet) -> None:
    dataset = ImageDataset(image_set, range(7), to_tensor)
    batch = collate_images([dataset[2]])
    assert (len(batch.images), len(batch.targets), len(batch.unreadable)) == (0, 0, 1)


def test_all_unreadable_images_of_a_batch_are_reported_at_once() -> None:
    none = torch.empty(0)
    ImageBatch(none, none, none, {}).require_readable()
    reasons = {at: f"cannot read image {at}: x" for at in range(12)}
    with pytest.raises(DatasetError) as caught:
        ImageBatch(none, none, none, reasons).require_readable()
    lines = caught.value.message.splitlines()
    assert lines[0] == "12 images cannot be read:"
    assert lines[1] == "  cannot read image 0: x"
    assert lines[-1] == "  ... and 2 more"


def test_dead_workers_are_reported_and_other_errors_pass_through() -> None:
    def loader(message: str) -> Iterator[int]:
        yield 1
        raise RuntimeError(message)

    batches = raise_on_dead_worker(loader("DataLoader worker (pid 7) is killed by signal"), 3)
    assert next(batches) == 1
    with pytest.raises(DatasetError) as caught:
        next(batches)
    assert caught.value.message == (
        "one of the 3 workers that decode images died: DataLoader worker (pid 7) is killed by"
        " signal"
    )
    with pytest.raises(RuntimeError, match=r"^mine$"):
        list(raise_on_dead_worker(loader("mine"), 3))


def test_the_number_of_targets_must_equal_the_number_of_images(image_set: ImageSet) -> None:
    with pytest.raises(ValueError, match=r"^3 targets for 7 images$"):
        ImageDataset(image_set, [0, 1, 2], to_tensor)

from __future__ import annotations

import torch

from tests.training.test_images import PREPROCESS, dataset
from wiseft_cli.compute.process_group import SINGLE_PROCESS
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.model.transforms import eval_transform
from wiseft_cli.training.batches import Draw
from wiseft_cli.training.features import compute_features, feature_batches
from wiseft_cli.training.images import RotatedImages, UnreadableImages


def test_features_have_the_order_of_the_dataset(train_folder):
    images = dataset(train_folder, eval_transform(PREPROCESS))
    (train_folder / "n01" / "unreadable.png").write_bytes(b"")
    unreadable = UnreadableImages(max_bad=1)
    seen: list[int] = []
    features = compute_features(
        lambda batch: batch.mean(dim=(2, 3)),
        list_image_folder(train_folder),
        PREPROCESS,
        batch_size=5,
        processes=SINGLE_PROCESS,
        workers=0,
        unreadable=unreadable,
        rotated=RotatedImages(images._image_set, PREPROCESS),
        on_encoded=seen.append,
    )
    expected = torch.stack([images[index][0].mean(dim=(1, 2)) for index in range(12)])
    # The unreadable image comes after the four others of its class.
    readable = [at for at in range(13) if at != 4]
    torch.testing.assert_close(features.values[readable], expected)
    assert features.is_readable.tolist() == [at in readable for at in range(13)]
    assert seen == [5, 5, 3]
    assert len(unreadable.reasons) == 1
    draws = [[Draw(0, 4), Draw(0, 5)], [Draw(0, 4)], []]
    batches = list(feature_batches(features, torch.arange(13), draws))
    assert [targets.tolist() for _, targets in batches] == [[5], [], []]
    assert [tuple(values.shape) for values, _ in batches] == [(1, 3), (0, 3), (0, 3)]

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.tiny import CLASSES, RESNET, VIT, make_checkpoint, make_images
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import data_fingerprint
from wiseft_cli.errors import CheckpointError, DatasetError, OutputError
from wiseft_cli.evaluation import fisher as fisher_module
from wiseft_cli.evaluation.fisher import FisherFile, compute_fisher, plan_fisher, uniform_number
from wiseft_cli.merging.fisher_file import open_fisher, require_fisher_of
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform

LABELS = [entry.id for entry in CLASSES]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_images(tmp_path / "data", LABELS[:4], per_class=3)


def run(checkpoint: Path, data: Path, output: str, **options: Any) -> FisherFile:
    plan = plan_fisher(checkpoint, str(data), data.parent / output, **options)
    return compute_fisher(plan, device="cpu", workers=0)


def read(path: Path) -> dict[str, np.ndarray]:
    with open_fisher(path) as reader:
        return {name: reader.read_array(name) for name in reader.tensors}


def reference(checkpoint: Path, data: Path, *, from_model: bool) -> dict[str, np.ndarray]:
    """Return the mean squared gradients in float64, all images in one vectorized call."""
    classifier, card = load_classifier(checkpoint)
    classifier = classifier.double().eval()
    parameters = {name: at.detach() for name, at in classifier.named_parameters()}
    buffers = dict(classifier.named_buffers())
    transform = eval_transform(card.preprocess or {})
    paths = sorted(data.rglob("*.png"))
    images = torch.stack([transform(Image.open(path)) for path in paths]).double()
    targets = torch.tensor([LABELS.index(path.parent.name) for path in paths])
    if from_model:
        shares = classifier(images).detach().softmax(dim=1).numpy()
        drawn = [
            np.searchsorted(np.cumsum(row), uniform_number(0, path.relative_to(data).as_posix()))
            for row, path in zip(shares, paths, strict=True)
        ]
        assert drawn != targets.tolist()
        targets = torch.tensor(np.array(drawn))

    def log_likelihood(
        values: Mapping[str, torch.Tensor], image: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.func.functional_call(classifier, (values, buffers), (image[None],))
        return logits.log_softmax(dim=1)[0].gather(0, target[None])[0]

    gradient = torch.func.grad(log_likelihood)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = torch.func.vmap(gradient, in_dims=(None, 0, 0))(parameters, images, targets)
    return {name: (at**2).mean(dim=0).numpy() for name, at in gradients.items()}


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("labels", ["model", "data"])
def test_values_are_mean_squared_gradients_of_single_images(
    tmp_path: Path, data: Path, config: Mapping[str, Any], labels: str
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1, config=config)
    done = run(checkpoint, data, "f.safetensors", labels=labels)
    found = read(done.path)
    expected = reference(checkpoint, data, from_model=labels == "model")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        # The gradient of attention's key bias is zero but for the rounding of float32.
        atol = max(1e-4 * values.max(), 1e-14)
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=atol)


def test_buffers_are_left_out_and_not_changed(tmp_path: Path, data: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1, config=RESNET)
    before = checkpoint.read_bytes()
    found = read(run(checkpoint, data, "f.safetensors").path)
    with open_checkpoint(checkpoint) as reader:
        missing = reader.tensors.keys() - found.keys()
    assert {name.rpartition(".")[2] for name in missing} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert checkpoint.read_bytes() == before


def test_bytes_depend_neither_on_batches_nor_on_workers(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1, config=RESNET)
    first = run(checkpoint, data, "a.safetensors").path.read_bytes()
    monkeypatch.setattr(fisher_module, "_DECODED_IMAGES", 5)
    plan = plan_fisher(checkpoint, str(data), tmp_path / "b.safetensors")
    torch.manual_seed(99)
    compute_fisher(plan, device="cpu", workers=1)
    assert (tmp_path / "b.safetensors").read_bytes() == first


def test_threads_of_torch_are_restored(tmp_path: Path, data: Path) -> None:
    before = torch.get_num_threads()
    plan = plan_fisher(make_checkpoint(tmp_path / "c", seed=1), str(data), tmp_path / "f")
    compute_fisher(plan, device="cpu", workers=0, threads=before + 1)
    assert torch.get_num_threads() == before


def test_file_names_checkpoint_data_and_labels(tmp_path: Path, data: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1)
    done = run(checkpoint, data, "f.safetensors", labels="data", seed=3)
    with open_fisher(done.path) as fisher, open_checkpoint(checkpoint) as reader:
        info = require_fisher_of(fisher, reader)
    assert info == done.info
    assert (info.checkpoint, info.labels, info.seed) == (read_card(checkpoint).digest, "data", 3)
    assert info.data_fingerprint == data_fingerprint(list_image_folder(data))
    assert (info.n_images, info.n_unreadable) == (12, 0)


def test_sample_is_chosen_by_the_seed_and_is_a_part_of_a_larger_one(
    tmp_path: Path, data: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1)

    def sample(n_samples: int | None, seed: int = 0) -> set[str]:
        plan = plan_fisher(checkpoint, str(data), tmp_path / "f", n_samples=n_samples, seed=seed)
        return {record.path for record in plan.sample.records}

    assert len(sample(5)) == 5
    assert sample(5) == sample(5) < sample(8) < sample(None)
    assert sample(5) != sample(5, seed=1)
    whole = plan_fisher(checkpoint, str(data), tmp_path / "f", n_samples=99)
    assert len(whole.sample.records) == 12
    assert "12 images, fewer than the 99 asked for" in whole.notes[0]


def test_seed_changes_drawn_labels_but_not_given_ones(tmp_path: Path, data: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1)
    of = {
        (labels, seed): read(
            run(checkpoint, data, f"{labels}{seed}", labels=labels, seed=seed).path
        )["classification_head.bias"].tobytes()
        for labels in ("model", "data")
        for seed in (0, 1)
    }
    assert of["data", 0] == of["data", 1]
    assert of["model", 0] != of["model", 1]


def test_unreadable_images_are_counted_and_left_out(tmp_path: Path, data: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1)
    (data / LABELS[0] / "0.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="1 image of the 12 cannot be read, at most 0 allowed"):
        run(checkpoint, data, "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()
    done = run(checkpoint, data, "f.safetensors", max_unreadable=1)
    assert (done.info.n_images, done.info.n_unreadable) == (11, 1)
    assert "0.png" in done.warnings[0]
    (data / LABELS[0] / "0.png").unlink()
    others = read(run(checkpoint, data, "others.safetensors").path)
    assert {n: at.tobytes() for n, at in read(done.path).items()} == {
        n: at.tobytes() for n, at in others.items()
    }


def test_no_readable_image_is_an_error(tmp_path: Path, data: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1)
    for path in data.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DatasetError, match="none of its 12 images is readable"):
        run(checkpoint, data, "f.safetensors", max_unreadable=12)


def test_labels_of_other_classes_are_needed_only_for_the_empirical_fisher(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1)
    data = make_images(tmp_path / "other", ["x", "y"], per_class=2)
    assert run(checkpoint, data, "f.safetensors").info.n_images == 4
    with pytest.raises(DatasetError, match="2 of 2 labels are not classes of the head"):
        run(checkpoint, data, "g.safetensors", labels="data")


def test_existing_outputs_and_inputs_are_kept(tmp_path: Path, data: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1)
    before = checkpoint.read_bytes()
    with pytest.raises(OutputError, match="is also an input"):
        plan_fisher(checkpoint, str(data), checkpoint, force=True)
    (tmp_path / "f").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        plan_fisher(checkpoint, str(data), tmp_path / "f")
    assert (checkpoint.read_bytes(), (tmp_path / "f").read_text()) == (before, "mine")


def test_damaged_checkpoint_is_rejected(tmp_path: Path, data: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", seed=1)
    damaged = bytearray(checkpoint.read_bytes())
    damaged[-1] ^= 1
    checkpoint.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="do not match its card"):
        run(checkpoint, data, "f.safetensors")

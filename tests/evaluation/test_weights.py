from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from wiseft_cli.evaluation.interpolated import interpolate_tensors
from wiseft_cli.evaluation.weights import WeightBank

from tests.evaluation.tiny import CLASSES, RESNET, VIT, make_checkpoint, make_images, make_pair
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.errors import CheckpointError
from wiseft_cli.evaluation import interpolated as interpolated_module
from wiseft_cli.evaluation import weights as weights_module
from wiseft_cli.evaluation.plan import Job, plan_jobs
from wiseft_cli.evaluation.sweep import SweepSettings, sweep
from wiseft_cli.evaluation.weight_sets import WeightSet, plan_weight_sets, read_checkpoints
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.arithmetic import interpolate_arrays
from wiseft_cli.merging.merge import merge_checkpoints
from wiseft_cli.model.classifier import ImageClassifier, load_classifier, state_arrays
from wiseft_cli.reporting.results import ResultLine

LABELS = [entry.id for entry in CLASSES]
CPU = torch.device("cpu")


def jobs_of(
    paths: Sequence[Path], folder: Path, alphas: str = "", *, ensemble: bool = False
) -> tuple[Job, ...]:
    rows = plan_weight_sets(
        read_checkpoints(paths),
        parse_alphas([alphas]) if alphas else (),
        output_ensemble=ensemble,
    )
    return plan_jobs(rows, [list_image_folder(folder)])


def run(jobs: Sequence[Job], **options: Any) -> list[ResultLine]:
    settings = SweepSettings(**({"batch_size": 8, "workers": 0, "device": CPU} | options))
    return [line for lines in sweep(jobs, settings) for line in lines.values()]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "val", LABELS, per_class=4, seed=1)


def with_encoder_of(path: Path, encoder: Path, head: Path) -> Path:
    """A checkpoint of one's encoder and another's head."""
    with open_checkpoint(encoder) as first, open_checkpoint(head) as second:
        tensors = {
            name: (first if name.startswith("visual.") else second).read_array(name)
            for name in first.tensors
        }
        assert second.card is not None
        write_checkpoint(path, tensors, second.card)
    return path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images of each forward pass of an image encoder."""
    calls: list[int] = []
    encode_image = ImageClassifier.encode_image

    def counting(self: ImageClassifier, images: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append(len(images))
        return encode_image(self, images, **options)

    monkeypatch.setattr(ImageClassifier, "encode_image", counting)
    return calls


def test_numbers_on_a_gpu_are_made_as_those_of_a_merge() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, size=200_000, dtype=np.uint32).view(np.float32)
    x = bits[np.isfinite(bits)]
    y = random.permutation(x)
    y[: len(y) // 4] = x[: len(y) // 4]
    out = torch.empty(len(x))
    for alpha in (0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0):
        interpolate_tensors(torch.from_numpy(x), torch.from_numpy(y), alpha, out=out)
        assert out.numpy().tobytes() == interpolate_arrays(x, y, alpha).tobytes()


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_weights_made_on_a_device_are_the_bits_that_a_merge_writes(
    tmp_path: Path, images: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpolated_module, "_interpolates_there", lambda device: True)
    pair = make_pair(tmp_path, config=config)
    jobs = jobs_of(pair, images, "0,0.3,1,0.7")
    bank = WeightBank([job.weights for job in jobs], CPU)
    for job in jobs:
        assert job.weights.alpha is not None
        merged = tmp_path / f"{job.alpha_text}.safetensors"
        merge_checkpoints(*pair, [(job.weights.alpha, merged)])
        arrays = state_arrays(bank.classifier(job.weights))
        expected = state_arrays(load_classifier(merged)[0])
        for name in expected:
            assert arrays[name].tobytes() == expected[name].tobytes(), name
        # Its parts in between: nothing of the last weights may stay.
        arrays = state_arrays(bank.classifier(WeightSet(job.weights.checkpoints[:1])))
        expected = state_arrays(load_classifier(pair[0])[0])
        assert all(arrays[name].tobytes() == expected[name].tobytes() for name in expected)


def test_checkpoints_with_one_encoder_share_its_features(
    tmp_path: Path, images: Path, encoded: list[int]
) -> None:
    theta_0, theta_1 = make_pair(tmp_path, config=RESNET)
    probe = with_encoder_of(tmp_path / "probe.safetensors", theta_0, theta_1)
    expected = [run(jobs_of([path], images))[0] for path in (theta_0, probe)]
    encoded.clear()
    assert run(jobs_of([theta_0, probe], images)) == expected
    assert sum(encoded) == 32
    encoded.clear()
    # A sweep of a linear classifier sets heads, and runs the encoder once.
    lines = run(jobs_of([theta_0, probe], images, "0:1:0.1"))
    assert sum(encoded) == 32
    assert [line.metrics for line in (lines[0], lines[-1])] == [line.metrics for line in expected]
    encoded.clear()
    run(jobs_of([theta_0, theta_1], images, "0,0.5,1"))
    assert sum(encoded) == 3 * 32


def test_an_ensemble_averages_the_logits_of_both(
    tmp_path: Path, images: Path, encoded: list[int]
) -> None:
    pair = make_pair(tmp_path, config=RESNET)
    jobs = jobs_of(pair, images, ensemble=True)
    encoded.clear()
    *plain, ensemble = run(jobs)
    assert sum(encoded) == 2 * 32  # the rows of the two give the parts
    assert (ensemble.ensemble, ensemble.alpha, len(ensemble.checkpoints)) == (True, None, 2)
    # Independently: averaging logits is one head on the two models' features side by side.
    logits = []
    for path in pair:
        batches = []
        classifier = load_classifier(path)[0]
        for batch in weights_images(images):
            with torch.no_grad():
                batches.append(classifier(batch))
        logits.append(torch.cat(batches))
    predicted = ((logits[0] + logits[1]) / 2).argmax(dim=1)
    targets = torch.arange(8).repeat_interleave(4)
    assert ensemble.value == float((predicted == targets).double().mean())
    assert len({line.value for line in (*plain, ensemble)}) > 1
    swept = run(jobs_of(pair, images, "0,0.3,1", ensemble=True))
    assert swept[-1] == ensemble


def weights_images(folder: Path) -> list[torch.Tensor]:
    from tests.evaluation.tiny import PREPROCESS
    from wiseft_cli.evaluation.scoring import load_images

    batches = load_images(
        list_image_folder(folder), PREPROCESS, batch_size=8, workers=0, device=CPU
    )
    return [batch.images for batch in batches]


def test_of_many_checkpoints_few_are_in_memory(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        make_checkpoint(tmp_path / f"{at}.safetensors", seed=at, config=RESNET if at == 4 else VIT)
        for at in range(6)
    ]
    expected = [run(jobs_of([path], images))[0] for path in paths]
    loads: list[Path] = []
    load = weights_module.load_classifier
    monkeypatch.setattr(
        weights_module,
        "load_classifier",
        lambda path, **options: (loads.append(path), load(path, **options))[1],
    )
    bank = WeightBank([WeightSet((item,)) for item in read_checkpoints(paths)], CPU)
    assert bank.changes_weights
    assert run(jobs_of(paths, images)) == expected
    # Two stay; of the others one is loaded, and again where the architecture changes.
    assert loads == [paths[at] for at in (0, 1, 2, 4, 5)]
    loads.clear()
    assert run(jobs_of(paths[:3], images)) == expected[:3]
    assert loads == paths[:3]


def test_a_file_whose_tensors_are_not_those_of_its_card_is_refused(
    tmp_path: Path, images: Path
) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=1)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its tensors do not match its card"):
        run(jobs_of([path], images))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_is_of_the_encoder_and_stands_in_the_line(
    tmp_path: Path, images: Path, precision: str
) -> None:
    rows = plan_weight_sets(read_checkpoints(make_pair(tmp_path)), ())
    sets = [list_image_folder(images)]
    expected = run(plan_jobs(rows, sets))
    jobs = plan_jobs(rows, sets, precision=precision)
    assert [job.key for job in jobs] != [job.key for job in plan_jobs(rows, sets)]
    for line, exact in zip(run(jobs), expected, strict=True):
        assert line.precision == precision
        assert abs(line.value - exact.value) <= 0.1


def test_weights_of_a_merge_are_evaluated_alike_beside_its_parents(
    tmp_path: Path, images: Path
) -> None:
    pair = make_pair(tmp_path, config=RESNET)
    merged = tmp_path / "merged.safetensors"
    merge_checkpoints(*pair, [(parse_alphas(["0.3"])[0], merged)])
    bank = WeightBank([job.weights for job in jobs_of([*pair, merged], images)], CPU)
    for checkpoint in read_checkpoints([*pair, merged]):
        arrays = state_arrays(bank.classifier(WeightSet((checkpoint,))))
        expected = state_arrays(load_classifier(checkpoint.path)[0])
        assert all(arrays[name].tobytes() == expected[name].tobytes() for name in expected)

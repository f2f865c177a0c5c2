"""All commands work for every family of open_clip, with open_clip's results."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from tests.families.catalog import CONTEXT_LENGTH, FAMILIES, Family, family_of
from tests.families.findings import error_row, find_error, row_of
from tests.families.models_page import PAGE
from tests.families.pipeline import NAMES, TEMPLATES, Run, bpe_option, run_family
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.text_encoder import TextEncoder

SUPPORTED = [family for family in FAMILIES if family.error is None]
UNSUPPORTED = [family for family in FAMILIES if family.error is not None]
PROMPTS = [template.replace("{}", name) for name in NAMES for template in TEMPLATES]


@pytest.fixture(scope="module", params=SUPPORTED, ids=lambda family: family.like)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family and the outputs of the commands for it."""
    family: Family = request.param
    return family, run_family(family, tmp_path_factory.mktemp("family"))


@pytest.fixture
def run(case: tuple[Family, Run]) -> Run:
    return case[1]


def pictures(run: Run) -> torch.Tensor:
    paths = sorted(run.images.rglob("*.png"))
    return torch.stack([run.transform(Image.open(path)) for path in paths])


def tower_features(visual: Any, images: torch.Tensor) -> torch.Tensor:
    features = visual(images)
    # CoCa's image tower also returns its tokens.
    return features[0] if isinstance(features, tuple) else features


def model_with_encoder_of(run: Run, path: Path) -> Any:
    """Return a copy of open_clip's model with the `visual.*` tensors of a checkpoint."""
    model = copy.deepcopy(run.model)
    encoder = {name: t for name, t in load_file(path).items() if name.startswith("visual.")}
    missing, unexpected = model.load_state_dict(encoder, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith("visual.")]
    return model


def open_clip_head(run: Run) -> torch.Tensor:
    """Return open_clip's head, times the scale; (C, D)."""
    weights = open_clip.build_zero_shot_classifier(run.model, run.tokenizer, NAMES, TEMPLATES)
    scaled: torch.Tensor = weights.T * run.model.logit_scale.exp()
    return scaled.detach()


def test_head_equals_open_clips_classifier_times_scale_plus_bias(run: Run) -> None:
    found, expected = load_file(run.zeroshot), open_clip_head(run)
    difference = (found["classification_head.weight"] - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()
    bias = getattr(run.model, "logit_bias", None)
    assert (found["classification_head.bias"] == (0 if bias is None else bias)).all()


def test_image_tensors_are_those_that_open_clip_loads(run: Run) -> None:
    found = load_file(run.zeroshot)
    expected = {n: t for n, t in run.model.state_dict().items() if n.startswith("visual.")}
    assert found.keys() - expected.keys() == {
        "classification_head.weight",
        "classification_head.bias",
    }
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_encoder_rebuilt_from_the_card_is_bit_equal_to_the_full_model(run: Run) -> None:
    classifier, _ = load_classifier(run.zeroshot)
    with torch.no_grad():
        expected = tower_features(run.model.visual, pictures(run))
        assert torch.equal(classifier.visual(pictures(run)), expected)


def test_finetuning_changes_the_encoder_and_the_merge_is_the_mean(run: Run) -> None:
    start, end, merged = (load_file(path) for path in (run.zeroshot, run.finetuned, run.merged))
    moved = [name for name in start if not torch.equal(start[name], end[name])]
    assert any(name.startswith("visual.") for name in moved)
    assert "classification_head.weight" in moved
    for name in moved:
        if start[name].is_floating_point():
            between = (start[name].double() + end[name].double()) / 2
            assert torch.equal(merged[name], between.float()), name


def test_accuracy_equals_that_of_a_plain_open_clip_model(run: Run) -> None:
    labels = torch.arange(len(NAMES)).repeat_interleave(len(pictures(run)) // len(NAMES))
    for row, path in zip(run.rows, (run.zeroshot, run.finetuned, run.merged), strict=True):
        head = load_file(path)
        with torch.no_grad():
            model = model_with_encoder_of(run, path)
            features = functional.normalize(tower_features(model.visual, pictures(run)), dim=-1)
            logits = features @ head["classification_head.weight"].T
            predicted = (logits + head["classification_head.bias"]).argmax(dim=1)
        assert row["metrics"]["top1"]["value"] == (predicted == labels).double().mean().item()


def test_padding_is_omitted_only_if_features_stay_the_same(run: Run) -> None:
    encode = TextEncoder(run.model)
    tokens = run.tokenizer(PROMPTS)
    lengths = encode.lengths(tokens)
    with torch.no_grad():
        expected = functional.normalize(run.model.encode_text(tokens), dim=-1)
        found = encode(tokens[:, : int(lengths.max())])
    if encode.ignores_padding:
        assert int(lengths.max()) < CONTEXT_LENGTH
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    else:
        assert (lengths == tokens.shape[1]).all()
        assert torch.equal(found, expected)


def test_bf16_features_are_close_to_fp32(run: Run) -> None:
    tokens = run.tokenizer(PROMPTS)
    with torch.no_grad():
        exact = TextEncoder(run.model)(tokens)
        rough = TextEncoder(run.model, precision="bf16")(tokens)
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.03


def test_open_clip_loads_the_export_with_the_features_of_both_towers(run: Run) -> None:
    exported, _, _ = open_clip.create_model_and_transforms(f"local-dir:{run.exported}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{run.exported}", **bpe_option(run.exported))
    merged = model_with_encoder_of(run, run.merged)
    tokens = tokenizer(PROMPTS)
    assert torch.equal(tokens, run.tokenizer(PROMPTS))
    with torch.no_grad():
        images = pictures(run)
        found = exported.eval().encode_image(images)
        assert torch.equal(found, merged.encode_image(images))
        assert torch.equal(exported.encode_text(tokens), run.model.encode_text(tokens))
    assert torch.equal(exported.logit_scale, run.model.logit_scale)
    assert getattr(exported, "logit_bias", None) == getattr(run.model, "logit_bias", None)


def test_row_of_the_page_is_true(case: tuple[Family, Run]) -> None:
    assert row_of(*case) in PAGE.read_text().splitlines(), (
        "run `python -m tests.families.models_page`"
    )


@pytest.mark.parametrize("family", UNSUPPORTED, ids=lambda family: family.like)
def test_unsupported_family_is_rejected_with_the_reason(family: Family, tmp_path: Path) -> None:
    message = find_error(family, tmp_path)
    assert message == family.error
    assert error_row(family, message) in PAGE.read_text().splitlines()


def test_every_open_clip_name_is_in_exactly_one_family() -> None:
    for name in open_clip.list_models():
        assert family_of(name)


def test_page_has_no_other_rows() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(FAMILIES) + 1
    version = ".".join(open_clip.__version__.split(".")[:2])
    assert f"every model name of open_clip {version} is" in PAGE.read_text()

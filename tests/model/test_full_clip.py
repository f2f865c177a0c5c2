"""A model is found with its weights and its own settings, or it is an error; never a guess."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from tests.model.conftest import FAMILIES, random_clip
from wiseft_cli.errors import ModelError, UsageError, WiseftError
from wiseft_cli.model import hub_errors, model_source
from wiseft_cli.model.full_clip import Doubt, build_untrained_clip, load_full_clip
from wiseft_cli.model.model_source import ModelSource, find_model
from wiseft_cli.model.weights_file import OPENAI_MARKS


def refusal(model: str, **options: Any) -> WiseftError:
    with pytest.raises(WiseftError) as caught:
        find_model(model, **{"pretrained": None, **options})
    return caught.value


def test_folder_gives_the_model_open_clip_would_load(vit_folder: Path) -> None:
    full = load_full_clip(find_model(f"local-dir:{vit_folder}", pretrained=None))
    expected = open_clip.create_model(f"local-dir:{vit_folder}").eval()
    assert full.model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(full.model.state_dict()[name], tensor)
    assert full.preprocess == expected.visual.preprocess_cfg
    assert (full.name, full.source) == ("tiny-vit", full.weights_digest)
    assert not full.model.training


def test_source_and_name_never_hold_a_path(vit_folder: Path) -> None:
    full = load_full_clip(find_model(f"local-dir:{vit_folder}", pretrained=None))
    assert str(vit_folder.parent) not in json.dumps([full.name, full.source, full.config])


def test_a_model_folder_without_its_prefix_is_told_the_prefix(vit_folder: Path) -> None:
    error = refusal(str(vit_folder))
    assert error.hint == f"it is a folder: --model local-dir:{vit_folder}"


def test_unknown_model_suggests_the_nearest_names() -> None:
    error = refusal("vit-b32")
    assert isinstance(error, ModelError)
    assert error.message == "vit-b32: open_clip has no model of this name"
    assert error.hint is not None
    assert "ViT-B-32" in error.hint.removeprefix("nearest names: ").split(", ")


def test_model_like_no_other_says_how_to_list_names() -> None:
    assert refusal("#").hint == (
        "`python -c 'import open_clip; print(open_clip.list_models())'` lists all names"
    )


def test_missing_tag_lists_the_tags_of_the_model() -> None:
    error = refusal("RN101", pretrained="laion2b")
    assert error.message == "--pretrained laion2b: is no tag of RN101, and there is no such file"
    assert error.hint == "tags of RN101: openai, yfcc15m"


def test_no_weights_is_an_error_where_open_clip_would_draw_them_at_random() -> None:
    error = refusal("RN101")
    assert error.message == "RN101: no weights were named"
    assert error.hint == (
        "give --pretrained TAG or FILE (tags of RN101: openai, yfcc15m), "
        "or --random-weights for a trial"
    )


def test_contradicting_options_are_usage_errors() -> None:
    error = refusal("RN101", pretrained="openai", random_weights=True)
    assert isinstance(error, UsageError)
    assert error.message == "--random-weights and --pretrained exclude each other"
    error = refusal("hf-hub:org/repo", pretrained="openai")
    assert isinstance(error, UsageError)
    assert error.message == "--pretrained openai: a hf-hub: model brings its own weights"


def test_tag_without_network_says_so_and_how_to_use_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_errors.hub_constants, "HF_HUB_OFFLINE", True)
    error = refusal("RN101", pretrained="openai")
    assert error.message == (
        "the weights openai of RN101: not on this machine, and HF_HUB_OFFLINE forbids downloads"
    )
    assert error.hint == (
        "unset HF_HUB_OFFLINE, or fetch them where there is a network, "
        "and give them with --pretrained FILE"
    )


def test_hub_without_network_says_so_and_how_to_use_a_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_errors.hub_constants, "HF_HUB_OFFLINE", True)
    error = refusal("hf-hub:org/repo")
    assert error.message == (
        "hf-hub:org/repo: not on this machine, and HF_HUB_OFFLINE forbids downloads"
    )
    assert error.hint == (
        "unset HF_HUB_OFFLINE, or fetch them where there is a network, "
        "and give them as a folder with open_clip_config.json: --model local-dir:PATH"
    )


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            "Connection\n refused",
            "the weights openai of RN101: the download failed: Connection refused",
        ),
        (
            "403 gated repo",
            "the weights openai of RN101: no permission to download: 403 gated repo",
        ),
    ],
)
def test_failed_download_tells_the_reason_in_one_line(
    reason: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_settings: object) -> str:
        raise OSError(reason)

    monkeypatch.setattr(hub_errors.hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    assert refusal("RN101", pretrained="openai").message == message


def test_hub_model_is_loaded_as_a_folder_is(
    vit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(_repository: str, filename: str = "open_clip_model.safetensors") -> str:
        return str(vit_folder / filename)

    monkeypatch.setattr(model_source, "download_pretrained_from_hf", cached)
    source = find_model("hf-hub:org/repo", pretrained=None)
    assert (source.name, source.published) == ("hf-hub:org/repo", "hf-hub:org/repo")
    assert source.weights == vit_folder / "open_clip_model.safetensors"


def test_missing_pieces_of_a_folder_are_named(vit_folder: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert refusal(f"local-dir:{absent}").message == (
        f"{absent}: is no folder, expected an open_clip model folder"
    )
    weights = vit_folder / "open_clip_model.safetensors"
    weights.unlink()
    assert refusal(f"local-dir:{vit_folder}").message == (
        f"{weights}: is missing, and no other weights are in the folder"
    )
    config = vit_folder / "open_clip_config.json"
    config.write_text("{")
    assert refusal(f"local-dir:{vit_folder}").message.startswith(
        f"{config}: cannot be read as JSON: "
    )
    config.write_text("{}")
    assert refusal(f"local-dir:{vit_folder}").message == f"{config}: has no model_cfg"
    config.write_text('{"model_cfg": {"embed_dim": 4}}')
    assert refusal(f"local-dir:{vit_folder}").message == (
        f"{config}: its model_cfg has no vision_cfg, text_cfg"
    )
    towers = '"embed_dim": 4, "vision_cfg": [1], "text_cfg": {}'
    config.write_text(f'{{"model_cfg": {{{towers}}}}}')
    error = refusal(f"local-dir:{vit_folder}")
    assert error.message == f"{config}: its vision_cfg is no mapping, but list"
    assert error.hint == "open_clip's push_to_hf_hub and `save_for_hf` write such folders"
    config.unlink()
    assert refusal(f"local-dir:{vit_folder}").message == (
        f"{config}: is missing from the model folder"
    )


def test_folder_with_several_unusual_weights_is_not_guessed_at(vit_folder: Path) -> None:
    weights = vit_folder / "open_clip_model.safetensors"
    shutil.copy(weights, vit_folder / "b.safetensors")
    weights.rename(vit_folder / "a.safetensors")
    assert refusal(f"local-dir:{vit_folder}").message == (
        f"{vit_folder}: holds several weights files, and none has a usual name: "
        "a.safetensors, b.safetensors"
    )


def test_tag_trained_with_quick_gelu_selects_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _settings: tmp_path / "w.pt")
    with_it = find_model("ViT-B-32", pretrained="openai")
    assert with_it.config["quick_gelu"] is True
    assert with_it.notes == ("tag openai was trained with QuickGELU, so ViT-B-32 is built with it",)
    without = find_model("ViT-B-32", pretrained="laion2b_s34b_b79k")
    assert not without.config.get("quick_gelu")
    assert without.notes == ()
    assert without.published == "laion2b_s34b_b79k"


def test_preprocessing_is_that_of_the_tag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _settings: tmp_path / "w.pt")
    source = find_model("ViT-B-16-SigLIP", pretrained="webli")
    assert source.preprocess["mean"] == (0.5, 0.5, 0.5)
    assert source.preprocess["resize_mode"] == "squash"


def test_local_file_takes_the_preprocessing_all_tags_agree_on_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.touch()
    source = find_model("ViT-B-16-SigLIP", pretrained=str(path))
    assert source.preprocess["mean"] == (0.5, 0.5, 0.5)
    assert source.notes == (
        "preprocessing is that of all tags of ViT-B-16-SigLIP: mean (0.5, 0.5, 0.5), "
        "std (0.5, 0.5, 0.5), interpolation bicubic, resize_mode squash",
    )
    assert find_model("ViT-B-32", pretrained=str(path)).notes == ()


def local_source(path: Path, name: str, tensors: dict[str, torch.Tensor]) -> ModelSource:
    torch.save(tensors, path)
    return ModelSource(name, "ViT-B-32", FAMILIES["vit"], {}, weights=path)


@pytest.fixture
def any_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wiseft_cli.model.full_clip.load_tokenizer", lambda _source: None)


@pytest.mark.usefixtures("any_tokenizer")
def test_openais_marks_in_a_local_file_select_quick_gelu_and_say_so(tmp_path: Path) -> None:
    marked = {
        **random_clip("vit").state_dict(),
        **{name: torch.tensor(1) for name in OPENAI_MARKS},
    }
    full = load_full_clip(local_source(tmp_path / "w.pt", "ViT-B-32", marked))
    assert full.config["quick_gelu"] is True
    assert full.notes == ("w.pt carries OpenAI's marks, so the model is built with QuickGELU",)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    quick = build_untrained_clip(FAMILIES["vit-quickgelu"]).eval()
    quick.load_state_dict(random_clip("vit").state_dict())
    with torch.no_grad():
        assert torch.equal(full.model.encode_image(images), quick.encode_image(images))


@pytest.mark.usefixtures("any_tokenizer")
def test_doubt_about_the_activation_names_both_choices(tmp_path: Path) -> None:
    weights = dict(random_clip("vit").state_dict())
    full = load_full_clip(local_source(tmp_path / "w.pt", "ViT-B-32", weights))
    assert full.config["quick_gelu"] is False
    assert full.notes == (
        "w.pt does not say its activation; GELU is assumed. If it was trained with QuickGELU, "
        "as OpenAI's models were, give --model ViT-B-32-quickgelu",
    )
    assert isinstance(full.notes[0], Doubt)  # which the command line says as a warning
    other = load_full_clip(local_source(tmp_path / "w.pt", "no-twin", weights))
    assert other.notes == ()


@pytest.mark.usefixtures("any_tokenizer")
def test_interpolated_position_embedding_is_said(tmp_path: Path) -> None:
    weights = dict(random_clip("vit").state_dict())
    weights["visual.positional_embedding"] = torch.randn(17, 64)
    full = load_full_clip(local_source(tmp_path / "w.pt", "no-twin", weights))
    assert full.notes == (
        "visual.positional_embedding of w.pt is interpolated from (17, 64) to (5, 64)",
    )


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    source = find_model("RN50", pretrained=None, random_weights=True)
    small = ModelSource("tiny", source.identifier, {**FAMILIES["vit"]}, source.preprocess)
    config = {**small.config, "text_cfg": {**FAMILIES["vit"]["text_cfg"], "vocab_size": 49408}}
    small = ModelSource("tiny", source.identifier, config, source.preprocess)
    state = torch.get_rng_state()
    first, second = load_full_clip(small), load_full_clip(small)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor)
    assert (first.source, first.weights_digest) == (None, None)


def test_config_that_open_clip_cannot_build_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^open_clip cannot build this model config: .*colour"):
        build_untrained_clip({**FAMILIES["vit"], "colour": "blue"})

"""A model is found with its weights and settings, or an error explains why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from wiseft_cli.convert import hub
from wiseft_cli.errors import ModelError, UsageError, WiseftError
from wiseft_cli.model import model_source
from wiseft_cli.model.model_source import find_model

USE_FILE = "download them elsewhere and use --pretrained FILE"
USE_FOLDER = (
    "download it elsewhere as a folder with open_clip_config.json and use --model local-dir:PATH"
)
TAG = "laion2b_s34b_b79k"
WEIGHTS = f"weights {TAG} of ViT-B-32"
DOWNLOAD_FAILED = (
    "the download failed: Failed to download file (open_clip_pytorch_model.bin) for "
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K. Last error: "
)

FailWith = Callable[[type[Exception], str], None]


@pytest.fixture(autouse=True)
def reachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the network whether the hub answers."""
    monkeypatch.setattr(hub, "why_unreachable", lambda: None)


def test_a_silent_hub_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source.hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "why_unreachable", lambda: "https://hub cannot be reached: timed out")
    monkeypatch.setattr(hub, "_switched", [])
    error = find_error("hf-hub:org/repo")
    assert error.message == (
        "hf-hub:org/repo: not in the local cache, and https://hub cannot be reached: timed out"
    )
    assert error.hint == f"check the network and HF_ENDPOINT, or {USE_FOLDER}"


def find_error(model: str, **options: Any) -> WiseftError:
    with pytest.raises(WiseftError) as caught:
        find_model(model, **{"pretrained": None, **options})
    return caught.value


def test_folder_without_its_prefix_suggests_the_prefix(vit_folder: Path) -> None:
    error = find_error(str(vit_folder))
    assert error.hint == f"for a folder use --model local-dir:{vit_folder}"


def test_unknown_name_suggests_similar_names() -> None:
    error = find_error("vit-b32")
    assert isinstance(error, ModelError)
    assert error.message == "vit-b32: not a model name of open_clip"
    assert error.hint is not None
    assert error.hint.startswith("did you mean ViT-B-32")


def test_name_without_similar_names_shows_how_to_list_all() -> None:
    assert find_error("#").hint == (
        "`python -c 'import open_clip; print(open_clip.list_models())'` lists all names"
    )


def test_unknown_tag_lists_the_tags_of_the_model() -> None:
    error = find_error("RN101", pretrained="laion2b")
    assert error.message == "--pretrained laion2b: neither a tag of RN101 nor a file"
    assert error.hint == "tags of RN101: openai, yfcc15m"


def test_missing_weights_are_an_error_where_open_clip_would_use_random_ones() -> None:
    error = find_error("RN101")
    assert error.message == "RN101: no weights given"
    assert error.hint == (
        "use --pretrained TAG or FILE (tags of RN101: openai, yfcc15m), "
        "or --random-weights for a trial"
    )


def test_contradicting_options_are_usage_errors() -> None:
    error = find_error("RN101", pretrained="openai", random_weights=True)
    assert isinstance(error, UsageError)
    assert error.message == "--random-weights and --pretrained exclude each other"
    error = find_error("hf-hub:org/repo", pretrained="openai")
    assert isinstance(error, UsageError)
    assert error.message == "--pretrained openai: hf-hub: models include their weights"


def test_tag_trained_with_quick_gelu_selects_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _settings: tmp_path / "w.pt")
    with_it = find_model("ViT-B-32", pretrained="openai")
    assert with_it.config["quick_gelu"] is True
    assert with_it.notes == ("tag openai was trained with QuickGELU, so ViT-B-32 is built with it",)
    without = find_model("ViT-B-32", pretrained=TAG)
    assert not without.config.get("quick_gelu")
    assert without.notes == ()
    assert without.published == TAG


def test_preprocessing_is_that_of_the_tag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _settings: tmp_path / "w.pt")
    source = find_model("ViT-B-16-SigLIP", pretrained="webli")
    assert source.preprocess["mean"] == (0.5, 0.5, 0.5)
    assert source.preprocess["resize_mode"] == "squash"


def test_local_file_has_the_preprocessing_that_all_tags_share_and_notes_it(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.touch()
    source = find_model("ViT-B-16-SigLIP", pretrained=str(path))
    assert source.preprocess["mean"] == (0.5, 0.5, 0.5)
    assert source.notes == (
        "preprocessing is that of all tags of ViT-B-16-SigLIP: mean (0.5, 0.5, 0.5), "
        "std (0.5, 0.5, 0.5), interpolation bicubic, resize_mode squash",
    )
    assert find_model("ViT-B-32", pretrained=str(path)).notes == ()


def test_hub_model_is_found_like_a_folder(
    vit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(_repository: str, filename: str = "open_clip_model.safetensors") -> str:
        return str(vit_folder / filename)

    monkeypatch.setattr(model_source, "download_pretrained_from_hf", cached)
    source = find_model("hf-hub:org/repo", pretrained=None)
    assert (source.name, source.published) == ("hf-hub:org/repo", "hf-hub:org/repo")
    assert source.weights == vit_folder / "open_clip_model.safetensors"


def test_missing_parts_of_a_folder_are_named(vit_folder: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert find_error(f"local-dir:{absent}").message == (
        f"{absent}: not a folder, expected an open_clip model folder"
    )
    (vit_folder / "open_clip_model.safetensors").unlink()
    assert find_error(f"local-dir:{vit_folder}").message == (
        f"{vit_folder}: no weights file, expected open_clip_model.safetensors"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "No such file or directory"),
        ("{", "not JSON: "),
        ("{}", "has no model_cfg"),
        ('{"model_cfg": {"embed_dim": 4}}', "model_cfg has no vision_cfg, text_cfg"),
        (
            '{"model_cfg": {"embed_dim": 4, "vision_cfg": [1], "text_cfg": {}}}',
            "vision_cfg is a list, expected a mapping",
        ),
    ],
)
def test_faults_of_a_folders_config_are_reported(
    text: str | None, fault: str, vit_folder: Path
) -> None:
    config = vit_folder / "open_clip_config.json"
    config.unlink()
    if text is not None:
        config.write_text(text)
    error = find_error(f"local-dir:{vit_folder}")
    assert error.message.startswith(f"{config}: {fault}")
    assert error.hint == "open_clip's push_to_hf_hub and save_for_hf write such folders"


def test_several_weights_files_without_a_standard_name_are_ambiguous(vit_folder: Path) -> None:
    weights = vit_folder / "open_clip_model.safetensors"
    shutil.copy(weights, vit_folder / "b.safetensors")
    weights.rename(vit_folder / "a.safetensors")
    assert find_error(f"local-dir:{vit_folder}").message == (
        f"{vit_folder}: several weights files, none with a standard name: "
        "a.safetensors, b.safetensors"
    )


@pytest.mark.parametrize(
    ("model", "pretrained", "what", "remedy"),
    [
        ("RN101", "openai", "weights openai of RN101", USE_FILE),
        ("hf-hub:org/repo", None, "hf-hub:org/repo", USE_FOLDER),
    ],
)
def test_offline_mode_is_reported_with_the_use_of_local_files(
    model: str,
    pretrained: str | None,
    what: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_source.hub_constants, "HF_HUB_OFFLINE", True)
    error = find_error(model, pretrained=pretrained)
    assert error.message == f"{what}: not in the local cache, and HF_HUB_OFFLINE forbids downloads"
    assert error.hint == f"unset HF_HUB_OFFLINE, or {remedy}"


def test_failed_download_reports_the_reason_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_settings: object) -> str:
        raise OSError("Connection\n refused")

    monkeypatch.setattr(model_source.hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    error = find_error("RN101", pretrained="openai")
    assert error.message == "weights openai of RN101: the download failed: Connection refused"
    assert error.hint == USE_FILE


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> FailWith:
    """Make the hub's client, which open_clip calls, raise one of its errors."""

    def prepare(kind: type[Exception], text: str) -> None:
        # The hub's errors need a web response; a subclass does without.
        methods = {"__init__": lambda _self: None, "__str__": lambda _self: text}
        error_type = type(kind.__name__, (kind,), methods)

        def download(**_options: Any) -> str:
            raise error_type

        monkeypatch.setattr(model_source.hub_constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", download)

    return prepare


def test_missing_network_is_reported_with_the_use_of_local_files(fail_with: FailWith) -> None:
    fail_with(LocalEntryNotFoundError, "cannot find the file,\n check your connection")
    error = find_error("ViT-B-32", pretrained=TAG)
    assert (
        error.message == f"{WEIGHTS}: {DOWNLOAD_FAILED}cannot find the file, check your connection"
    )
    assert error.hint == USE_FILE
    error = find_error("hf-hub:org/repo")
    assert error.message.endswith("cannot find the file, check your connection")
    assert error.hint == USE_FOLDER


def test_gated_repository_is_reported_with_the_way_to_get_access(fail_with: FailWith) -> None:
    fail_with(GatedRepoError, "Access to model is restricted.")
    error = find_error("ViT-B-32", pretrained=TAG)
    assert error.message == f"{WEIGHTS}: {DOWNLOAD_FAILED}Access to model is restricted."
    assert error.hint == f"accept its terms on the hub and run `hf auth login`, or {USE_FILE}"


def test_missing_or_private_repository_is_reported(fail_with: FailWith) -> None:
    fail_with(
        RepositoryNotFoundError,
        "401 Client Error.\n\nRepository Not Found for url: ...\nIf you are trying to access a"
        " private or gated repo, make sure you are authenticated.",
    )
    error = find_error("hf-hub:org/repo")
    assert "Repository Not Found for url: ..." in error.message
    assert error.hint == "check the name; for a private repository run `hf auth login`"


def test_repository_in_another_layout_is_reported(fail_with: FailWith) -> None:
    fail_with(EntryNotFoundError, "Entry Not Found")
    error = find_error("hf-hub:openai/clip-vit-base-patch32")
    assert error.message == (
        "hf-hub:openai/clip-vit-base-patch32: the download failed: Failed to download file "
        "(open_clip_config.json) for openai/clip-vit-base-patch32. Last error: Entry Not Found"
    )
    assert error.hint == (
        "only repositories in open_clip's layout, with open_clip_config.json, or in transformers', "
        "with config.json, are supported"
    )


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a/b/c", "hf-hub:org/re po"])
def test_invalid_repository_name_is_reported(name: str) -> None:
    error = find_error(name)
    assert error.message.startswith(f"{name}: the download failed: ")
    assert "Repo id must" in error.message
    assert error.hint == "write hf-hub:ORG/REPO"

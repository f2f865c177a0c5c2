"""What keeps a file on the hub is told in words, with the way round it."""

from __future__ import annotations

from typing import Any

import open_clip.pretrained
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from wiseft_cli.errors import ModelError
from wiseft_cli.model import hub_errors
from wiseft_cli.model.model_source import find_model

FILE_HINT = "fetch them where there is a network, and give them with --pretrained FILE"
FOLDER_HINT = (
    "fetch them where there is a network, and give them as a folder with open_clip_config.json: "
    "--model local-dir:PATH"
)


def raiser(kind: type[Exception], text: str) -> Any:
    """A download that raises one of the hub's errors, without the web response they want."""
    methods = {"__init__": lambda _self: None, "__str__": lambda _self: text}
    plain = type(kind.__name__, (kind,), methods)

    def download(**_options: Any) -> str:
        raise plain

    return download


@pytest.fixture
def hub_says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the hub's client raise, below open_clip, as if there were a network."""

    def say(kind: type[Exception], text: str) -> None:
        monkeypatch.setattr(hub_errors.hub_constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", raiser(kind, text))

    return say


def refusal(model: str, pretrained: str | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        find_model(model, pretrained=pretrained)
    return caught.value


TAG = ("ViT-B-32", "laion2b_s34b_b79k")
WHAT = "the weights laion2b_s34b_b79k of ViT-B-32"
FAILED = "Failed to download file (open_clip_pytorch_model.bin) for laion/CLIP-ViT-B-32-laion2B-"


def test_no_network_is_said_with_the_way_to_use_a_local_file(hub_says: Any) -> None:
    hub_says(LocalEntryNotFoundError, "cannot find the file,\n check your connection")
    error = refusal(*TAG)
    assert error.message == f"{WHAT}: not on this machine, and the hub cannot be reached"
    assert error.hint == FILE_HINT
    error = refusal("hf-hub:org/repo")
    assert error.message == "hf-hub:org/repo: not on this machine, and the hub cannot be reached"
    assert error.hint == FOLDER_HINT


def test_gated_repository_is_said_with_how_to_get_in(hub_says: Any) -> None:
    hub_says(GatedRepoError, "Access to model is restricted.")
    error = refusal(*TAG)
    assert error.message == (
        f"{WHAT}: no permission to download: {FAILED}s34B-b79K. "
        "Last error: Access to model is restricted."
    )
    assert error.hint == f"accept its terms on the hub and run `hf auth login`, or {FILE_HINT}"


def test_repository_that_is_not_there_or_private_is_said(hub_says: Any) -> None:
    hub_says(
        RepositoryNotFoundError,
        "401 Client Error.\n\nRepository Not Found for url: ...\nIf you are trying to access a"
        " private or gated repo, make sure you are authenticated.",
    )
    error = refusal("hf-hub:org/repo")
    assert error.message == (
        "hf-hub:org/repo: the hub has no such repository, or shows it to its members alone"
    )
    assert error.hint == "check the name; for a private repository run `hf auth login`"


def test_repository_of_another_layout_is_said(hub_says: Any) -> None:
    hub_says(EntryNotFoundError, "Entry Not Found")
    error = refusal("hf-hub:openai/clip-vit-base-patch32")
    assert error.message == (
        "hf-hub:openai/clip-vit-base-patch32: its repository lacks a file that open_clip needs: "
        "Failed to download file (open_clip_config.json) for openai/clip-vit-base-patch32. "
        "Last error: Entry Not Found"
    )
    assert error.hint == (
        "only repositories in open_clip's own layout are read, with open_clip_config.json"
    )


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a/b/c", "hf-hub:org/re po"])
def test_what_is_no_name_of_a_repository_is_said(name: str) -> None:
    error = refusal(name)
    assert error.message == f"{name}: is no name of a repository"
    assert error.hint == "write hf-hub:ORG/REPO"

"""Find the config, preprocessing and weights of `--model` and `--pretrained`.

In several cases open_clip falls back to random weights silently; here every case ends with a
weights file or with an error. Models are built in `full_clip.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from wiseft_cli.convert import hub
from wiseft_cli.errors import ModelError, UsageError, did_you_mean, did_you_mean_path
from wiseft_cli.model.quiet import quiet_libraries
from wiseft_cli.model.transformers_source import (
    OPEN_CLIP_CONFIG,
    download_transformers_folder,
    is_transformers_folder,
    read_transformers_folder,
)
from wiseft_cli.model.weights_file import SUFFIXES

HUB_PREFIX = "hf-hub:"
FOLDER_PREFIX = "local-dir:"
CONFIG_NAME = OPEN_CLIP_CONFIG
USE_FOLDER = f"download it elsewhere as a folder with {CONFIG_NAME} and use --model local-dir:PATH"
_FOLDER_HINT = "open_clip's push_to_hf_hub and save_for_hf write such folders"
_PREFERRED_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


@dataclass(frozen=True)
class ModelSource:
    """The parts that a CLIP model is built from.

    Attributes:
        name: Name of the model for the card; never a path.
        identifier: Name under which open_clip finds the model's tokenizer.
        config: open_clip's model config, with the activation that the weights' tag states.
        preprocess: open_clip's preprocessing fields, except the size.
        weights: The weights file; None for random weights.
        published: Tag or `hf-hub:` name of the weights; None for a local file or random weights.
        folder: The folder of a `local-dir:` model.
        notes: Remarks for the user.
        tokenizer_folder: The folder with the tokenizer of a model of transformers.
    """

    name: str
    identifier: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    weights: Path | None = None
    published: str | None = None
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    tokenizer_folder: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The local files that the model is read from; no output may replace them."""
        inside = () if self.folder is None else tuple(self.folder.iterdir())
        return inside if self.weights is None else (*inside, self.weights)


def find_model(model: str, *, pretrained: str | None, random_weights: bool = False) -> ModelSource:
    """Find a model and its weights, and download them if they are not cached.

    Args:
        model: open_clip name, `hf-hub:org/repo`, `local-dir:path`, or the path of a model folder
            of transformers.
        pretrained: Tag of the model or a local weights file; None for `hf-hub:` and `local-dir:`.
        random_weights: Whether to use no weights file.
    Raises:
        UsageError: The arguments contradict each other.
        ModelError: The model, tag or weights file is unknown or incomplete, or cannot be
            downloaded.
    """
    if random_weights and pretrained:
        raise UsageError("--random-weights and --pretrained exclude each other")
    for prefix in (HUB_PREFIX, FOLDER_PREFIX):
        if model.startswith(prefix) and pretrained:
            raise UsageError(
                f"--pretrained {pretrained}: {prefix} models include their weights",
                hint="omit --pretrained",
            )
    if model.startswith(FOLDER_PREFIX):
        return _from_folder(model, random_weights=random_weights)
    if model.startswith(HUB_PREFIX):
        return _from_hub(model, random_weights=random_weights)
    if is_transformers_folder(Path(model)):
        if pretrained:
            raise UsageError(
                f"--pretrained {pretrained}: the folder {model} includes its weights",
                hint="omit --pretrained",
            )
        return _from_transformers(Path(model), random_weights=random_weights)
    named = _from_name(model)
    return named if random_weights else _with_weights(named, pretrained)


def _from_name(model: str) -> ModelSource:
    name = model.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        is_folder = Path(model, CONFIG_NAME).is_file()
        hint = f"for a folder use --model {FOLDER_PREFIX}{model}" if is_folder else _similar(name)
        raise ModelError(f"{model}: not a model name of open_clip", hint=hint)
    return ModelSource(name, name, config, _shared_preprocess(name) or asdict(PreprocessCfg()))


def _similar(name: str) -> str:
    return did_you_mean(name, open_clip.list_models(), limit=5) or (
        "`python -c 'import open_clip; print(open_clip.list_models())'` lists all names"
    )


def _with_weights(named: ModelSource, pretrained: str | None) -> ModelSource:
    tags = open_clip.list_pretrained_tags_by_model(named.name)
    known = f"tags of {named.name}: {', '.join(tags)}" if tags else f"{named.name} has no tags"
    if not pretrained:
        raise ModelError(
            f"{named.name}: no weights given",
            hint=f"use --pretrained TAG or FILE ({known}), or --random-weights for a trial",
        )
    if open_clip.is_pretrained_cfg(named.name, pretrained):
        return _with_tag(named, pretrained)
    if Path(pretrained).is_file():
        return _with_file(named, Path(pretrained))
    questions = (did_you_mean(pretrained, tags), did_you_mean_path(pretrained))
    raise ModelError(
        f"--pretrained {pretrained}: neither a tag of {named.name} nor a file",
        hint=" ".join([*filter(None, questions), known]),
    )


def _with_tag(named: ModelSource, tag: str) -> ModelSource:
    settings = open_clip.get_pretrained_cfg(named.name, tag)
    hub.use_cache_if_unreachable()
    try:
        with quiet_libraries():
            weights = Path(open_clip.download_pretrained(settings))
    except Exception as error:  # network, permission and disk errors of several libraries
        remedy = "download them elsewhere and use --pretrained FILE"
        raise download_error(f"weights {tag} of {named.name}", error, remedy) from None
    notes: tuple[str, ...] = ()
    config = dict(named.config)
    if settings.get("quick_gelu") and not config.get("quick_gelu"):
        config["quick_gelu"] = True
        notes = (f"tag {tag} was trained with QuickGELU, so {named.name} is built with it",)
    return replace(
        named,
        config=config,
        preprocess=merge_preprocess_dict(PreprocessCfg(), settings),
        weights=weights,
        published=tag.lower().replace("-", "_"),
        notes=notes,
    )


def _with_file(named: ModelSource, weights: Path) -> ModelSource:
    """Use a local file, with the preprocessing that all tags of the model share."""
    notes: tuple[str, ...] = ()
    if _shared_preprocess(named.name) not in (None, asdict(PreprocessCfg())):
        fields = ("mean", "std", "interpolation", "resize_mode")
        values = ", ".join(f"{field} {named.preprocess[field]}" for field in fields)
        notes = (f"preprocessing is that of all tags of {named.name}: {values}",)
    return replace(named, weights=weights, notes=notes)


def _shared_preprocess(name: str) -> dict[str, Any] | None:
    """Return the preprocessing that all tags of a model have in common, if they do."""
    found = [
        merge_preprocess_dict(PreprocessCfg(), open_clip.get_pretrained_cfg(name, tag))
        for tag in open_clip.list_pretrained_tags_by_model(name)
    ]
    return dict(found[0]) if found and all(other == found[0] for other in found) else None


def _from_folder(model: str, *, random_weights: bool) -> ModelSource:
    folder = Path(model.removeprefix(FOLDER_PREFIX))
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: not a folder, expected an open_clip model folder",
            hint=did_you_mean_path(folder),
        )
    if is_transformers_folder(folder):
        return _from_transformers(folder, random_weights=random_weights)
    config, preprocess = _read_config(folder / CONFIG_NAME)
    return ModelSource(
        name=folder.resolve().name,
        identifier=model,
        config=config,
        preprocess=preprocess,
        weights=None if random_weights else _find_weights(folder),
        folder=folder,
    )


def _from_transformers(
    folder: Path, *, random_weights: bool, published: str | None = None
) -> ModelSource:
    config, preprocess, weights, notes = read_transformers_folder(
        folder, random_weights=random_weights
    )
    # open_clip needs a name here in a folder that is exported, to use the tokenizer in it.
    name = folder.resolve().name
    config["text_cfg"]["hf_tokenizer_name"] = (published or name).removeprefix(HUB_PREFIX)
    return ModelSource(
        name=published or name,
        identifier=published or f"{FOLDER_PREFIX}{folder}",
        config=config,
        preprocess=preprocess,
        weights=weights,
        published=None if random_weights else published,
        folder=folder,
        notes=notes,
        tokenizer_folder=folder,
    )


def _find_weights(folder: Path) -> Path:
    """Return the weights file that open_clip would load from a folder."""
    for name in _PREFERRED_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelError(
            f"{folder}: several weights files, none with a standard name: "
            f"{', '.join(path.name for path in found)}",
            hint=f"rename the one to use to {_PREFERRED_WEIGHTS[0]}",
        )
    raise ModelError(
        f"{folder}: no weights file, expected {_PREFERRED_WEIGHTS[0]}",
        hint="add the weights, or use --random-weights for a trial",
    )


def _from_hub(model: str, *, random_weights: bool) -> ModelSource:
    repository = model.removeprefix(HUB_PREFIX)
    hub.use_cache_if_unreachable()
    try:
        with quiet_libraries():
            config_path = Path(download_pretrained_from_hf(repository, filename=CONFIG_NAME))
            weights = None if random_weights else Path(download_pretrained_from_hf(repository))
    except Exception as error:  # network, permission and disk errors of several libraries
        if folder := _find_transformers_copy(repository, error, random_weights=random_weights):
            return _from_transformers(folder, random_weights=random_weights, published=model)
        raise download_error(model, error, USE_FOLDER) from None
    config, preprocess = _read_config(config_path)
    return ModelSource(
        name=model,
        identifier=model,
        config=config,
        preprocess=preprocess,
        weights=weights,
        published=None if random_weights else model,
    )


def _find_transformers_copy(
    repository: str, error: Exception, *, random_weights: bool
) -> Path | None:
    """Return a local copy of a repository without open_clip's config, if transformers has one."""
    causes = list(_causes(error))
    is_offline = any(isinstance(cause, LocalEntryNotFoundError) for cause in causes)
    if not is_offline and not any(isinstance(cause, EntryNotFoundError) for cause in causes):
        return None
    try:
        return download_transformers_folder(
            repository, random_weights=random_weights, is_offline=is_offline
        )
    except Exception as second:  # as above
        raise download_error(f"{HUB_PREFIX}{repository}", second, USE_FOLDER) from None


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model config and the preprocessing of an open_clip_config.json."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise ModelError(f"{path}: {reason}", hint=_FOLDER_HINT) from None
    config = document.get("model_cfg") if isinstance(document, dict) else None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: has no model_cfg", hint=_FOLDER_HINT)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ModelError(f"{path}: model_cfg has no {', '.join(missing)}", hint=_FOLDER_HINT)
    preprocess = document.get("preprocess_cfg") or {}
    parts = {**config, "preprocess_cfg": preprocess}
    for field in ("vision_cfg", "text_cfg", "preprocess_cfg"):
        if not isinstance(parts[field], dict):
            kind = type(parts[field]).__name__
            raise ModelError(f"{path}: {field} is a {kind}, expected a mapping", hint=_FOLDER_HINT)
    return config, dict(merge_preprocess_dict(PreprocessCfg(), preprocess))


def download_error(what: str, error: Exception, remedy: str) -> ModelError:
    """Return the error for a failed download, with a hint for its cause.

    open_clip and transformers wrap the exceptions of the hub's client, so the whole chain of
    causes is searched.

    Args:
        what: What was to be downloaded.
        error: The exception that the library raised.
        remedy: How to use a local file or folder instead.
    """
    hints = {
        HFValidationError: "write hf-hub:ORG/REPO",
        GatedRepoError: f"accept its terms on the hub and run `hf auth login`, or {remedy}",
        RepositoryNotFoundError: "check the name; for a private repository run `hf auth login`",
        LocalEntryNotFoundError: remedy,
        EntryNotFoundError: f"only repositories in open_clip's layout, with {CONFIG_NAME}, or in "
        "transformers', with config.json, are supported",
    }
    causes = list(_causes(error))
    known = [kind for kind in hints if any(isinstance(cause, kind) for cause in causes)]
    is_offline = hub_constants.HF_HUB_OFFLINE and HFValidationError not in known
    if is_offline and any(isinstance(cause, OSError) for cause in causes):
        if reason := hub.reason_to_use_cache():
            return ModelError(
                f"{what}: not in the local cache, and {reason}",
                hint=f"check the network and HF_ENDPOINT, or {remedy}",
            )
        return ModelError(
            f"{what}: not in the local cache, and HF_HUB_OFFLINE forbids downloads",
            hint=f"unset HF_HUB_OFFLINE, or {remedy}",
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    hint = hints[known[0]] if known else remedy
    return ModelError(f"{what}: the download failed: {reason}", hint=hint)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__

"""Find what `--model` and `--pretrained` name: a config, its preprocessing, a weights file.

open_clip falls back to random weights silently in several places; here each way either ends
at a weights file or in an error that says what to do.
It does not build models and does not load weights.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from wiseft_cli.errors import ModelError, UsageError
from wiseft_cli.model.hub_errors import not_had
from wiseft_cli.model.quiet import quiet_libraries
from wiseft_cli.model.weights_file import SUFFIXES

HUB_PREFIX = "hf-hub:"
FOLDER_PREFIX = "local-dir:"
CONFIG_NAME = "open_clip_config.json"
AS_FOLDER = f"as a folder with {CONFIG_NAME}: --model local-dir:PATH"
_FOLDER_HINT = "open_clip's push_to_hf_hub and `save_for_hf` write such folders"
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
    """Where a model comes from, before it is built.

    Attributes:
        name: As the card names it; never a path.
        identifier: What open_clip knows it by, for its tokenizer.
        config: open_clip's model config, with the QuickGELU of the weights' tag.
        preprocess: open_clip's preprocessing fields, but for the size.
        weights: The weights file, or None for random weights.
        published: Tag or `hf-hub:...` of the weights, or None where a local file or chance
            made them.
        folder: The folder of a `local-dir:` model.
        notes: What the person should know.
    """

    name: str
    identifier: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    weights: Path | None = None
    published: str | None = None
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The local files it is read from, which no output may replace."""
        inside = () if self.folder is None else tuple(self.folder.iterdir())
        return inside if self.weights is None else (*inside, self.weights)


def find_model(model: str, *, pretrained: str | None, random_weights: bool = False) -> ModelSource:
    """Resolve a model and its weights, downloading what open_clip knows where to find.

    Args:
        model: open_clip name, `hf-hub:org/repo`, or `local-dir:path`.
        pretrained: Tag of the model, or a local weights file; None for the last two kinds.
        random_weights: Look for no weights at all.
    Raises:
        UsageError: Options that contradict each other.
        ModelError: Unknown model or tag, no weights, no network, or a broken folder.
    """
    if random_weights and pretrained:
        raise UsageError("--random-weights and --pretrained exclude each other")
    for prefix in (HUB_PREFIX, FOLDER_PREFIX):
        if model.startswith(prefix) and pretrained:
            raise UsageError(
                f"--pretrained {pretrained}: a {prefix} model brings its own weights",
                hint="leave --pretrained out",
            )
    if model.startswith(FOLDER_PREFIX):
        return _from_folder(model, random_weights=random_weights)
    if model.startswith(HUB_PREFIX):
        return _from_hub(model, random_weights=random_weights)
    named = _named(model)
    return named if random_weights else _with_named_weights(named, pretrained)


def _named(model: str) -> ModelSource:
    name = model.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        is_folder = Path(model, CONFIG_NAME).is_file()
        hint = f"it is a folder: --model {FOLDER_PREFIX}{model}" if is_folder else _nearest(name)
        raise ModelError(f"{model}: open_clip has no model of this name", hint=hint)
    return ModelSource(name, name, config, _shared_preprocess(name) or asdict(PreprocessCfg()))


def _nearest(name: str) -> str:
    by_lower = {known.lower(): known for known in open_clip.list_models()}
    close = difflib.get_close_matches(name.lower(), by_lower, n=5, cutoff=0.5)
    if not close:
        return "`python -c 'import open_clip; print(open_clip.list_models())'` lists all names"
    return f"nearest names: {', '.join(by_lower[match] for match in close)}"


def _with_named_weights(named: ModelSource, pretrained: str | None) -> ModelSource:
    tags = open_clip.list_pretrained_tags_by_model(named.name)
    known = f"tags of {named.name}: {', '.join(tags)}" if tags else f"{named.name} has no tags"
    if not pretrained:
        raise ModelError(
            f"{named.name}: no weights were named",
            hint=f"give --pretrained TAG or FILE ({known}), or --random-weights for a trial",
        )
    if open_clip.is_pretrained_cfg(named.name, pretrained):
        return _with_tag(named, pretrained)
    if Path(pretrained).is_file():
        return _with_file(named, Path(pretrained))
    raise ModelError(
        f"--pretrained {pretrained}: is no tag of {named.name}, and there is no such file",
        hint=known,
    )


def _with_tag(named: ModelSource, tag: str) -> ModelSource:
    settings = open_clip.get_pretrained_cfg(named.name, tag)
    try:
        with quiet_libraries():
            weights = Path(open_clip.download_pretrained(settings))
    except Exception as error:  # whatever strikes the download: network, permission, disk
        raise not_had(
            f"the weights {tag} of {named.name}", error, "with --pretrained FILE"
        ) from None
    notes: tuple[str, ...] = ()
    config = dict(named.config)
    if settings.get("quick_gelu") and not config.get("quick_gelu"):
        config["quick_gelu"] = True
        notes = (f"tag {tag} was trained with QuickGELU, so {named.name} is built with it",)
    preprocess = merge_preprocess_dict(PreprocessCfg(), settings)
    return replace(
        named,
        config=config,
        preprocess=preprocess,
        weights=weights,
        published=tag.lower().replace("-", "_"),
        notes=notes,
    )


def _with_file(named: ModelSource, weights: Path) -> ModelSource:
    """Weights from a file carry no settings; what the model's own tags agree on is taken."""
    notes: tuple[str, ...] = ()
    if _shared_preprocess(named.name) not in (None, asdict(PreprocessCfg())):
        notes = (f"preprocessing is that of all tags of {named.name}: {_brief(named.preprocess)}",)
    return replace(named, weights=weights, notes=notes)


def _shared_preprocess(name: str) -> dict[str, Any] | None:
    """The preprocessing that all tags of a model agree on, or None."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    found = [
        merge_preprocess_dict(PreprocessCfg(), open_clip.get_pretrained_cfg(name, tag))
        for tag in tags
    ]
    return dict(found[0]) if found and all(other == found[0] for other in found) else None


def _brief(preprocess: Mapping[str, Any]) -> str:
    fields = ("mean", "std", "interpolation", "resize_mode")
    return ", ".join(f"{field} {preprocess[field]}" for field in fields)


def _from_folder(model: str, *, random_weights: bool) -> ModelSource:
    folder = Path(model.removeprefix(FOLDER_PREFIX))
    if not folder.is_dir():
        raise ModelError(f"{folder}: is no folder, expected an open_clip model folder")
    config_path = folder / CONFIG_NAME
    if not config_path.is_file():
        raise ModelError(
            f"{config_path}: is missing from the model folder",
            hint=_FOLDER_HINT,
        )
    config, preprocess = _read_config(config_path)
    return ModelSource(
        name=folder.resolve().name,
        identifier=model,
        config=config,
        preprocess=preprocess,
        weights=None if random_weights else _weights_in(folder),
        folder=folder,
    )


def _weights_in(folder: Path) -> Path:
    """The file open_clip would load, refusing where it would guess."""
    for name in _PREFERRED_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise ModelError(
            f"{folder}: holds several weights files, and none has a usual name: {names}",
            hint=f"rename the one to use to {_PREFERRED_WEIGHTS[0]}",
        )
    raise ModelError(
        f"{folder / _PREFERRED_WEIGHTS[0]}: is missing, and no other weights are in the folder",
        hint="put the weights there, or give --random-weights for a trial",
    )


def _from_hub(model: str, *, random_weights: bool) -> ModelSource:
    repository = model.removeprefix(HUB_PREFIX)
    try:
        with quiet_libraries():
            config_path = Path(download_pretrained_from_hf(repository, filename=CONFIG_NAME))
            weights = None if random_weights else Path(download_pretrained_from_hf(repository))
    except Exception as error:  # whatever strikes the download: network, permission, disk
        raise not_had(model, error, AS_FOLDER) from None
    config, preprocess = _read_config(config_path)
    return ModelSource(
        name=model,
        identifier=model,
        config=config,
        preprocess=preprocess,
        weights=weights,
        published=None if random_weights else model,
    )


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model config and the preprocessing of an open_clip_config.json."""

    def refusal(fault: str) -> ModelError:
        return ModelError(f"{path}: {fault}", hint=_FOLDER_HINT)

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refusal(f"cannot be read as JSON: {error}") from None
    config = document.get("model_cfg") if isinstance(document, dict) else None
    if not isinstance(config, dict):
        raise refusal("has no model_cfg")
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise refusal(f"its model_cfg has no {', '.join(missing)}")
    stated = document.get("preprocess_cfg") or {}
    towers = {"vision_cfg": config["vision_cfg"], "text_cfg": config["text_cfg"]}
    for field, value in {**towers, "preprocess_cfg": stated}.items():
        if not isinstance(value, dict):
            raise refusal(f"its {field} is no mapping, but {type(value).__name__}")
    return config, dict(merge_preprocess_dict(PreprocessCfg(), stated))

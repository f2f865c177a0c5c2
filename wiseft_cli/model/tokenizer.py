"""Load, check and save the tokenizer of a model.

open_clip's tokenizers cut long texts silently. Here prompts that exceed the model's context are
found before any prompt is encoded, and are cut only on request. A tokenizer that is saved into a
model folder is loaded again and compared, because open_clip loads it in another way from there.
`text_encoder.py` encodes tokens.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from wiseft_cli.convert.configs import merges_name
from wiseft_cli.errors import (
    MissingDependencyError,
    ModelError,
    TemplatesError,
    WiseftError,
    brief,
    counted,
)
from wiseft_cli.model.model_source import (
    FOLDER_PREFIX,
    HUB_PREFIX,
    USE_FOLDER,
    ModelSource,
    download_error,
)
from wiseft_cli.model.quiet import quiet_libraries
from wiseft_cli.model.transformers_source import TransformersTokenizer, check_end_of_text

_CHECK_CHUNK = 4096
_SPECIAL_TOKENS = 2
"""Number of special tokens in each prompt: start and end of text."""
_HF_PACKAGES = ("transformers", "sentencepiece")
"""Packages that the extra `hf` installs."""
_PROBES = ("a photo of a tree-house.", "", "Ünicode 語, 123!", "it's  SPACED", "long " * 200)
"""Texts on which two different tokenizers are likely to differ."""


@dataclass(frozen=True)
class PromptTokenizer:
    """A tokenizer with the context length of its model.

    Attributes:
        tokenize: open_clip's tokenizer; called with texts and a context length.
        context_length: Maximum length of a prompt in tokens, start and end of text included.
        pad_id: Token that fills up short prompts.
        end_ids: Tokens that may be at the last position of a prompt that fits.
        truncates: Whether longer prompts are cut, keeping the end-of-text token.
    """

    tokenize: Callable[..., Tensor]
    context_length: int
    pad_id: int
    end_ids: frozenset[int]
    truncates: bool = False

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return tokens, int64 of shape (len(prompts), context_length).

        Raises:
            TemplatesError: Prompts exceed the context, unless `truncates`.
        """
        if self.truncates:
            return self.tokenize(list(prompts), context_length=self.context_length)
        tokens = self._tokens_with_spare(prompts)
        self._raise_on_long([prompts[row] for row in self._long_rows(tokens)])
        return tokens[:, : self.context_length]

    def find_long(self, prompts: Iterable[str]) -> list[str]:
        """Find the prompts that exceed the context, in bounded memory.

        A prompt has at most two tokens more than UTF-8 bytes, so most prompts need not be
        tokenized. A prompt that text cleaning makes longer is found when it is encoded.

        Returns:
            The prompts that will be cut; empty unless `truncates`.
        Raises:
            TemplatesError: Prompts exceed the context, unless `truncates`.
        """
        limit = self.context_length - _SPECIAL_TOKENS
        candidates = (prompt for prompt in prompts if len(prompt.encode()) > limit)
        long: list[str] = []
        while chunk := list(islice(candidates, _CHECK_CHUNK)):
            long += [chunk[row] for row in self._long_rows(self._tokens_with_spare(chunk))]
        if not self.truncates:
            self._raise_on_long(long)
        return long

    def _tokens_with_spare(self, prompts: Sequence[str]) -> Tensor:
        """Tokenize with one position more than the context, which only long prompts reach."""
        return self.tokenize(list(prompts), context_length=self.context_length + 1)

    def _long_rows(self, tokens: Tensor) -> list[int]:
        """Return rows that reach the spare position, or have text at the last position.

        The latter finds prompts without a visible end: SigLIP pads with the end-of-text token,
        and CLIPA's tokenizer removes it.
        """
        last = tokens[:, self.context_length - 1]
        is_text = ~torch.isin(last, torch.tensor(sorted({self.pad_id, *self.end_ids})))
        rows: list[int] = (is_text | (tokens[:, -1] != self.pad_id)).nonzero().flatten().tolist()
        return rows

    def _raise_on_long(self, prompts: Sequence[str]) -> None:
        if prompts:
            raise TemplatesError(
                f"{counted(len(prompts), 'prompt')} longer than the {self.context_length} tokens "
                "of the model's context",
                faults=[brief(prompt) for prompt in prompts],
                hint="shorten the templates or the class names, or cut prompts with --truncate",
            )


def load_tokenizer(source: ModelSource, *, truncate: bool = False) -> PromptTokenizer:
    """Load the tokenizer of a model, and check that it belongs to the model.

    Args:
        source: The result of `find_model`.
        truncate: Whether prompts that exceed the context are cut.
    Raises:
        ModelError: The tokenizer cannot be loaded, or its vocabulary does not match the model.
        MissingDependencyError: The tokenizer needs `transformers` or `sentencepiece`.
    """
    text_config = source.config["text_cfg"]
    if text_config.get("tokenizer_mode"):
        raise ModelError(
            f"{source.name}: tokenizer mode {text_config['tokenizer_mode']!r} is not supported"
        )
    try:
        with quiet_libraries():
            tokenizer = _build_tokenizer(source)
    except WiseftError:
        raise
    except Exception as error:  # hub, file and format errors of two libraries
        raise _loading_error(source, error) from None
    _check_vocabulary(source.name, tokenizer, text_config)
    return prompt_tokenizer(tokenizer, text_config.get("context_length", 77), truncate=truncate)


def _build_tokenizer(source: ModelSource) -> Any:
    if source.tokenizer_folder is not None:
        tokenizer = TransformersTokenizer(source.tokenizer_folder)
        check_end_of_text(source.name, tokenizer.tokenizer, source.config["text_cfg"])
        return tokenizer
    merges = find_merges(source)
    options = {} if merges is None else {"bpe_path": str(merges)}
    return open_clip.get_tokenizer(source.identifier, **options)


def prompt_tokenizer(
    tokenizer: Any, context_length: int, *, truncate: bool = False
) -> PromptTokenizer:
    """Wrap any of open_clip's tokenizers so that it does not cut prompts silently."""
    inner = getattr(tokenizer, "tokenizer", None)
    pad_id, ends = 0, frozenset({getattr(tokenizer, "eot_token_id", 0)})
    if inner is not None:
        pad_id = int(inner.pad_token_id or 0)
        ends = frozenset({inner.eos_token_id, inner.sep_token_id} - {None})
    return PromptTokenizer(tokenizer, context_length, pad_id, ends, truncate)


def find_merges(source: ModelSource) -> Path | None:
    """Return the path of a model's own byte-pair file; None if it has none.

    open_clip interprets a relative `bpe_path` relative to the working directory.
    """
    bpe_path = merges_name(source.config["text_cfg"], f"config of {source.name}")
    if bpe_path is None:
        return None
    if source.folder is not None:
        path = source.folder.resolve() / bpe_path
        if not path.is_file():
            raise ModelError(f"{path}: not found, but bpe_path in the model's config names it")
        return path
    if source.identifier.startswith(HUB_PREFIX):
        repository = source.identifier.removeprefix(HUB_PREFIX)
        return Path(download_pretrained_from_hf(repository, filename=bpe_path))
    return Path(bpe_path)


def _loading_error(source: ModelSource, error: Exception) -> WiseftError:
    what = f"tokenizer of {source.name}"
    missing = [name for name in _HF_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and (isinstance(error, ImportError) or any(name in str(error) for name in missing)):
        return MissingDependencyError(
            f"{what}: needs {', '.join(missing)}, not installed",
            hint="pip install 'wiseft-cli[hf]'",
        )
    if source.folder is None:
        return download_error(what, error, USE_FOLDER)
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelError(
        f"{what}: cannot be loaded from {source.folder}: {reason}",
        hint="the folder must contain tokenizer.json and tokenizer_config.json",
    )


def _check_vocabulary(name: str, tokenizer: Any, text_config: Mapping[str, Any]) -> None:
    """Check the number of tokens, and that the vocabulary is there at all.

    A byte-pair vocabulary has as many tokens as the text tower; the text tower of a Hugging Face
    tokenizer may have unused embeddings.
    """
    expected = _vocabulary_size(text_config)
    inner = getattr(tokenizer, "tokenizer", None)
    found = tokenizer.vocab_size if inner is None else len(inner)
    if found > expected or (inner is None and found != expected):
        raise ModelError(
            f"the tokenizer of {name} has {found} tokens, but its text tower has {expected}",
            hint="for a local-dir model set text_cfg.tokenizer_kwargs.bpe_path to the tokenizer's"
            " merges, relative to the folder"
            if inner is None
            else "the tokenizer belongs to another model; use the files that came with the weights",
        )
    # transformers silently creates an empty tokenizer for a repository without tokenizer files.
    first, second = tokenizer(["cat", "dog"], context_length=text_config.get("context_length", 77))
    if torch.equal(first, second):
        raise ModelError(
            f"the tokenizer of {name} gives the same tokens for different texts",
            hint="its vocabulary is missing; download the tokenizer's files again",
        )


def _vocabulary_size(text_config: Mapping[str, Any]) -> int:
    """Return the number of tokens of the text tower."""
    # A text tower of the hub has its own config.
    tower_name = text_config.get("hf_model_name")
    if not tower_name:
        return int(text_config.get("vocab_size", 49408))
    from transformers import AutoConfig  # lazy: part of the extra hf, as is the tokenizer

    try:
        with quiet_libraries():
            return int(AutoConfig.from_pretrained(tower_name).vocab_size)
    except Exception as error:  # hub, file and format errors
        remedy = "download it elsewhere and set text_cfg.hf_model_name to its folder"
        raise download_error(f"config of the text tower {tower_name}", error, remedy) from None


def save_tokenizer(folder: Path, source: ModelSource, tokenizer: PromptTokenizer) -> dict[str, Any]:
    """Write the files of a model's tokenizer into a folder.

    CLIP's own vocabulary is part of open_clip and needs no file. A byte-pair file of the model is
    copied; a Hugging Face tokenizer is saved.

    Returns:
        The `text_cfg` with which open_clip finds the tokenizer in the folder.
    Raises:
        ModelError: The config of the text tower is in another folder.
    """
    text_config = dict(source.config["text_cfg"])
    tower_name = text_config.get("hf_model_name")
    if tower_name and Path(tower_name).is_dir():
        raise ModelError(
            f"{source.name}: the config of its text tower is in the folder {tower_name}, outside "
            "the model folder",
            hint="set text_cfg.hf_model_name to a text tower on the hub",
        )
    merges = find_merges(source)
    if merges is not None:
        shutil.copyfile(merges, folder / merges.name)
        options = {**text_config["tokenizer_kwargs"], "bpe_path": merges.name}
        text_config["tokenizer_kwargs"] = options
    if isinstance(tokenizer.tokenize, (HFTokenizer, TransformersTokenizer)):
        tokenizer.tokenize.save_pretrained(str(folder))
    return text_config


def check_saved_tokenizer(
    folder: Path, text_config: Mapping[str, Any], tokenizer: PromptTokenizer
) -> None:
    """Compare the tokenizer that open_clip loads from a folder with the model's.

    Raises:
        ModelError: The tokenizer cannot be loaded, or gives other tokens.
    """
    merges = (text_config.get("tokenizer_kwargs") or {}).get("bpe_path")
    options = {} if merges is None else {"bpe_path": str(folder / merges)}
    try:
        with quiet_libraries():
            found = open_clip.get_tokenizer(f"{FOLDER_PREFIX}{folder}", **options)
            length = tokenizer.context_length
            is_same = torch.equal(
                found(list(_PROBES), context_length=length),
                tokenizer.tokenize(list(_PROBES), context_length=length),
            )
    except Exception as error:  # file and format errors of two libraries
        raise ModelError(f"open_clip cannot load the saved tokenizer: {error}") from None
    if not is_same:
        raise ModelError(
            "the tokenizer that open_clip loads from the folder differs from the model's",
            hint="load the `visual.*` tensors into the named model instead",
        )

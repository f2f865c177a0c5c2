"""The tokenizer that belongs to a model, and prompts that must not be cut unasked.

open_clip's tokenizers cut a text that is too long without a word; here it is found out before
any prompt is encoded, and cutting is a choice.
It does not know how tokens are encoded; `text_encoder.py` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from torch import Tensor

from wiseft_cli.errors import (
    MissingDependencyError,
    ModelError,
    TemplatesError,
    WiseftError,
    brief,
    list_some,
)
from wiseft_cli.model.hub_errors import not_had
from wiseft_cli.model.model_source import AS_FOLDER, HUB_PREFIX, ModelSource
from wiseft_cli.model.quiet import quiet_libraries

_CHECK_CHUNK = 4096
_SPECIAL_TOKENS = 2
"""Start and end of text, which each prompt gets."""
_HUB_PACKAGES = ("transformers", "sentencepiece")
"""What the extra `hf` installs."""


@dataclass(frozen=True)
class PromptTokenizer:
    """A tokenizer with the model's context length.

    Attributes:
        tokenize: open_clip's tokenizer; called with texts and a context length.
        context_length: Longest prompt the text tower takes, in tokens, both ends included.
        pad_id: What stands behind a prompt that is shorter.
        end_ids: What may stand at the last place of a prompt that fits.
        truncates: Whether prompts that do not fit are cut, as the tokenizer itself cuts: the
            end of the text is lost, the end-of-text token stays.
    """

    tokenize: Callable[..., Tensor]
    context_length: int
    pad_id: int
    end_ids: frozenset[int]
    truncates: bool = False

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return tokens, int64 of shape (len(prompts), context_length).

        Raises:
            TemplatesError: Prompts that do not fit the context, each named, unless `truncates`.
        """
        if self.truncates:
            return self.tokenize(list(prompts), context_length=self.context_length)
        tokens = self._with_room(prompts)
        _refuse_long(self, [prompts[row] for row in self._long_rows(tokens)])
        return tokens[:, : self.context_length]

    def check(self, prompts: Iterable[str]) -> list[str]:
        """Find prompts that do not fit the context, all at once, in bounded memory.

        A prompt has at most as many tokens as UTF-8 bytes, and two more, so that most need no
        tokenizing here; one that cleaning makes longer is found when it is encoded.

        Returns:
            Those that will be cut; none unless `truncates`.
        Raises:
            TemplatesError: Prompts that do not fit, each named, unless `truncates`.
        """
        room = self.context_length - _SPECIAL_TOKENS
        doubtful = (prompt for prompt in prompts if len(prompt.encode()) > room)
        long: list[str] = []
        while chunk := list(islice(doubtful, _CHECK_CHUNK)):
            long += [chunk[row] for row in self._long_rows(self._with_room(chunk))]
        if not self.truncates:
            _refuse_long(self, long)
        return long

    def _with_room(self, prompts: Sequence[str]) -> Tensor:
        """Tokens with one place more than the context, which only long prompts reach."""
        return self.tokenize(list(prompts), context_length=self.context_length + 1)

    def _long_rows(self, tokens: Tensor) -> list[int]:
        """Rows that reach the place too many, or whose text goes on where it should end.

        The second finds prompts whose end is hidden: SigLIP's end of text is its padding, and
        CLIPA's tokenizer takes it away.
        """
        last = tokens[:, self.context_length - 1]
        goes_on = ~torch.isin(last, torch.tensor(sorted({self.pad_id, *self.end_ids})))
        rows: list[int] = (goes_on | (tokens[:, -1] != self.pad_id)).nonzero().flatten().tolist()
        return rows


def load_tokenizer(source: ModelSource) -> PromptTokenizer:
    """Return the tokenizer of a model, and make sure that it is the model's.

    Raises:
        ModelError: It cannot be had, or its vocabulary is not the model's.
        MissingDependencyError: It needs `transformers`.
    """
    text_config = source.config["text_cfg"]
    if text_config.get("tokenizer_mode"):
        raise ModelError(
            f"{source.name}: tokenizer mode {text_config['tokenizer_mode']!r} is not supported"
        )
    try:
        with quiet_libraries():
            merges = merges_of(source)
            options = {} if merges is None else {"bpe_path": str(merges)}
            tokenizer = open_clip.get_tokenizer(source.identifier, **options)
    except WiseftError:
        raise
    except Exception as error:  # hub, file and format errors of two libraries
        raise _no_tokenizer(source, error) from None
    _check_vocabulary(source.name, tokenizer, _vocabulary_size(text_config))
    _check_tells_texts_apart(source.name, tokenizer)
    return prompt_tokenizer(tokenizer, text_config.get("context_length", 77))


def prompt_tokenizer(tokenizer: Any, context_length: int) -> PromptTokenizer:
    """Return any of open_clip's tokenizers as one that refuses what does not fit."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return PromptTokenizer(tokenizer, context_length, 0, frozenset({tokenizer.eot_token_id}))
    ends = {inner.eos_token_id, inner.sep_token_id} - {None}
    return PromptTokenizer(tokenizer, context_length, int(inner.pad_token_id or 0), frozenset(ends))


def merges_of(source: ModelSource) -> Path | None:
    """The byte-pair file of a model's own, by a path that open_clip can open; None without one.

    open_clip takes a relative `bpe_path` as relative to the working directory.

    Raises:
        ModelError: The config names a file that the model's folder does not hold.
    """
    bpe_path = (source.config["text_cfg"].get("tokenizer_kwargs") or {}).get("bpe_path")
    if bpe_path is None:
        return None
    if source.folder is not None:
        path = source.folder.resolve() / str(bpe_path)
        if not path.is_file():
            raise ModelError(f"{path}: is missing; the model's config names it as its bpe_path")
        return path
    if source.identifier.startswith(HUB_PREFIX):
        repository = source.identifier.removeprefix(HUB_PREFIX)
        return Path(download_pretrained_from_hf(repository, filename=bpe_path))
    return Path(bpe_path)


def _no_tokenizer(source: ModelSource, error: Exception) -> WiseftError:
    missing = [name for name in _HUB_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and (isinstance(error, ImportError) or any(name in str(error) for name in missing)):
        return MissingDependencyError(
            f"the tokenizer of {source.name} needs a package that is not installed: "
            f"{', '.join(missing)}",
            hint="pip install 'wiseft-cli[hf]'",
        )
    what = f"the tokenizer of {source.name}"
    if source.folder is None:
        return not_had(what, error, AS_FOLDER)
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelError(
        f"{what} cannot be loaded from {source.folder}: {reason}",
        hint="the folder needs the tokenizer's own files: tokenizer.json and tokenizer_config.json",
    )


def _vocabulary_size(text_config: Mapping[str, Any]) -> int:
    """How many tokens the text tower knows; for a tower of the hub its own config says it."""
    tower_name = text_config.get("hf_model_name")
    if not tower_name:
        return int(text_config.get("vocab_size", 49408))
    from transformers import AutoConfig  # lazy: of the extra hf, which the tokenizer needed too

    try:
        with quiet_libraries():
            return int(AutoConfig.from_pretrained(tower_name).vocab_size)
    except Exception as error:  # hub, file and format errors
        raise not_had(
            f"the config of the text tower {tower_name}",
            error,
            "as a folder that text_cfg.hf_model_name names",
        ) from None


def _check_vocabulary(name: str, tokenizer: Any, expected: int) -> None:
    """A byte-pair vocabulary is exactly the model's; a hub one may leave embeddings unused."""
    inner = getattr(tokenizer, "tokenizer", None)
    found = tokenizer.vocab_size if inner is None else len(inner)
    fits = found == expected if inner is None else found <= expected
    if fits:
        return
    raise ModelError(
        f"the tokenizer of {name} has {found} tokens, but its text tower has {expected}",
        hint="for a local-dir model name the tokenizer's merges in text_cfg.tokenizer_kwargs."
        "bpe_path, relative to the folder"
        if inner is None
        else "the tokenizer is another model's; take the files that came with the weights",
    )


def _check_tells_texts_apart(name: str, tokenizer: Any) -> None:
    """transformers makes an empty tokenizer, without a word, of a repository without its files."""
    first, second = tokenizer(["cat", "dog"])
    if torch.equal(first, second):
        raise ModelError(
            f"the tokenizer of {name} gives the same tokens for different texts",
            hint="its vocabulary is missing where it was loaded from; fetch the files again",
        )


def _refuse_long(tokenizer: PromptTokenizer, prompts: Sequence[str]) -> None:
    if prompts:
        count = "1 prompt has" if len(prompts) == 1 else f"{len(prompts)} prompts have"
        lines = "".join(f"\n  {brief(prompt)}" for prompt in list_some(prompts))
        raise TemplatesError(
            f"{count} more than the {tokenizer.context_length} tokens that the model reads{lines}",
            hint="shorten the templates or the class names, or cut the prompts with --truncate",
        )

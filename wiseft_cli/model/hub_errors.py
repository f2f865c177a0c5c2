"""Why a file could not be had from the hub, and what a person can do about it.

open_clip and transformers wrap what the hub's client raised; the cause is looked for in the
whole chain. It does not fetch anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from wiseft_cli.errors import ModelError


def not_had(what: str, error: Exception, local_form: str) -> ModelError:
    """Return the error to raise where a download failed.

    Args:
        what: What was to be had: weights, a model, a tokenizer.
        error: What the library raised.
        local_form: How the same is given from a local file or folder, after "and give them".
    """
    reason = " ".join(str(error).split()) or type(error).__name__
    local = f"fetch them where there is a network, and give them {local_form}"
    kinds = tuple(type(link) for link in _chain(error))

    def is_caused_by(kind: type[Exception]) -> bool:
        return any(issubclass(found, kind) for found in kinds)

    if is_caused_by(HFValidationError):
        return ModelError(f"{what}: is no name of a repository", hint="write hf-hub:ORG/REPO")
    if hub_constants.HF_HUB_OFFLINE and is_caused_by(OSError):
        return ModelError(
            f"{what}: not on this machine, and HF_HUB_OFFLINE forbids downloads",
            hint=f"unset HF_HUB_OFFLINE, or {local}",
        )
    gated = is_caused_by(GatedRepoError)
    # The hub says so with a 401 that speaks of gated repositories too.
    if is_caused_by(RepositoryNotFoundError) and not gated:
        return ModelError(
            f"{what}: the hub has no such repository, or shows it to its members alone",
            hint="check the name; for a private repository run `hf auth login`",
        )
    if gated or re.search(r"\bgated\b|\b40[13]\b", reason, re.IGNORECASE):
        return ModelError(
            f"{what}: no permission to download: {reason}",
            hint=f"accept its terms on the hub and run `hf auth login`, or {local}",
        )
    if is_caused_by(LocalEntryNotFoundError):
        return ModelError(f"{what}: not on this machine, and the hub cannot be reached", hint=local)
    if is_caused_by(EntryNotFoundError):
        return ModelError(
            f"{what}: its repository lacks a file that open_clip needs: {reason}",
            hint="only repositories in open_clip's own layout are read, with open_clip_config.json",
        )
    return ModelError(f"{what}: the download failed: {reason}", hint=local)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from or after."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__

"""Files of the Hugging Face hub: `hf://[datasets/]ORG/REPO[@REV][/PATH]`.

One request lists a repository with the sizes of its files, within a few seconds or not at all;
downloads then go through huggingface_hub. Without the hub, files in its cache are used.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from wiseft_cli.checkpoint.atomic import write_bytes_atomically
from wiseft_cli.errors import OutputError, RemoteError, UsageError, brief

_TIMEOUT_SECONDS = 4
_switched: list[str] = []
_FORM = re.compile(
    r"hf://(?P<kind>datasets/|models/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<rev>[^/]+))?/?(?P<path>.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class HubPath:
    """A repository of the hub, and a file or folder in it; the path is empty for all of it."""

    url: str
    kind: str
    repository: str
    revision: str | None
    path: str


@dataclass(frozen=True)
class HubFiles:
    """The files of a repository.

    Attributes:
        sizes: Size in bytes of each file by its path.
        revision: The commit.
        is_local: Whether they are those of the cache, because the hub cannot be reached.
    """

    sizes: Mapping[str, int]
    revision: str
    is_local: bool = False

    def root(self, found: Path, path: str) -> Path:
        """Return the folder of the repository, given the local path of something in it."""
        return found.parents[path.count("/")] if path else found


def parse_hub_path(url: str, *, kind: str) -> HubPath:
    """Parse an `hf://` URL.

    Args:
        kind: `model` or `dataset`: what the command reads.
    Raises:
        UsageError: The URL is malformed, or names the other kind.
    """
    form = f"hf://{'datasets/' if kind == 'dataset' else ''}ORG/REPO[@REV]/PATH"
    match = _FORM.fullmatch(url)
    if match is None or ".." in match["path"].split("/"):
        raise UsageError(f"{url}: expected {form}")
    given = "dataset" if match["kind"] == "datasets/" else "model"
    if given != kind:
        raise UsageError(f"{url}: names a {given} repository, expected {form}")
    revision = unquote(match["rev"]) if match["rev"] else None
    return HubPath(url, kind, match["repo"], revision, match["path"].strip("/"))


@functools.cache
def why_unreachable() -> str | None:
    """Return why the hub does not answer within seconds, or None if it does."""
    # lazy: takes a quarter of a second
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # of the HTTP library, whose name changed between versions
        return f"{constants.ENDPOINT} cannot be reached: {_brief(error)}"
    return None


def use_cache_if_unreachable() -> None:
    """Switch the hub's client to its cache for the rest of the process if the hub is silent.

    The client itself, and the libraries that use it, wait for minutes: they try every file
    several times.
    """
    # lazy: as above
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and why_unreachable() is not None:
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
        _switched.append(str(why_unreachable()))


def reason_to_use_cache() -> str | None:
    """Return why `use_cache_if_unreachable` switched to the cache, or None if it did not."""
    return _switched[0] if _switched else None


def list_files(path: HubPath) -> HubFiles:
    """List the files of a repository with their sizes, in one request.

    Raises:
        RemoteError: The repository or revision does not exist or is not accessible; or the hub
            cannot be reached and the cache has no copy.
    """
    # lazy: takes a quarter of a second
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().repo_info(
            path.repository,
            repo_type=path.kind,
            revision=path.revision,
            timeout=_TIMEOUT_SECONDS,
            files_metadata=True,
        )
    except GatedRepoError:
        fault, hint = "is gated", "accept its terms on the hub, and run `hf auth login`"
    except RevisionNotFoundError:
        fault, hint = f"has no revision {path.revision}", "name a branch, tag or commit after @"
    except RepositoryNotFoundError:
        fault = "does not exist, or is private"
        hint = "check the name; for a private repository run `hf auth login`"
    except HFValidationError as error:
        raise UsageError(f"{path.url}: {error}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status is not None and status >= 500:
            return _list_cached(path, error)
        fault, hint = f"is refused: {_brief(error)}", "check the name and the token"
    except Exception as error:  # of the HTTP library, whose name changed between versions
        return _list_cached(path, error)
    else:
        siblings = getattr(info, "siblings", None) or ()
        found = {at.rfilename: at.size or 0 for at in siblings}
        sizes = {name: size for name, size in found.items() if _is_plain(name)}
        return HubFiles(sizes, str(info.sha))
    raise RemoteError(f"{path.url}: the repository {path.repository} {fault}", hint=hint)


def _is_plain(name: str) -> bool:
    """Return whether a name that the server sent stays inside the repository's folder."""
    return not name.startswith("/") and ".." not in name.split("/") and "\\" not in name


def _list_cached(path: HubPath, error: Exception) -> HubFiles:
    """Return the files of a repository that are in the cache."""
    from huggingface_hub import constants, snapshot_download

    try:
        root = Path(
            snapshot_download(
                path.repository,
                repo_type=path.kind,
                revision=path.revision,
                local_files_only=True,
                allow_patterns=[f"{path.path}*"] if path.path else None,
            )
        )
    except Exception:
        root = Path(os.devnull)
    names = [at.relative_to(root).as_posix() for at in root.rglob("*") if at.is_file()]
    if any(name == path.path or name.startswith(path.path) for name in names):
        return HubFiles(dict.fromkeys(names, 0), root.name, is_local=True)
    if constants.HF_HUB_OFFLINE:
        raise RemoteError(
            f"{path.url}: not in the local cache, and HF_HUB_OFFLINE forbids downloads",
            hint="unset HF_HUB_OFFLINE, or name a local copy",
        )
    raise RemoteError(
        f"{path.url}: {constants.ENDPOINT} cannot be reached, and the file is not in the local "
        f"cache: {_brief(error)}",
        hint="check the network and HF_ENDPOINT, or name a local copy",
    )


def _brief(error: Exception) -> str:
    return brief(" ".join(str(error).split()) or type(error).__name__, limit=200)


def download(
    path: HubPath,
    files: HubFiles,
    names: Sequence[str],
    on_start: Callable[[str, int, int | None], object],
    on_progress: Callable[[int], object],
) -> Path:
    """Download files of a repository into the hub's cache; those that are there are not fetched.

    Args:
        names: Paths in the repository.
        on_start: Called with the URL, the number of files to fetch and their size in bytes.
        on_progress: Called with the number of bytes just fetched.
    Returns:
        The local path of `path`.
    Raises:
        RemoteError: A download failed.
        OutputError: The disk is full.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    local = {
        # A path if it is there.
        name: try_to_load_from_cache(
            path.repository, name, repo_type=path.kind, revision=files.revision
        )
        for name in names
    }
    missing = [name for name, at in local.items() if not isinstance(at, str)]
    if missing:
        on_start(path.url, len(missing), sum(files.sizes[name] for name in missing))
    for name in missing:
        try:
            local[name] = hf_hub_download(
                path.repository,
                name,
                repo_type=path.kind,
                # The commit that was listed: the branch may have moved since.
                revision=files.revision,
                etag_timeout=_TIMEOUT_SECONDS,
                tqdm_class=_progress_class(on_progress),
            )
        except Exception as error:  # network, permission and disk errors of several libraries
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(
                    f"{path.url}: {name}: the hub's cache cannot be written: {error.strerror}",
                    hint=f"make space in {constants.HF_HUB_CACHE}, or name another with HF_HOME",
                ) from None
            raise RemoteError(
                f"{path.url}: {name}: the download failed: {_brief(error)}",
                hint="run the command again; it continues where it stopped",
            ) from None
    first = names[0]
    root = Path(str(local[first])).parents[first.count("/")]
    if not files.is_local:
        _note_commit(root, path.revision or constants.DEFAULT_REVISION, files.revision)
    return root / path.path if path.path else root


def _note_commit(root: Path, revision: str, commit: str) -> None:
    """Note in the hub's cache which commit a branch is at, so that it is found offline."""
    ref = root.parent.parent / "refs" / revision
    with contextlib.suppress(OSError, OutputError):  # a cache that is only read
        if revision != commit and not (ref.is_file() and ref.read_text() == commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(ref, commit.encode(), force=True)


def _progress_class(on_progress: Callable[[int], object]) -> type:
    """Return a progress bar that only reports; the hub's client creates one per file."""
    tqdm: Any = import_module("huggingface_hub.utils").tqdm

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            on_progress(int(kwargs.get("initial") or 0))

        def update(self, n: float | None = 1) -> bool | None:
            on_progress(int(n or 0))
            return None

    return Reporter

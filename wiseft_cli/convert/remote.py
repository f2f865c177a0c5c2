"""Fetch remote checkpoints and image sets into a local cache, before a command reads them.

`hf://` goes through huggingface_hub, with its cache, resumed downloads and token; `s3://`,
`gs://` and `https://` go through fsspec into a cache of their own. The size is known before
anything is fetched. This module does not print: callbacks get sizes and progress.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from wiseft_cli.checkpoint.shards import INDEX_NAME, TORCH_NAMES, find_checkpoint_files
from wiseft_cli.compute.disk import require_space
from wiseft_cli.convert.hub import HubFiles, HubPath, download, list_files, parse_hub_path
from wiseft_cli.errors import (
    MissingDependencyError,
    OutputError,
    RemoteError,
    UsageError,
    did_you_mean,
)

REMOTE = re.compile(r"^((?:[^=/?:]+=)?)((?:hf|s3|gs|gcs|https?):/.+)$", re.DOTALL)
"""A remote input, perhaps with `NAME=` before it; `Path` has made one slash of two."""

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_SMALL = (".json", ".txt", ".model")
_VERSION_FACTS = ("ETag", "etag", "Content-MD5", "mtime", "LastModified", "Last-Modified")
_CHUNK_BYTES = 4 << 20
_TIMEOUT_SECONDS = 8


@dataclass(frozen=True)
class Callbacks:
    """What a download reports.

    Attributes:
        on_start: Called with the URL, the number of files and their size in bytes (None if it
            is unknown), unless everything is in the cache.
        on_progress: Called with the number of bytes just fetched.
    """

    on_start: Callable[[str, int, int | None], object] = lambda url, n_files, size: None
    on_progress: Callable[[int], object] = lambda n: None


_SILENT = Callbacks()


def is_remote(text: str) -> bool:
    """Return whether a text names a remote input."""
    return REMOTE.match(text) is not None


def fetch(text: str, callbacks: Callbacks = _SILENT) -> Path:
    """Fetch a remote checkpoint, and return the local path of its file or folder.

    An index of shards is fetched with its shards; of a folder, the checkpoint and its small
    files are.

    Raises:
        UsageError: The URL is malformed.
        RemoteError: The hub or server cannot be reached, refuses, or lacks the file.
        MissingDependencyError: A package for this scheme is not installed.
        OutputError: The cache cannot be written.
    """
    url = normalize_url(text)
    if url.startswith("hf://"):
        return _fetch_from_hub(parse_hub_path(url, kind="model"), callbacks)
    path = _fetch_file(url, callbacks)
    if INDEX_NAME.search(path.name):
        parts = urlsplit(url, allow_fragments=False)
        folder = parts.path.rpartition("/")[0]
        for shard in find_checkpoint_files(path).files:
            at = f"{folder}/{shard.relative_to(path.parent).as_posix()}"
            _fetch_file(parts._replace(path=at).geturl(), callbacks, shard)
    return path


def fetch_image_set(text: str, split: str | None, callbacks: Callbacks = _SILENT) -> Path:
    """Fetch an image set of the hub, `hf://datasets/ORG/REPO[@REV][/PATH]`.

    Args:
        split: Split to fetch of a set that has a folder per split, `test` by default.
    Raises:
        UsageError: The URL is malformed, or not of the hub.
        RemoteError: See `fetch`.
    """
    url = normalize_url(text)
    if not url.startswith("hf://"):
        raise UsageError(
            f"{url}: image sets are fetched only from the hub, hf://datasets/ORG/REPO/PATH",
            hint="download the files, and name these",
        )
    path = parse_hub_path(url, kind="dataset")
    files = list_files(path)
    inside = [name for name in files.sizes if _is_inside(name, path.path)]
    folders = {name.removeprefix(_prefix(path.path)).split("/")[0] for name in inside}
    wanted = split or "test"
    if f"{_prefix(path.path)}{wanted}/nshards.txt" in files.sizes:
        others = {at for at in folders if f"{_prefix(path.path)}{at}/nshards.txt" in files.sizes}
        skipped = tuple(f"{_prefix(path.path)}{at}/" for at in others - {wanted})
        inside = [name for name in inside if not name.startswith(skipped or "\0")]
    if not inside:
        raise _missing(path, files)
    return download(path, files, inside, callbacks.on_start, callbacks.on_progress)


def normalize_url(text: str) -> str:
    """Return a URL with the two slashes that `Path` makes one of."""
    scheme, _, rest = text.partition(":")
    return f"{scheme}://{rest.lstrip('/')}"


def _prefix(folder: str) -> str:
    return f"{folder}/" if folder else ""


def _is_inside(name: str, path: str) -> bool:
    return name == path or name.startswith(_prefix(path))


def _fetch_from_hub(path: HubPath, callbacks: Callbacks) -> Path:
    files = list_files(path)
    is_file = path.path in files.sizes
    wanted = [path.path] if is_file else _checkpoint_in_folder(path, files)
    found = download(path, files, wanted, callbacks.on_start, callbacks.on_progress)
    index = next((name for name in wanted if INDEX_NAME.search(name)), None)
    if index is not None:
        root = files.root(found, path.path)
        shards = find_checkpoint_files(root / index).files
        names = [shard.relative_to(root).as_posix() for shard in shards]
        if missing := [name for name in names if name not in files.sizes]:
            raise RemoteError(
                f"{path.url}: shards that {index} lists are missing from the repository",
                faults=missing,
                hint="the repository is incomplete; ask its owner, or name another revision",
            )
        download(path, files, names, callbacks.on_start, callbacks.on_progress)
    return found


def _checkpoint_in_folder(path: HubPath, files: HubFiles) -> list[str]:
    """Return the files of a folder that make up its checkpoint, shards of an index excepted."""
    inside = [
        name
        for name in files.sizes
        if name.startswith(_prefix(path.path)) and "/" not in name.removeprefix(_prefix(path.path))
    ]
    weights = [name for name in inside if name.endswith(".safetensors")]
    whole = [name for name in weights if not re.search(r"-\d+-of-\d+", name)]
    indices = [name for name in inside if INDEX_NAME.search(name)]
    saved = [name for name in inside if PurePosixPath(name).name in TORCH_NAMES]
    candidates = (whole + indices) or weights or saved
    if not candidates:
        raise _missing(path, files)
    if len(whole + indices) > 1:
        raise RemoteError(
            f"{path.url}: contains {len(candidates)} checkpoints, expected one",
            faults=candidates,
            hint=f"name one of them: {path.url.rstrip('/')}/{PurePosixPath(candidates[0]).name}",
        )
    small = [name for name in inside if name.endswith(_SMALL) and name not in candidates]
    return [*candidates, *small]


def _missing(path: HubPath, files: HubFiles) -> RemoteError:
    known = sorted(files.sizes)
    what = "no such file, and no checkpoint in such a folder," if path.path else "no checkpoint"
    return RemoteError(
        f"{path.url}: {what} in the repository at revision {files.revision[:12]}",
        faults=[] if did_you_mean(path.path, known) else known,
        hint=did_you_mean(path.path, known) or "name one of its files",
    )


def cache_folder() -> Path:
    """Return the folder for files that are not of the hub: wiseft/remote in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "wiseft" / "remote"


def _fetch_file(url: str, callbacks: Callbacks, target: Path | None = None) -> Path:
    """Fetch one file through fsspec; a download that was interrupted is continued.

    Args:
        target: Where to put it, by default in a folder of the cache that is its own.
    """
    scheme = url.partition(":")[0]
    with _named_errors(url):
        system, remote = _file_system(scheme, url)
        facts = system.info(remote)
    if target is None:
        name = PurePosixPath(urlsplit(url, allow_fragments=False).path).name or "file"
        # Of the whole URL: its query too tells one file from another.
        target = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:24] / name
    size = facts.get("size")
    tag = next((facts[key] for key in _VERSION_FACTS if facts.get(key)), None)
    # A file that changed on the server is fetched again, as is one that may have changed.
    version = hashlib.sha256(f"{url}\n{size}\n{tag}".encode()).hexdigest()[:24] if tag else None
    if _is_cached(target, version):
        return target
    with _locked(target) as is_alone:
        if not _is_cached(target, version):  # another process may have fetched it meanwhile
            callbacks.on_start(url, 1, size)
            _download(url, system, remote, target, size, version, is_alone, callbacks)
    return target


def _state(target: Path) -> Path:
    return target.with_name(f".{target.name}.version")


def _is_cached(target: Path, version: str | None) -> bool:
    state = _state(target)
    return target.is_file() and state.is_file() and state.read_text() == version


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[bool]:
    """Wait until no other process fetches a file; give False if the disk has no locks."""
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f".{target.name}.lock").open("ab")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            is_alone = True
        except OSError:
            is_alone = False
        yield is_alone


def _download(
    url: str,
    system: Any,
    remote: str,
    target: Path,
    size: int | None,
    version: str | None,
    is_alone: bool,
    callbacks: Callbacks,
) -> None:
    continues = version is not None and is_alone
    # What cannot be continued is private: another process may be writing the same file.
    part = target.with_name(f".{target.name}.{version if continues else os.urandom(12).hex()}.part")
    try:
        with _named_errors(url):
            _copy(system, remote, part, size, callbacks)
        with _disk_errors(target):
            _state(target).unlink(missing_ok=True)
            os.replace(part, target)
            if version is not None:
                _state(target).write_text(version)
    finally:
        if not continues:
            part.unlink(missing_ok=True)


def _copy(system: Any, remote: str, part: Path, size: int | None, callbacks: Callbacks) -> None:
    with _disk_errors(part):
        file = part.open("ab", buffering=0)
    with file:
        done = file.tell()
        if size is None or done > size:
            done = 0
        if size is not None:
            with _disk_errors(part):
                require_space([(part, size - done)])
        callbacks.on_progress(done)
        try:
            _append(system, remote, file, done, callbacks)
        except ValueError:  # of fsspec: the server sends whole files only
            if not done:
                raise
            callbacks.on_progress(-file.tell())
            _append(system, remote, file, 0, callbacks)
        if size is not None and file.tell() != size:
            raise OSError(f"ended at byte {file.tell()} of {size}; run the command again")


def _append(system: Any, remote: str, file: FileIO, done: int, callbacks: Callbacks) -> None:
    """Write a remote file from a byte on to the end of a local one that is cut there."""
    with _disk_errors(Path(file.name)):
        file.truncate(done)
        file.seek(done)
    # Read as one stream from the start, because some servers send whole files only.
    options = {"block_size": 0} if not done and "http" in system.protocol else {}
    with system.open(remote, "rb", **options) as source:
        if done:
            source.seek(done)
        while data := source.read(_CHUNK_BYTES):
            view = memoryview(data)
            with _disk_errors(Path(file.name)):
                while view:
                    view = view[file.write(view) :]
            callbacks.on_progress(len(data))


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of the local disk into one of the cache, not of the network."""
    try:
        yield
    except (OSError, OutputError) as error:
        text = error.message if isinstance(error, OutputError) else None
        raise OutputError(
            text or f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}",
            hint=f"make space in {path.parent}, or name another cache with XDG_CACHE_HOME",
        ) from None


def _file_system(scheme: str, url: str) -> tuple[Any, str]:
    try:
        # lazy: an optional package
        from fsspec.core import url_to_fs

        system, remote = url_to_fs(url, **_options(scheme))
    except ImportError as error:
        package = _PACKAGES[scheme]
        raise MissingDependencyError(
            f"{url}: {error.name or package} is not installed, which reads {scheme}://",
            hint="pip install 'wiseft-cli[remote]'",
        ) from None
    return system, str(remote)


def _options(scheme: str) -> dict[str, Any]:
    """Return options of a file system that let it fail soon where nothing answers."""
    if scheme in ("http", "https"):
        # lazy: an optional package
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=_TIMEOUT_SECONDS, sock_read=60)
        return {"client_kwargs": {"timeout": timeout}}
    if scheme == "s3":
        retries = {"max_attempts": 1}
        return {"config_kwargs": {"connect_timeout": _TIMEOUT_SECONDS, "retries": retries}}
    return {}


@contextlib.contextmanager
def _named_errors(url: str) -> Iterator[None]:
    """Turn the errors of fsspec's file systems, which have no common class, into one of the URL."""
    try:
        yield
    except (RemoteError, MissingDependencyError, UsageError, OutputError):
        raise
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is None or getattr(cause, "status", None) is not None:
            raise RemoteError(f"{url}: no such file", hint="check the address") from None
        raise _unreachable(url, cause) from None
    except PermissionError as error:
        raise _refused(url, error) from None
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if re.search(r"(?i)credential|forbidden|unauthori|access ?denied|\b40[13]\b", text):
            raise _refused(url, error) from None
        raise _unreachable(url, error) from None


def _unreachable(url: str, error: BaseException) -> RemoteError:
    text = " ".join(str(error).split()) or type(error).__name__
    return RemoteError(
        f"{url}: cannot be fetched: {text}", hint="check the address and the network"
    )


def _refused(url: str, error: Exception) -> RemoteError:
    text = " ".join(str(error).split()) or type(error).__name__
    remedies = {
        "s3": "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "gs": "run `gcloud auth application-default login`",
    }
    return RemoteError(
        f"{url}: access was refused: {text}",
        hint=remedies.get(url.partition(":")[0], "download the file yourself, and name the copy"),
    )

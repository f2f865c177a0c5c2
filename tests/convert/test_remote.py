"""Remote inputs, against a server on localhost that speaks the hub's HTTP interface."""

from __future__ import annotations

import errno
import inspect
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.convert.hub_server import SHA, Hub, serve_hub
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli import remote as cli_remote
from wiseft_cli.cli.app import COMMANDS
from wiseft_cli.convert.hub import HubFiles, download, parse_hub_path
from wiseft_cli.convert.remote import Callbacks, cache_folder, fetch
from wiseft_cli.errors import MissingDependencyError, OutputError, RemoteError, UsageError


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as server:
        yield server


def checkpoint(folder: Path, **tensors: float) -> bytes:
    path = folder / "made.safetensors"
    write_checkpoint(
        path,
        {name: np.full(1000, at, np.float32) for name, at in tensors.items()},
        None,
        force=True,
    )
    return path.read_bytes()


def wiseft(
    hub_url: str, folder: Path, *words: str, program: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own: the hub's client reads its variables once."""
    environment = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(folder / "hf"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "NO_PROXY": "*",
        **variables,
    }
    return subprocess.run(
        [sys.executable, *(["-c", program] if program else ["-m", "wiseft_cli", *words])],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )


def test_a_checkpoint_of_the_hub_is_fetched_once_and_read_offline(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["models/org/clip"] = {"sub/model.safetensors": checkpoint(tmp_path, a=1)}
    url = "hf://org/clip/sub/model.safetensors"
    first = wiseft(hub.url, tmp_path, "inspect", url, "--json")
    assert first.returncode == 0, first.stderr
    assert f"fetching {url} (0.0 MiB)" in first.stderr
    assert json.loads(first.stdout)
    n_downloads = len(hub.downloads)
    # Not from the branch, which may have moved since its files were listed.
    assert {at.split("/resolve/")[1].split("/")[0] for at in hub.downloads} == {SHA}
    second = wiseft(hub.url, tmp_path, "inspect", f"hf://org/clip@{SHA}/sub/model.safetensors")
    assert (second.returncode, second.stderr) == (0, "")
    assert len(hub.downloads) == n_downloads
    offline = wiseft(hub.url, tmp_path, "inspect", url, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stderr) == (0, "")
    missing = wiseft(hub.url, tmp_path, "inspect", "hf://org/other/x", HF_HUB_OFFLINE="1")
    assert missing.returncode == 1
    assert "HF_HUB_OFFLINE forbids downloads" in missing.stderr


def test_both_sides_of_a_merge_may_be_remote(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["models/org/clip"] = {"zero.safetensors": checkpoint(tmp_path, a=1)}
    hub.repositories["plain"] = {"tuned.safetensors": checkpoint(tmp_path, a=3)}
    done = wiseft(
        hub.url, tmp_path, "merge", "hf://org/clip/zero.safetensors",
        f"{hub.url}/plain/tuned.safetensors", "-o", "out.safetensors",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.safetensors\n"
    assert np.frombuffer((tmp_path / "out.safetensors").read_bytes()[-4:], np.float32)[0] == 2


def test_a_folder_is_fetched_with_the_shards_of_its_index(hub: Hub, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    files = {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1-of-2.safetensors": checkpoint(tmp_path, a=1),
        "model-2-of-2.safetensors": checkpoint(tmp_path, b=1),
        "config.json": b"{}",
        "onnx/model.onnx": b"not needed",
    }
    hub.repositories["models/org/clip"] = files
    done = wiseft(hub.url, tmp_path, "diff", "hf://org/clip", "hf://org/clip")
    assert done.returncode == 0, done.stderr
    fetched = {at.rsplit("/", 1)[1] for at in hub.downloads}
    assert fetched == files.keys() - {"onnx/model.onnx"}
    del files["model-2-of-2.safetensors"]
    broken = wiseft(hub.url, tmp_path, "diff", "hf://org/clip@v1", "x", HF_HOME=str(tmp_path / "n"))
    assert broken.returncode == 1
    assert "missing from the repository:\n  model-2-of-2.safetensors" in broken.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://org/none/x.safetensors", "does not exist, or is private"),
        ("hf://org/gated/x.safetensors", "is gated"),
        ("hf://org/clip@v9/x.safetensors", "has no revision v9"),
        ("hf://org/clip/zer.safetensors", "did you mean zero.safetensors"),
        ("hf://org/clip", "contains 2 checkpoints"),
        ("{hub}/plain/none.safetensors", "no such file"),
    ],
)
def test_what_is_missing_is_named(hub: Hub, tmp_path: Path, url: str, message: str) -> None:
    data = checkpoint(tmp_path, a=1)
    hub.repositories["models/org/clip"] = {"zero.safetensors": data, "one.safetensors": data}
    hub.gated.add("models/org/gated")
    done = wiseft(hub.url, tmp_path, "inspect", url.replace("{hub}", hub.url))
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "silent"])
def test_a_hub_that_cannot_be_reached_answers_in_ten_seconds(tmp_path: Path, answers: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        if not answers:
            server.close()
        start = time.monotonic()
        done = wiseft(url, tmp_path, "inspect", "hf://org/clip/x.safetensors")
        assert time.monotonic() - start < 10
    assert done.returncode == 1
    assert f"{url} cannot be reached, and the file is not in the local cache" in done.stderr


def test_one_split_of_an_image_set_is_fetched(hub: Hub, tmp_path: Path) -> None:
    files = {"classnames.txt": b"a", "test/nshards.txt": b"1", "test/0.tar": b"x"}
    files |= {"train/nshards.txt": b"1", "train/0.tar": b"y", "README.md": b"z"}
    hub.repositories["datasets/org/wds"] = files
    program = "from wiseft_cli.cli.remote import _local_image_set as f; print(f({!r}))"
    for split, option in (("test", ""), ("train", "?split=train")):
        hub.requests.clear()
        spec = f"mine=hf://datasets/org/wds{option}"
        done = wiseft(
            hub.url, tmp_path, program=program.format(spec), HF_HOME=f"{tmp_path}/{split}"
        )
        assert done.returncode == 0, done.stderr
        name, _, path = done.stdout.strip().partition("=")
        root = Path(path.removesuffix(option))
        assert name == "mine"
        assert path.endswith(option)
        found = {at.relative_to(root).as_posix() for at in root.rglob("*") if at.is_file()}
        other = "train" if split == "test" else "test"
        assert found == {at for at in files if not at.startswith(f"{other}/")}


def test_an_interrupted_download_continues(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = bytes(range(256)) * 60_000  # several chunks
    hub.repositories["plain"] = {"big.safetensors": data}
    url = f"{hub.url}/plain/big.safetensors"
    hub.cut = 100_000
    sizes: list[int | None] = []
    with pytest.raises(RemoteError, match="cannot be fetched"):
        fetch(url, Callbacks(lambda *facts: sizes.append(facts[2])))
    seen: list[int] = []
    path = fetch(url, Callbacks(on_progress=seen.append))
    assert path.read_bytes() == data
    assert (sizes, sum(seen)) == ([len(data)], len(data))
    n_requests = len(hub.downloads)
    assert fetch(url) == path
    assert len(hub.downloads) == n_requests


def test_a_file_that_changed_on_the_server_is_fetched_again(
    hub: Hub, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for data in (b"one", b"two"):
        hub.repositories["plain"] = {"a.safetensors": data}
        assert fetch(f"{hub.url}/plain/a.safetensors").read_bytes() == data


@pytest.fixture
def plain(hub: Hub, tmp_path: Path, monkeypatch: Any) -> dict[str, bytes]:
    """Return the files of the server that are not of a repository."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return hub.repositories.setdefault("plain", {})


BIG = bytes(range(256)) * 60_000


def test_addresses_that_differ_in_the_query_are_different_files(
    hub: Hub, plain: dict[str, bytes]
) -> None:
    plain |= {"get?id=a": b"one", "get?id=b": b"two", "get?id=c/d": b"three"}
    paths = [fetch(f"{hub.url}/plain/{name}") for name in plain]
    assert [path.read_bytes() for path in paths] == list(plain.values())


def test_shards_are_asked_for_with_the_query_of_their_index(
    hub: Hub, plain: dict[str, bytes]
) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    plain["m/model.safetensors.index.json?key=x/y"] = json.dumps(index).encode()
    for name in index["weight_map"].values():
        plain[f"m/{name}?key=x/y"] = name.encode()
    path = fetch(f"{hub.url}/plain/m/model.safetensors.index.json?key=x/y")
    for name in index["weight_map"].values():
        assert (path.parent / name).read_bytes() == name.encode()


def test_a_file_whose_version_is_unknown_is_fetched_every_time(
    hub: Hub, plain: dict[str, bytes]
) -> None:
    hub.sends_tags = False
    for data in (b"one", b"two"):
        plain["a.safetensors"] = data
        path = fetch(f"{hub.url}/plain/a.safetensors")
        assert path.read_bytes() == data
    hub.cut = 100_000
    plain["a.safetensors"] = BIG
    with pytest.raises(RemoteError):
        fetch(f"{hub.url}/plain/a.safetensors")
    assert not list(cache_folder().rglob("*.part"))


def test_downloads_at_the_same_time_share_one_copy(hub: Hub, plain: dict[str, bytes]) -> None:
    plain["big.safetensors"] = BIG
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch, [f"{hub.url}/plain/big.safetensors"] * 4))
    assert [path.read_bytes() == BIG for path in paths] == [True]


@pytest.mark.parametrize("sends_tags", [False, True])
def test_without_locks_downloads_are_private(
    hub: Hub, plain: dict[str, bytes], monkeypatch: Any, sends_tags: bool
) -> None:
    def flock(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("wiseft_cli.convert.remote.fcntl.flock", flock)
    hub.sends_tags = sends_tags
    plain["big.safetensors"] = BIG
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch, [f"{hub.url}/plain/big.safetensors"] * 4))
    assert [path.read_bytes() == BIG for path in paths] == [True]


def test_a_server_without_ranges_restarts_a_download(hub: Hub, plain: dict[str, bytes]) -> None:
    hub.sends_ranges = False
    plain["big.safetensors"] = BIG
    hub.cut = 9_000_000
    url = f"{hub.url}/plain/big.safetensors"
    with pytest.raises(RemoteError, match="cannot be fetched"):
        fetch(url)
    assert [at.stat().st_size > 0 for at in cache_folder().rglob("*.part")] == [True]
    seen: list[int] = []
    assert fetch(url, Callbacks(on_progress=seen.append)).read_bytes() == BIG
    assert sum(seen) == len(BIG)


def test_a_part_that_is_too_long_is_fetched_anew(hub: Hub, plain: dict[str, bytes]) -> None:
    plain["big.safetensors"] = BIG
    hub.cut = 9_000_000
    with pytest.raises(RemoteError):
        fetch(f"{hub.url}/plain/big.safetensors")
    (part,) = cache_folder().rglob("*.part")
    part.write_bytes(b"x" * (len(BIG) + 1))
    assert fetch(f"{hub.url}/plain/big.safetensors").read_bytes() == BIG


def test_a_full_disk_is_not_taken_for_a_network_fault(
    hub: Hub, plain: dict[str, bytes], monkeypatch: Any
) -> None:
    plain["big.safetensors"] = BIG
    url = f"{hub.url}/plain/big.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("wiseft_cli.compute.disk.free_bytes", lambda _: 7)
        with pytest.raises(OutputError, match="7 are free") as caught:
            fetch(url)
    assert "XDG_CACHE_HOME" in str(caught.value.hint)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            fetch(url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fetch(url).read_bytes() == BIG


def test_a_cache_that_cannot_be_created_is_named(hub: Hub, plain: dict[str, bytes]) -> None:
    plain["a.safetensors"] = b"x"
    cache_folder().parent.parent.mkdir(parents=True)
    cache_folder().parent.write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(f"{hub.url}/plain/a.safetensors")


def test_a_full_disk_of_the_hubs_cache_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    path = parse_hub_path("hf://org/clip/a.safetensors", kind="model")
    with pytest.raises(OutputError, match="No space left on device"):
        download(path, HubFiles({path.path: 1}, SHA), [path.path], print, print)


class Bucket(MemoryFileSystem):
    """Stands for object storage."""

    protocol = ("s3", "gs")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return f"/{path.partition('://')[2] or path.lstrip('/')}"


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_object_storage_goes_through_fsspec(tmp_path: Path, monkeypatch: Any, scheme: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(import_module("fsspec.registry")._registry, scheme, Bucket)
    Bucket().pipe("/bucket/a.safetensors", b"data")
    assert fetch(f"{scheme}:/bucket/a.safetensors").read_bytes() == b"data"


def test_a_missing_package_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingDependencyError, match="reads s3://") as caught:
        fetch("s3://bucket/a.safetensors")
    assert caught.value.hint == "pip install 'wiseft-cli[remote]'"


@pytest.mark.parametrize("url", ["hf://x", "hf://datasets/a/b/c", "hf://a/b/../c"])
def test_a_malformed_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected hf://ORG/REPO\[@REV\]/PATH"):
        fetch(url)


def test_revisions_may_have_slashes() -> None:
    path = parse_hub_path("hf://org/repo@refs%2Fpr%2F1/a/b.safetensors", kind="model")
    assert (path.repository, path.revision, path.path) == (
        "org/repo",
        "refs/pr/1",
        "a/b.safetensors",
    )


def test_an_output_is_never_remote(tmp_path: Path, capsys: Any) -> None:
    from wiseft_cli.cli.app import main

    assert main(["convert", "hf://a/b/c.pt", "-o", "s3://bucket/x.safetensors"]) == 2
    assert "--output s3://bucket/x.safetensors: expected a local path" in capsys.readouterr().err


def test_every_remote_parameter_exists_in_a_command() -> None:
    known: set[str] = set()
    for place in COMMANDS.values():
        module, name = place.split(":")
        function = getattr(import_module(f"wiseft_cli.cli.{module}"), name)
        known |= inspect.signature(function).parameters.keys()
    assert known >= cli_remote.CHECKPOINTS
    assert known & cli_remote.IMAGE_SETS


def test_names_of_the_server_stay_inside_the_repository(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["models/org/evil"] = {"../../x.safetensors": b"x", "/etc/x.safetensors": b"x"}
    done = wiseft(hub.url, tmp_path, "inspect", "hf://org/evil")
    assert done.returncode == 1
    assert "no checkpoint in the repository" in done.stderr
    assert hub.downloads == []

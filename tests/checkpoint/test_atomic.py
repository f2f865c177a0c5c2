"""Atomic files: rejected outputs, failures, killed writers, modes and links."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from wiseft_cli.checkpoint.atomic import AtomicFile, check_output, write_bytes_atomically
from wiseft_cli.compute.disk import require_space
from wiseft_cli.errors import OutputError

WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from wiseft_cli.checkpoint.atomic import AtomicFile
with AtomicFile(Path(sys.argv[1]), force=True) as file:
    file.write_at(0, b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


@contextmanager
def unfinished_writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that writes half of `path` and is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_an_existing_output_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(OutputError) as caught:
        write_bytes_atomically(path, b"new")
    assert caught.value.message == f"{path}: exists already"
    assert caught.value.hint == "name another output with -o, or overwrite with --force"
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["x.pt", "x.PTH", "pytorch_model.bin", "x.ckpt", "a.b.pkl"])
def test_a_name_of_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="weights are written as safetensors") as caught:
        check_output(tmp_path / name, force=True)
    assert str(caught.value.hint).endswith(f"{Path(name).stem}.safetensors")


@pytest.mark.parametrize("name", ["x", "x.safetensors", "x.pt.safetensors", "out0.5", ".pt"])
def test_other_names_are_accepted(tmp_path: Path, name: str) -> None:
    check_output(tmp_path / name, force=False)


def test_force_replaces_an_existing_output(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    write_bytes_atomically(path, b"new", force=True)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_an_output_that_is_an_input_is_refused_even_with_force(tmp_path: Path, link: str) -> None:
    source = tmp_path / "in"
    source.write_text("input")
    output = source
    if link != "same":
        output = tmp_path / "out"
        (output.symlink_to if link == "symbolic" else output.hardlink_to)(source)
    with pytest.raises(OutputError, match="is also an input") as caught:
        check_output(output, force=True, inputs=[source])
    assert str(source) in caught.value.message


def test_an_output_in_a_missing_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        check_output(tmp_path / "no" / "out", force=False)
    assert caught.value.hint == f"mkdir -p {tmp_path / 'no'}"


def test_a_folder_and_a_device_are_refused_as_outputs(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, force=True)
    with pytest.raises(OutputError, match="not a regular file"):
        check_output(Path("/dev/null"), force=True)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        write_bytes_atomically(tmp_path / "out", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), AtomicFile(tmp_path / "out") as file:
        file.write_at(0, b"half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_bytes_atomically(tmp_path / "link", b"new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_an_output_created_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with (
        pytest.raises(OutputError, match="created by another process meanwhile"),
        AtomicFile(path) as file,
    ):
        file.write_at(0, b"ours")
        path.write_text("theirs")
        file.commit()
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]


def test_a_killed_writer_leaves_the_old_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with unfinished_writer(path):
        pass
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    write_bytes_atomically(path, b"new", force=True)
    assert os.listdir(tmp_path) == ["out"]


def test_the_temporary_file_of_a_running_writer_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with unfinished_writer(path):
        write_bytes_atomically(path, b"mine")
        assert len(os.listdir(tmp_path)) == 2


def test_a_file_size_limit_raises_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(OutputError) as caught:
            write_bytes_atomically(path, b"x" * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.message == f"{path}: cannot be written: File too large; nothing was kept"
    assert os.listdir(tmp_path) == []


def test_readers_never_see_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"a" * 100_000)
    with unfinished_writer(path):
        assert path.read_bytes() == b"a" * 100_000


def test_a_lack_of_space_raises_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(f_bavail=3, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    with pytest.raises(OutputError) as caught, AtomicFile(tmp_path / "out") as file:
        file.reserve(20_000)
    assert caught.value.message == f"{tmp_path / 'out'}: needs 20,000 bytes, and 12,288 are free"
    assert os.listdir(tmp_path) == []


def test_space_for_outputs_on_one_disk_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(f_bavail=3, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    require_space([(tmp_path / "a", 6_000), (tmp_path / "b", 6_000)])
    with pytest.raises(OutputError) as caught:
        require_space([(tmp_path / name, 6_000) for name in "abc"])
    assert caught.value.message == (
        f"{tmp_path / 'a'} and 2 more outputs need 18,000 bytes, and 12,288 are free"
    )
    assert caught.value.hint == f"free space in {tmp_path}, or name another place with -o"


@pytest.mark.parametrize("name", ["file/out", "file/deeper/out"])
def test_a_file_where_a_folder_is_expected_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        check_output(tmp_path / name, force=False)
    assert caught.value.message == (
        f"{tmp_path / name}: {tmp_path / 'file'} is a file, expected a folder"
    )
    assert caught.value.hint is None


def test_a_disk_that_fills_up_while_writing_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError) as caught, AtomicFile(tmp_path / "out") as file:
        file.write_at(0, b"first")
        monkeypatch.setattr(os, "pwrite", full)
        file.write_at(5, b"second")
    assert caught.value.message == (
        f"{tmp_path / 'out'}: cannot be written: No space left on device; nothing was kept"
    )
    assert os.listdir(tmp_path) == []


SMALL_DISK = """
mount -t tmpfs -o size=1m none "$1" || exit 77
cd "$1"
"$2" -c '
from pathlib import Path
from types import SimpleNamespace
from wiseft_cli.checkpoint.atomic import AtomicFile
from wiseft_cli.errors import OutputError
try:
    with AtomicFile(Path("out")) as file:
        for i in range(32):
            file.write_at(i << 16, bytes(1 << 16))
except OutputError as error:
    print(error.message)
'
ls -A
"""


def test_a_full_tmpfs_raises_and_stays_empty(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", tmp_path, sys.executable],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("may not mount a small disk")
    assert done.stdout == "out: cannot be written: No space left on device; nothing was kept\n"


def test_a_file_created_without_a_with_block_is_removed_at_exit(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from wiseft_cli.checkpoint.atomic import AtomicFile\n"
        "file = AtomicFile(Path(sys.argv[1]))\n"
        "file.write_at(0, b'half')\n"
        "sys.exit(143)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 143
    assert os.listdir(tmp_path) == []


def test_a_long_name_of_multibyte_characters_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("重" * 80)
    write_bytes_atomically(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_temporary_file_removed_before_it_was_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    taken: list[str] = []

    def lock_late(descriptor: int, operation: int) -> None:
        if not taken:
            (name,) = os.listdir(tmp_path)
            taken.append(name)
            os.unlink(tmp_path / name)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    write_bytes_atomically(tmp_path / "out", b"whole")
    assert taken
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"whole"

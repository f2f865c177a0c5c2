"""Atomic folders: rejected outputs, failures, killed writers and foreign files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wiseft_cli.checkpoint import atomic_folder
from wiseft_cli.checkpoint.atomic import write_bytes_atomically
from wiseft_cli.checkpoint.atomic_folder import AtomicFolder, check_output_folder
from wiseft_cli.errors import OutputError

MANIFEST = "made.json"
WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from wiseft_cli.checkpoint.atomic_folder import AtomicFolder
with AtomicFolder(Path(sys.argv[1]), manifest="made.json", force=True) as folder:
    (folder.temporary / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def write(path: Path, text: str, *, name: str = "a", force: bool = False) -> None:
    with AtomicFolder(path, manifest=MANIFEST, force=force) as folder:
        (folder.temporary / name).write_text(text)
        folder.commit({"made by": "test"})


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def unfinished_writer(path: Path) -> Iterator[None]:
    """Start another process that writes half of `path` and is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


def test_the_folder_appears_with_its_manifest(tmp_path: Path) -> None:
    write(tmp_path / "out", "x")
    assert os.listdir(tmp_path) == ["out"]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text()) == {
        "made by": "test",
        "files": ["a"],
    }


def test_the_folder_does_not_exist_before_the_commit(tmp_path: Path) -> None:
    with AtomicFolder(tmp_path / "out", manifest=MANIFEST) as folder:
        (folder.temporary / "a").write_text("x")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "out", "new")
    assert caught.value.message == f"{tmp_path / 'out'}: exists already"
    assert caught.value.hint == "name another folder with -o, or replace it with --force"
    assert (tmp_path / "out" / "a").read_text() == "old"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_force_replaces_all_files_of_a_folder_written_this_way(
    tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic_folder, "_exchange", lambda _first, _second: False)
    write(tmp_path / "out", "old", name="before")
    write(tmp_path / "out", "new", force=True)
    assert sorted(os.listdir(tmp_path / "out")) == ["a", MANIFEST]
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "a").read_text() == "new"


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"files": 3}', '{"files": [3]}'])
def test_a_folder_with_foreign_files_is_refused_even_with_force(
    tmp_path: Path, manifest: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "work").mkdir()
    (out / "work" / "thesis.tex").write_text("precious")
    if manifest is not None:
        (out / MANIFEST).write_text(manifest)
    with pytest.raises(OutputError) as caught:
        write(out, "new", force=True)
    assert caught.value.message == (
        f"{out}: contains files that this command did not write:\n  work/thesis.tex"
    )
    assert caught.value.hint == "name another folder with -o, or move these files elsewhere"
    assert (out / "work" / "thesis.tex").read_text() == "precious"


def test_a_file_added_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with (
        pytest.raises(OutputError, match="contains files that this command did not write"),
        AtomicFolder(out, manifest=MANIFEST, force=True) as folder,
    ):
        (out / "note").write_text("precious")
        folder.commit({})
    assert (out / "note").read_text() == "precious"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError, match="exists already"),
        AtomicFolder(out, manifest=MANIFEST) as folder,
    ):
        write(out, "theirs")
        folder.commit({})
    assert (out / "a").read_text() == "theirs"


def test_a_folder_that_holds_an_input_is_refused_even_with_force(tmp_path: Path) -> None:
    write(tmp_path / "out", "input")
    (tmp_path / "link").symlink_to("out")
    source = tmp_path / "out" / "a"
    for path in (tmp_path / "out", tmp_path / "link", tmp_path):
        with pytest.raises(OutputError) as caught:
            check_output_folder(path, manifest=MANIFEST, force=True, inputs=[source])
        assert caught.value.message == f"{path}: contains an input ({source})"


def test_a_file_is_refused_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "out", "new", force=True)
    assert caught.value.message == (f"{tmp_path / 'out'}: is a file, expected the name of a folder")


def test_a_folder_in_a_missing_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "no" / "out", "x")
    assert caught.value.hint == f"mkdir -p {tmp_path / 'no'}"


def test_a_link_is_written_through(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "out", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / MANIFEST).stat().st_mode & 0o777 == 0o640


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), AtomicFolder(tmp_path / "out", manifest=MANIFEST) as folder:
        (folder.temporary / "a").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_the_old_folder_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with unfinished_writer(out):
        assert (out / "a").read_text() == "old"
    assert sorted(os.listdir(out)) == ["a", MANIFEST]
    assert len(os.listdir(tmp_path)) == 2
    write(out, "new", force=True)
    assert os.listdir(tmp_path) == ["out"]


def test_the_temporary_folder_of_a_running_writer_is_kept(tmp_path: Path) -> None:
    with unfinished_writer(tmp_path / "out"):
        write(tmp_path / "out", "mine")
        assert len(os.listdir(tmp_path)) == 2


def test_a_folder_created_without_a_with_block_is_removed_at_exit(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from wiseft_cli.checkpoint.atomic_folder import AtomicFolder\n"
        "AtomicFolder(Path(sys.argv[1]), manifest='m')\n"
        "sys.exit(143)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "out"], env=environment(), check=False
    )
    assert done.returncode == 143
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("writes", ["plainly", "atomically"])
def test_a_file_size_limit_names_the_output_and_leaves_nothing(tmp_path: Path, writes: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with (
            pytest.raises(OutputError) as caught,
            AtomicFolder(tmp_path / "out", manifest=MANIFEST) as folder,
        ):
            if writes == "plainly":
                (folder.temporary / "a").write_bytes(b"x" * 4096)
            write_bytes_atomically(folder.temporary / "a", b"x" * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    name = tmp_path / "out" if writes == "plainly" else tmp_path / "out" / "a"
    assert caught.value.message == f"{name}: cannot be written: File too large; nothing was kept"
    assert os.listdir(tmp_path) == []


SMALL_DISK = """
mount -t tmpfs -o size=1m none "$1" || exit 77
cd "$1"
"$2" -c '
from pathlib import Path
from wiseft_cli.checkpoint.atomic_folder import AtomicFolder
from wiseft_cli.errors import OutputError
def write(path, size, **options):
    with AtomicFolder(Path(path), manifest="m", **options) as folder:
        (folder.temporary / "a").write_bytes(bytes(size))
        folder.commit({})
write("out", 1 << 19)
try:
    write("out", 1 << 20, force=True)
except OutputError as error:
    print(error.message)
'
ls -A . out
"""


def test_a_full_tmpfs_keeps_the_old_folder(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", tmp_path, sys.executable],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("may not mount a small disk")
    assert done.stdout == (
        "out: cannot be written: No space left on device; nothing was kept\n.:\nout\n\nout:\na\nm\n"
    )

"""`wiseft merge` run as a process: outputs, both streams and exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunWiseft
from tests.merging.pairs import write_foreign, write_pair
from wiseft_cli.checkpoint.reader import read_card


def test_the_default_is_alpha_0_5_in_the_current_folder(
    tmp_path: Path, run_wiseft: RunWiseft
) -> None:
    write_pair(tmp_path)
    done = run_wiseft("merge", "--alpha", "0.5", "zs.safetensors", "ft.safetensors")
    assert (done.returncode, done.stdout) == (0, "ft-wiseft-0.5.safetensors\n")
    assert done.stderr == (
        "1 tensor of integers or booleans, copied from FINETUNED: visual.bn.num_batches_tracked\n"
    )
    implied = run_wiseft("merge", "zs.safetensors", "ft.safetensors", "-o", "implied")
    assert implied.stdout == "implied\n"
    written = (tmp_path / "ft-wiseft-0.5.safetensors").read_bytes()
    assert (tmp_path / "implied").read_bytes() == written


def test_several_alphas_print_one_path_per_line(
    tmp_path: Path, run_wiseft_process: RunWiseft
) -> None:
    write_pair(tmp_path)
    done = run_wiseft_process(
        "merge", "--alpha", "0:1:0.5", "--alpha", "0.3", "zs.safetensors", "ft.safetensors"
    )
    assert done.stdout.splitlines() == [
        f"ft-wiseft-{alpha}.safetensors" for alpha in ("0", "0.5", "1", "0.3")
    ]
    named = run_wiseft_process(
        "merge", "--alpha", "0,1", "zs.safetensors", "ft.safetensors", "-o", "x{alpha}{y}"
    )
    assert named.stdout.splitlines() == ["x0{y}", "x1{y}"]


def test_several_alphas_need_alpha_in_the_name(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    write_pair(tmp_path)
    done = run_wiseft("merge", "--alpha", "0,1", "zs.safetensors", "ft.safetensors", "-o", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: -o x: one name for 2 values of --alpha\n"
        "hint: put {alpha} into the name, or omit -o\n"
    )


def test_json_describes_every_output(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    write_pair(tmp_path)
    one = run_wiseft("merge", "zs.safetensors", "ft.safetensors", "-o", "x", "--json")
    assert json.loads(one.stdout) == {
        "path": "x",
        "digest": read_card(tmp_path / "x").digest,
        "role": "merged",
        "alpha": "0.5",
        "warnings": [],
        "notes": [],
        "not_finite": {},
        "not_finite_inputs": {"zeroshot": {}, "finetuned": {}},
        "taken_from_finetuned": ["visual.bn.num_batches_tracked"],
        "copied_from_one_side": [],
    }
    two = run_wiseft("merge", "--alpha", "0,1", "zs.safetensors", "ft.safetensors", "--json")
    assert [result["alpha"] for result in json.loads(two.stdout)] == ["0", "1"]


def test_new_non_finite_values_are_reported_on_both_streams(
    tmp_path: Path, run_wiseft: RunWiseft
) -> None:
    write_foreign(tmp_path / "a", {"w": np.array([3e38], np.float32)})
    write_foreign(tmp_path / "b", {"w": np.array([-3e38], np.float32)})
    done = run_wiseft("merge", "--alpha=-1", "--extrapolate", "a", "b", "-o", "x", "--json")
    text = "alpha -1: merged values are not finite although those of both inputs are: w (1 value)"
    assert done.stderr == f"warning: {text}\n"
    assert json.loads(done.stdout)["warnings"] == [text]
    assert json.loads(done.stdout)["not_finite"] == {"w": 1}


def test_an_existing_output_is_refused_and_untouched(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    write_pair(tmp_path)
    (tmp_path / "x").write_text("precious")
    done = run_wiseft("merge", "zs.safetensors", "ft.safetensors", "-o", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: x: exists already\nhint: name another output with -o, or overwrite with --force\n"
    )
    assert (tmp_path / "x").read_text() == "precious"
    assert run_wiseft("merge", "zs.safetensors", "ft.safetensors", "-ox", "--force").returncode == 0


def test_one_existing_output_of_several_prevents_all(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    write_pair(tmp_path)
    (tmp_path / "x1").write_text("precious")
    done = run_wiseft(
        "merge", "--alpha", "0,1", "zs.safetensors", "ft.safetensors", "-o", "x{alpha}"
    )
    assert done.returncode == 1
    assert not (tmp_path / "x0").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "begin"),
    [
        (("zs.safetensors", "none"), 1, "error: none: no such file\n"),
        (("--alpha", "2", "zs.safetensors", "ft.safetensors"), 2, "error: alpha 2 is outside [0"),
        (("ft.safetensors", "zs.safetensors"), 1, "error: ft.safetensors: is a finetuned check"),
        (("zs.safetensors", "ft.safetensors", "-o", "no/x"), 1, "error: no/x: its folder no"),
    ],
)
def test_a_wrong_argument_prints_one_error_without_traceback(
    tmp_path: Path,
    run_wiseft: RunWiseft,
    arguments: tuple[str, ...],
    code: int,
    begin: str,
) -> None:
    write_pair(tmp_path)
    done = run_wiseft("merge", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(begin.replace("folder no", f"folder {tmp_path / 'no'}"))
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ft.safetensors", "zs.safetensors"]


IMPORT_NAMES = {"open_clip_torch": "open_clip", "pyyaml": "yaml", "pillow": "PIL"}
ROOT = Path(__file__).parents[2]


def packages_the_slim_installation_lacks() -> list[str]:
    """Return the import names of the dependencies that docs/ci.md does not install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", dependency)[0] for dependency in project["dependencies"]}
    (line,) = re.findall(r"^```sh\npip install (.*)$", (ROOT / "docs" / "ci.md").read_text(), re.M)
    installed = set(line.split()) | {"rich"}  # which typer depends on
    assert installed < names
    return [*sorted(IMPORT_NAMES.get(name, name) for name in names - installed), "timm"]


def test_the_documented_slim_installation_suffices(tmp_path: Path) -> None:
    write_pair(tmp_path)
    program = (
        "import sys\n"
        f"for name in {packages_the_slim_installation_lacks()!r}: sys.modules[name] = None\n"
        "from wiseft_cli.cli.app import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (
        ("--help",),
        ("finetune", "--help"),
        ("merge", "zs.safetensors", "ft.safetensors", "-o", "x"),
        ("inspect", "x", "--tensors", "--verify"),
        ("diff", "zs.safetensors", "x", "--values"),
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr


def test_two_processes_write_the_same_bytes(tmp_path: Path, run_wiseft_process: RunWiseft) -> None:
    write_pair(tmp_path)
    for out, threads, seed in (("x", "1", "1"), ("y", "4", "2")):
        run_wiseft_process(
            "merge", "zs.safetensors", "ft.safetensors", "-o", out, "--threads", threads,
            env={"PYTHONHASHSEED": seed},
        )  # fmt: skip
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def write_large_pair(folder: Path) -> None:
    """Write a pair whose merge lasts long enough to be interrupted."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        arrays = {f"t{i}": random.random(2_000_000, np.float32) for i in range(4)}
        write_foreign(folder / name, arrays)


LASTING = ("--alpha", "0.5,0:1:0.05", "-o", "out{alpha}", "--threads", "1")
"""Twenty-one outputs, so that no machine finishes before the signal arrives."""


def start_merge(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a merge into an existing file and return once it has begun to write."""
    (folder / "out0.5").write_text("precious")
    process = subprocess.Popen(
        [sys.executable, "-m", "wiseft_cli", "merge", "a", "b", "--force", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not temporary_files(folder):
        time.sleep(0.001)
    return process


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.glob(".out*"))


@pytest.mark.parametrize(
    ("sent", "code", "expected"),
    [(signal.SIGTERM, 143, "terminated\n"), (signal.SIGINT, 130, "interrupted\n")],
)
def test_a_signal_leaves_no_output_and_no_temporary_file(
    tmp_path: Path, sent: signal.Signals, code: int, expected: str
) -> None:
    write_large_pair(tmp_path)
    process = start_merge(tmp_path, *LASTING)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, "")
    assert stderr.endswith(expected)
    assert "Traceback" not in stderr
    assert temporary_files(tmp_path) == []
    assert (tmp_path / "out0.5").read_text() == "precious"


def test_a_killed_merge_leaves_the_old_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    write_large_pair(tmp_path)
    process = start_merge(tmp_path, *LASTING)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "out0.5").read_text() == "precious"
    left = [file for file in temporary_files(tmp_path) if ".out0.5." in file.name]
    assert len(left) == 1
    again = start_merge(tmp_path, "-o", "out0.5")
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert not left[0].exists()
    assert (tmp_path / "out0.5").stat().st_size > 32_000_000


def merge_with_open_files(folder: Path, limits: tuple[int, int], alphas: str) -> str:
    """Run a merge under a soft and a hard limit on open files; return its standard error."""
    words = f"merge zs.safetensors ft.safetensors --alpha {alphas} -o out{{alpha}}"
    done = subprocess.run(
        [sys.executable, "-m", "wiseft_cli", *words.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
    )
    assert "Traceback" not in done.stderr
    assert bool(done.returncode) == done.stderr.startswith("error:")
    return done.stderr


def test_1001_outputs_need_only_the_hard_limit_on_open_files(tmp_path: Path) -> None:
    write_pair(tmp_path)
    merge_with_open_files(tmp_path, (64, 4096), "0:1:0.001")
    assert len(list(tmp_path.glob("out*"))) == 1001


def test_too_many_outputs_for_the_limit_on_open_files_are_refused_at_once(tmp_path: Path) -> None:
    write_pair(tmp_path)
    assert merge_with_open_files(tmp_path, (256, 256), "0:1:0.001") == (
        "error: 1,001 outputs need 2,036 open files, and the limit is 256\n"
        "hint: merge at most 111 values of --alpha at a time, or raise the hard limit "
        "(ulimit -Hn)\n"
    )
    merge_with_open_files(tmp_path, (256, 256), "0:0.11:0.001")
    assert len(list(tmp_path.glob("out*"))) == 111
    merge_with_open_files(tmp_path, (40, 40), "1")


def test_a_file_size_limit_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    write_large_pair(tmp_path)
    (tmp_path / "out").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-m", "wiseft_cli", "merge", "a", "b", "-o", "out", "--force"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: out: cannot be written: File too large; nothing was kept\n"
        f"hint: free space in {tmp_path}, or name another place with -o\n"
    )
    assert temporary_files(tmp_path) == []
    assert (tmp_path / "out").read_text() == "precious"

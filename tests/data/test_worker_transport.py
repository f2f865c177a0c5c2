"""Sending batches from workers: little shared memory, few open files, no batch left behind."""

from __future__ import annotations

import multiprocessing.queues
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from wiseft_cli.compute import workers
from wiseft_cli.compute.workers import UnsentBatch, raise_on_dead_worker
from wiseft_cli.data.loading import ImageItem, load_batches
from wiseft_cli.errors import DatasetError

ROOT = Path(__file__).parents[2]
NO_SPACE = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"

PROGRAM = """
import resource, sys
import torch
from tests.data.test_worker_transport import Squares, load
from wiseft_cli.errors import WiseftError

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
size, n_images, workers = map(int, sys.argv[2:])
try:
    kept = list(load(Squares(size), n_images, workers))
except WiseftError as error:
    print(error.message)
    print(error.hint)
else:
    print(len(kept), "batches")
"""
IN_SMALL_SHARED_MEMORY = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'


class Squares(Dataset["ImageItem | UnreadableImage"]):
    def __init__(self, size: int) -> None:
        self._size = size

    def __getitem__(self, index: int) -> ImageItem:
        return ImageItem(torch.full((3, self._size, self._size), float(index)), index, index)


def load(dataset: Squares, n_images: int, workers: int) -> Iterator[object]:
    batches = [[at, at + 1] for at in range(0, n_images, 2)]
    return load_batches(dataset, batches, workers=workers, device=torch.device("cpu"))


def run(open_files: int, size: int, n_images: int, workers: int, *prefix: str) -> str:
    numbers = [str(number) for number in (open_files, size, n_images, workers)]
    command = [*prefix, sys.executable, "-c", PROGRAM, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(("workers", "n_images"), [(1, 2), (2, 6), (2, 64)])
def test_small_shared_memory_is_an_error_and_not_a_hang(workers: int, n_images: int) -> None:
    prefix = ["unshare", "--mount", "sh", "-c", IN_SMALL_SHARED_MEMORY, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True).returncode
    ):
        pytest.skip("this user may not mount a file system")
    output = run(1024, 512, n_images, workers, *prefix)
    assert output.startswith("a worker cannot send its images to the main process: ")
    assert "/dev/shm (1 MiB in all)" in output
    assert "--shm-size" in output
    assert "--workers 0" in output


def test_kept_batches_need_no_open_files() -> None:
    assert run(128, 4, 400, 2) == "200 batches\n"


def test_batches_are_copied_out_of_shared_memory() -> None:
    for batch in load(Squares(4), 4, 1):
        assert not any(isinstance(at, torch.Tensor) and at.is_shared() for at in batch)  # type: ignore[attr-defined]


@pytest.mark.parametrize("reason", [NO_SPACE, "unable to mmap 9 bytes: no memory (12)"])
def test_unsent_batch_names_shared_memory_and_the_remedies(reason: str) -> None:
    batches = raise_on_dead_worker([1, UnsentBatch(reason)], 2)
    assert next(batches) == 1
    with pytest.raises(DatasetError) as caught:
        next(batches)
    assert caught.value.message.endswith(reason)
    for remedy in ("/dev/shm", "--shm-size", "--workers 0", "--batch-size"):
        assert remedy in str(caught.value.hint)


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
        UnsentBatch("[Errno 24] Too many open files"),
    ],
)
def test_too_many_open_files_names_the_limit(error: Exception | UnsentBatch) -> None:
    def batches() -> Iterator[object]:
        if isinstance(error, Exception):
            raise error
        yield error

    with pytest.raises(DatasetError, match="Too many open files") as caught:
        next(raise_on_dead_worker(batches(), 2))
    assert "ulimit -n 4096" in str(caught.value.hint)


def test_worker_that_is_ending_drops_a_batch_that_it_cannot_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", None)
    workers._report_unsent_batches()
    queue = multiprocessing.get_context("spawn").Queue()
    queue.close()
    queue._on_queue_feeder_error(RuntimeError(NO_SPACE), (0, "batch"))

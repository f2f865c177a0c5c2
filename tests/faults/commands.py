"""The commands that write, on inputs small enough to run them a few hundred times."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.training.tiny import write_images, write_zeroshot

Words = tuple[str, ...]


@dataclass(frozen=True)
class WritingCommand:
    """A command line that writes.

    Attributes:
        words: The words after `wiseft`.
        outputs: Paths that it writes; a folder stands for its files.
        prepare: Makes further inputs in the current folder.
        force: Option with which it replaces existing outputs.
    """

    words: Words
    outputs: tuple[str, ...]
    prepare: Callable[[], object] = lambda: None
    force: Words = ("--force",)


def make_inputs(folder: Path) -> None:
    """Write a zero-shot and a fine-tuned checkpoint, and a small image set."""
    write_zeroshot(folder / "zeroshot.safetensors")
    write_zeroshot(folder / "finetuned.safetensors")
    write_images(folder / "images", (2, 2, 2))
    tensors = load_file(folder / "zeroshot.safetensors")
    torch.save({"state_dict": tensors, "epoch": 1}, folder / "saved.pt")
    model = folder / "model"
    model.mkdir()
    shutil.copy(folder / "finetuned.safetensors", model / "model.safetensors")
    (model / "config.json").write_text("{}")


_PAIR = ("zeroshot.safetensors", "finetuned.safetensors")
_QUIET = ("--workers", "0", "--device", "cpu")


def _run(*words: str) -> None:
    from wiseft_cli.cli.app import main

    assert main(list(words)) == 0


_evaluate = functools.partial(
    *(_run, "eval", *_PAIR, "--alpha", "0,0.5,1", "--data", "images"),
    *("--data", "shift=images", "--results", "results.jsonl", *_QUIET),
)

COMMANDS = {
    "merge": WritingCommand(("merge", *_PAIR, "-o", "out.safetensors"), ("out.safetensors",)),
    "merge at three alphas": WritingCommand(
        ("merge", *_PAIR, "--alpha", "0,0.5,1", "-o", "out-{alpha}.safetensors"),
        ("out-0.safetensors", "out-0.5.safetensors", "out-1.safetensors"),
    ),
    "merge to a folder": WritingCommand(
        ("merge", "zeroshot.safetensors", "model", "-o", "out/"), ("out",)
    ),
    "merge to shards": WritingCommand(
        ("merge", *_PAIR, "--alpha", "0,0.5", "-o", "out-{alpha}", "--max-shard-size", "30KB"),
        ("out-0", "out-0.5"),
    ),
    "merge to folders of alphas": WritingCommand(
        ("merge", *_PAIR, "--alpha", "0,1", "-o", "at-{alpha}/out.safetensors"),
        ("at-0/out.safetensors", "at-1/out.safetensors"),
    ),
    "merge in shards": WritingCommand(
        ("merge", *_PAIR, "--max-shard-size", "40KB", "-o", "out/"), ("out",)
    ),
    "soup": WritingCommand(("soup", *_PAIR, "-o", "out.safetensors"), ("out.safetensors",)),
    "fisher": WritingCommand(
        (
            *("fisher", _PAIR[1], "--data", "images", "--samples", "all", "--threads", "1"),
            *("-o", "out.safetensors", *_QUIET),
        ),
        ("out.safetensors",),
    ),
    "convert": WritingCommand(
        ("convert", "saved.pt", "-o", "out.safetensors"), ("out.safetensors",)
    ),
    "eval --results": WritingCommand(
        ("eval", *_PAIR, "--alpha", "0.5", "--data", "images", "--results", "out.jsonl", *_QUIET),
        ("out.jsonl",),
        force=(),
    ),
    "eval --save-predictions": WritingCommand(
        ("eval", _PAIR[0], "--data", "images", "--save-predictions", "out", *_QUIET), ("out",)
    ),
    "eval --merge-best": WritingCommand(
        (
            *("eval", *_PAIR, "--alpha", "0,0.5,1", "--data", "images", *_QUIET),
            *("--select-on", "images", "--merge-best", "out.safetensors"),
        ),
        ("out.safetensors",),
    ),
    "plot": WritingCommand(("plot", "results.jsonl", "-o", "out.png"), ("out.png",), _evaluate),
    "report as Markdown": WritingCommand(
        ("report", "results.jsonl", "-o", "out.md"), ("out.md",), _evaluate
    ),
    "report as a table": WritingCommand(
        ("report", "results.jsonl", "-o", "out.csv"), ("out.csv",), _evaluate
    ),
    "finetune": WritingCommand(
        (
            *("finetune", _PAIR[0], "--train", "images", "--epochs", "1", "--batch-size", "3"),
            *("-o", "out.safetensors", "--save-every", "1", "--threads", "1", *_QUIET),
        ),
        ("out.safetensors",),
    ),
}

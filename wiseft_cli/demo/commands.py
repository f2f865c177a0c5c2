"""The command lines of the demo, and running one as a user would: in a process of its own.

What they mean is the commands' own business; which order they run in is `pipeline`'s.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from wiseft_cli.demo.effect import IN_DISTRIBUTION
from wiseft_cli.errors import WiseftError

LEARNING_RATE = "4e-3"
RECIPE = ("--epochs", "10", "--batch-size", "64", "--batch-norm", "frozen")
"""A batch that makes 320 steps of 2,000 images, and BatchNorm kept at pretraining's statistics. The
learning rate is chosen by `study`; what else affects the result is the default of `wiseft
finetune`, the paper's."""
ONE_THREAD = ("--workers", "0", "--threads", "1")
"""Images this small are decoded faster than they are sent between processes, and a model this small
gains little from a second thread; one gives the same bytes whatever the number of cores."""

Say = Callable[[str], None]


class DemoStepError(WiseftError):
    """A command of the demo failed; it has said why, and its exit code is passed on."""

    def __init__(self, command: Sequence[str], exit_code: int) -> None:
        super().__init__(f"`{show_command(command)}` ended with exit code {exit_code}")
        self.exit_code = exit_code


def show_command(command: Sequence[str]) -> str:
    """The line that a user would type."""
    return shlex.join(["wiseft", *command])


def run_command(command: Sequence[str], *, say: Say) -> str:
    """Run `wiseft` with the given words and return what it printed on stdout.

    Its stderr goes where ours goes. When we are interrupted it is asked to end, and waited for,
    so that it can remove what it had half written.

    Raises:
        DemoStepError: It ended with another exit code than 0.
    """
    say(f"$ {show_command(command)}")
    process = subprocess.Popen(
        [sys.executable, "-m", "wiseft_cli", *command], stdout=subprocess.PIPE, text=True
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        code = process.returncode
        raise DemoStepError(command, code if code > 0 else 128 - code)
    return output


def zeroshot_head_command(
    *, model: Path, classes: Path, templates: Path, out: Path
) -> tuple[str, ...]:
    """Make the zero-shot classifier of a model folder."""
    return (
        "zeroshot-head",
        *("--model", f"local-dir:{model}"),
        *("--classes", str(classes)),
        *("--templates", str(templates)),
        *("-o", str(out)),
    )


def finetune_command(
    zeroshot: Path,
    *,
    train: Path,
    validation: Path,
    out: Path,
    learning_rate: str = LEARNING_RATE,
    seed: int = 0,
) -> tuple[str, ...]:
    """Fine-tune it with the demo's recipe."""
    return (
        *("finetune", str(zeroshot)),
        *("--train", str(train)),
        *("--val", str(validation)),
        *RECIPE,
        *ONE_THREAD,
        *("--lr", learning_rate),
        *("--seed", str(seed)),
        *("-o", str(out)),
    )


def merge_command(zeroshot: Path, finetuned: Path, *, out: Path) -> tuple[str, ...]:
    """Merge both at the paper's default."""
    return ("merge", "--alpha", "0.5", str(zeroshot), str(finetuned), "-o", str(out))


def eval_command(
    zeroshot: Path, finetuned: Path, *, test: Path, shifts: Mapping[str, Path], results: Path
) -> tuple[str, ...]:
    """Evaluate eleven points between both on every set, the in-distribution one first."""
    sets = {IN_DISTRIBUTION: test, **shifts}
    data = [word for name, folder in sets.items() for word in ("--data", f"{name}={folder}")]
    return (
        *("eval", str(zeroshot), str(finetuned)),
        *data,
        *("--alpha", "0:1:0.1"),
        *ONE_THREAD,
        *("--results", str(results)),
    )


def plot_command(results: Path, *, out: Path) -> tuple[str, ...]:
    """Draw the curve."""
    return ("plot", str(results), "-o", str(out))

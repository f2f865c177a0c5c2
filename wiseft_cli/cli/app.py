"""The command `wiseft`: its subcommands, and the one place that turns errors into exit codes.

No subcommand is written here, and nothing heavy is imported here: `--help` of every
subcommand works where torch cannot be imported.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, NoReturn

import typer

from wiseft_cli import __version__
from wiseft_cli.cli.console import print_result, talk
from wiseft_cli.errors import WiseftError

EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
EXIT_TERMINATED = 143

COMMANDS = {
    "zeroshot-head": "zeroshot_head:zeroshot_head",
    "finetune": "finetune:finetune",
    "merge": "merge:merge",
    "eval": "eval:eval_command",
    "plot": "plot:plot",
    "predict": "predict:predict",
    "export": "export:export",
    "inspect": "inspect:inspect",
    "diff": "diff:diff",
    "datasets": "datasets:datasets",
    "demo": "demo:demo",
}
"""Each subcommand's module in this package and its function, in the order of `--help`."""


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack so that nothing half-written stays behind."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print_result(f"wiseft {__version__}")
        raise typer.Exit


def wiseft(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Hold the options that stand before a subcommand."""


def build_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """Return the command line with some of its subcommands.

    Importing the modules of the others would be a tenth of what a small merge takes.
    """
    app = typer.Typer(
        name="wiseft",
        help="Take a CLIP-like model from zero-shot to robustly fine-tuned, over safetensors files "
        "(WiSE-FT, arXiv 2109.01903).",
        epilog="Each command reads files, writes files and exits; results go to stdout, "
        "talk to stderr.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(wiseft)
    for name in names:
        module, function = COMMANDS[name].split(":")
        app.command(name)(getattr(import_module(f"wiseft_cli.cli.{module}"), function))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        arguments: The words after `wiseft`; the process's own where None.
    Returns:
        0 done; 1 wrong input or environment; 2 usage; 3 a gate failed; 130 interrupted;
        141 whoever read the output stopped reading (`| head -1`), as other programs that a broken
        pipe ends; 143 terminated. Any other failure is a defect and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_subcommand = bool(words) and words[0] in COMMANDS
    try:
        build_app(words[:1] if is_subcommand else COMMANDS)(words, prog_name="wiseft")
    except WiseftError as error:
        talk(f"error: {error.message}")
        if error.hint:
            talk(f"hint: {error.hint}")
        return error.exit_code
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # typer leaves with 1 then
            return EXIT_READER_GONE
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if code == EXIT_INTERRUPTED:
            talk("interrupted")
        return code
    except KeyboardInterrupt:  # before options were parsed; later it is typer that leaves
        talk("interrupted")
        return EXIT_INTERRUPTED
    except Terminated:
        talk("terminated")
        return EXIT_TERMINATED
    return 0


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated

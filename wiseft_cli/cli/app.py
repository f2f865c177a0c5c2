"""The command `wiseft`: its subcommands, and the one place that turns errors into exit codes.

Nothing heavy is imported here: `--help` of every subcommand works where torch cannot be imported.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import FrameType
from typing import Annotated, NoReturn

import typer

from wiseft_cli import __version__
from wiseft_cli.cli.console import print_message, print_result
from wiseft_cli.cli.help import CONTEXT_SETTINGS, HelpCommand, HelpGroup
from wiseft_cli.cli.remote import with_remote_inputs
from wiseft_cli.errors import MissingDependencyError, WiseftError

EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
EXIT_TERMINATED = 143

COMMANDS = {
    "zeroshot-head": "zeroshot_head:zeroshot_head",
    "finetune": "finetune:finetune",
    "merge": "merge:merge",
    "soup": "soup:soup",
    "fisher": "fisher:fisher",
    "eval": "eval:eval_command",
    "plot": "plot:plot",
    "report": "report:report",
    "predict": "predict:predict",
    "export": "export:export",
    "convert": "convert:convert",
    "inspect": "inspect:inspect",
    "verify": "verify:verify",
    "diff": "diff:diff",
    "datasets": "datasets:datasets",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
}
"""Each subcommand's module in this package and its function, in the order of `--help`."""


class Terminated(BaseException):
    """Raised by SIGTERM; unwinding the stack removes unfinished files."""


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
    """Declare the options before the subcommand."""


def build_app(names: Iterable[str] = COMMANDS, *, add_completion: bool = True) -> typer.Typer:
    """Return the command line with some of its subcommands.

    Importing the modules of all subcommands takes a tenth of the time of a small merge.
    """
    app = typer.Typer(
        name="wiseft",
        cls=HelpGroup,
        help="Take a CLIP-like model from zero-shot to robustly fine-tuned, over safetensors files "
        "(WiSE-FT, arXiv 2109.01903).",
        epilog="Each command reads files, writes files and exits. Results go to stdout, progress "
        "and messages to stderr. `wiseft COMMAND --help` describes a command.",
        context_settings=CONTEXT_SETTINGS,
        no_args_is_help=True,
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(wiseft)
    for name in names:
        module_name, function = COMMANDS[name].split(":")
        module = import_module(f"wiseft_cli.cli.{module_name}")
        command = app.command(
            name,
            cls=HelpCommand,
            epilog=getattr(module, "EXAMPLES", None),
            context_settings=CONTEXT_SETTINGS,
        )
        command(with_remote_inputs(getattr(module, function)))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        arguments: The words after `wiseft`; the process's own where None.
    Returns:
        0 done; 1 wrong input or environment; 2 usage; 3 a gate failed; 130 interrupted; 141 the
        reader of the output closed it (`| head -1`), as for other programs that a broken pipe
        ends; 143 terminated. Any other failure is a defect and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = _run(words)
    if code in (1, 2) and _has_expanded_shards(words):
        print_message(
            "hint: quote a pattern of shards, which the shell expands: 'x-{000..127}.tar'"
        )
    return code


def _has_expanded_shards(words: Sequence[str]) -> bool:
    """Return whether several shards follow an option that takes one image set."""
    return any(
        option in ("--data", "--train", "--val")
        and first.endswith(".tar")
        and second.endswith(".tar")
        for option, first, second in zip(words, words[1:], words[2:], strict=False)
    )


def _run(words: list[str]) -> int:
    is_subcommand = bool(words) and words[0] in COMMANDS
    if "--sweep" in words or any(word.startswith("--sweep=") for word in words):
        # lazy: only this option needs it
        from wiseft_cli.training.sweep import separate_sweep_values

        words = separate_sweep_values(words)
    try:
        names = words[:1] if is_subcommand else COMMANDS
        build_app(names, add_completion=not is_subcommand)(words, prog_name="wiseft")
    except WiseftError as error:
        return _print_error(error)
    except ModuleNotFoundError as error:
        if (missing := _missing_dependency(error)) is None:
            raise
        return _print_error(missing)
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # typer exits with 1 then
            return EXIT_READER_GONE
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if code == EXIT_INTERRUPTED:
            print_message("interrupted")
        return code
    except KeyboardInterrupt:  # before options are parsed; later typer exits
        print_message("interrupted")
        return EXIT_INTERRUPTED
    except Terminated:
        print_message("terminated")
        return EXIT_TERMINATED
    return 0


def _print_error(error: WiseftError) -> int:
    for line in f"error: {error.message}".split("\n"):
        print_message(line)
    if error.hint:
        print_message(f"hint: {error.hint}")
    return error.exit_code


_PACKAGE_NAMES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "open_clip": "open_clip_torch",
    "vl_convert": "vl-convert-python",
}
"""Names of packages on the index, where modules have another name."""


def _missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """Return the error for a package that a slim installation does not have."""
    module = (error.name or "").partition(".")[0]
    if not module or module == "wiseft_cli" or find_spec(module) is not None:
        return None
    package = _PACKAGE_NAMES.get(module, module)
    return MissingDependencyError(
        f"this command needs the package {package}, which is not installed",
        hint="pip install wiseft-cli installs everything that wiseft needs; in a slim"
        f" installation: pip install {package}",
    )


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated

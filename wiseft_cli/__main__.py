"""Run the command line, as `wiseft` or `python -m wiseft_cli`."""

from typing import NoReturn

from wiseft_cli.cli.app import main


def run() -> NoReturn:
    """Run one subcommand and end the process with its exit code."""
    code = main()
    # lazy: --help needs none of it
    from wiseft_cli.cli.torchrun import exit_process

    exit_process(code)


if __name__ == "__main__":
    run()

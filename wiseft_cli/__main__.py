"""Run the command line, as `wiseft` or `python -m wiseft_cli`."""

from typing import NoReturn

from wiseft_cli.cli.app import main


def run() -> NoReturn:
    """Run one subcommand and end the process with its exit code."""
    code = main()
    # lazy: the errors of the launch are of no use to --help
    from wiseft_cli.cli.launched import leave

    leave(code)


if __name__ == "__main__":
    run()

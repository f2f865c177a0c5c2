"""Run the command line as `python -m wiseft_cli`."""

import sys

from wiseft_cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())

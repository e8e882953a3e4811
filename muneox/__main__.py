"""Runs the command line: `python -m muneox COMMAND ...`."""

import sys

from muneox.cli import main

if __name__ == "__main__":
    sys.exit(main())

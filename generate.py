"""Sample text from a checkpoint. See `python generate.py --help`, or `muneox generate`."""

from __future__ import annotations

import sys

from megatron.entry import run_script
from muneox.commands.generate import main

if __name__ == "__main__":
    sys.exit(run_script(main))

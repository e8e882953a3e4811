"""Evaluate a checkpoint. See `python eval.py --help`, or `muneox eval`."""

from __future__ import annotations

import sys

from megatron.entry import run_script
from muneox.commands.eval import main

if __name__ == "__main__":
    sys.exit(run_script(main))

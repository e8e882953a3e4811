"""Prepare a training corpus with one command. See `python prepare_data.py --help`, or `muneox prepare-data`."""

from __future__ import annotations

import sys

from megatron.entry import run_script
from megatron.tokenizer.train_tokenizer import train_tokenizer
from muneox.commands.prepare_data import main

__all__ = ["main", "train_tokenizer"]

if __name__ == "__main__":
    sys.exit(run_script(main))

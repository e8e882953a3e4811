"""Describe and verify a checkpoint. The same as `muneox inspect-checkpoints`."""

import sys

if __name__ == "__main__":
    try:
        from muneox.cli import run_tool
    except ModuleNotFoundError as error:
        sys.exit(f"error: {sys.executable} has no package {error.name}: run `make setup` and use .venv/bin/python")
    sys.exit(run_tool("muneox.commands.inspect_checkpoints"))

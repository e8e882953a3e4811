"""Merge .bin and .idx data sets of a folder. The same as `muneox merge-datasets`."""

import sys

if __name__ == "__main__":
    try:
        from muneox.cli import run_tool
    except ModuleNotFoundError as error:
        sys.exit(f"error: {sys.executable} has no package {error.name}: run `make setup` and use .venv/bin/python")
    sys.exit(run_tool("muneox.commands.merge_datasets"))

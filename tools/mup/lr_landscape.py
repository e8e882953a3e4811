"""Plot final loss over learning rate for each width. The same as `muneox lr-landscape`."""

import sys

if __name__ == "__main__":
    try:
        from muneox.cli import run_tool
    except ModuleNotFoundError as error:
        sys.exit(f"error: {sys.executable} has no package {error.name}: run `make setup` and use .venv/bin/python")
    sys.exit(run_tool("muneox.commands.lr_landscape"))

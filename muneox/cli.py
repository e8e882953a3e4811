"""The command `muneox`, and what the scripts in `tools/` run. Each command is imported only when it is used."""

from __future__ import annotations

import importlib
import sys

from megatron.entry import run_script
from megatron.errors import ConfigError

# command -> what it does; its module is muneox.commands.<name>, with _ for -
COMMANDS = {
    "train": "train a model, in as many processes as its configuration says",
    "generate": "sample from a checkpoint",
    "prepare-data": "make a corpus to train on: tokenizer, token files, facts",
    "search": "search hyperparameters on a muP proxy",
    "sweep": "train a grid of runs: widths, seeds, values of any key",
    "transfer": "compare a proxy with its target, or write the proxy",
    "lr-landscape": "final loss over the learning rate, per width",
    "width-check": "whether wider models are better at every step",
    "audit": "every parameter's scale against the rules of muP",
    "predict-loss": "predict a large model's loss from smaller runs",
    "report": "one HTML page from the results of the other commands",
    "inspect-checkpoint": "describe and verify a checkpoint",
    "merge-weights": "write a checkpoint's weights into one file",
    "preprocess-data": "tokenize text into .bin and .idx files",
}


def run_module(module: str) -> int:
    """Run a module's `main` with the arguments of the command line; returns the exit code."""
    return run_script(lambda: importlib.import_module(module).main(sys.argv[1:]))


def run_tool(module: str) -> int:
    """The same for a script in `tools/`."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's folder: nothing is imported from it, and tools/mup would hide the package mup
    return run_module(module)


def usage() -> str:
    """The list of commands."""
    rows = "\n".join(f"  {name:20}{summary}" for name, summary in COMMANDS.items())
    return f"usage: muneox COMMAND [arguments]\n\n{rows}\n\n`muneox COMMAND --help` describes its arguments."


def main() -> int:
    """The command `muneox`; returns the exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:

        def refuse() -> None:
            raise ConfigError(f"muneox: no command {name!r}; expected one of {', '.join(COMMANDS)}")

        return run_script(refuse)
    sys.argv = [f"muneox {name}", *arguments]  # the command's help shows it
    return run_module(f"muneox.commands.{name.replace('-', '_')}")

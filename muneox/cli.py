"""The command line of `muneox` and of the scripts in `tools/`. Each command is imported only when it runs."""

from __future__ import annotations

import importlib
import sys

from megatron.entry import run_script
from megatron.errors import ConfigError

# command -> summary. Its module is muneox.commands.<name>, with - replaced by _.
COMMANDS = {
    "train": "train a model, with as many processes as its configuration needs",
    "generate": "sample from a checkpoint",
    "eval": "evaluate a checkpoint: perplexity, and tasks of the lm-evaluation-harness",
    "prepare-data": "prepare a corpus for training: tokenizer, token files, corpus.json",
    "search": "search hyperparameters on a muP proxy",
    "sweep": "train a grid of runs: widths, seeds, values of any key",
    "transfer": "compare a proxy with its target, or write the proxy's configuration",
    "lr-landscape": "plot the final loss against the learning rate, per width",
    "width-check": "check that wider models are better at every step",
    "audit": "check the scale of every parameter against the rules of muP",
    "predict-loss": "predict a large model's loss from smaller runs",
    "report": "write one HTML page from the results of other commands",
    "inspect-checkpoints": "describe and verify a checkpoint",
    "merge-weights": "write a checkpoint's weights into one file",
    "convert-neox-to-hf": "write a checkpoint as a model of Hugging Face's transformers",
    "convert-hf-to-neox": "write a model of Hugging Face's transformers as a checkpoint",
    "convert-to-neox": "write a checkpoint in GPT-NeoX's format",
    "preprocess-data": "tokenize text into .bin and .idx files",
    "preprocess-data-with-mask": "tokenize text, with labels that mask the text before an answer",
    "preprocess-data-with-chat-template": "tokenize conversations, with labels for the turns of one role",
    "merge-datasets": "merge .bin and .idx data sets of a folder into one",
    "train-tokenizer": "train a byte-level BPE tokenizer on files of text",
}


def run_module(module: str) -> int:
    """Run a module's `main` with the command-line arguments. Returns the exit code."""
    return run_script(lambda: importlib.import_module(module).main(sys.argv[1:]))


def run_tool(module: str) -> int:
    """Run a module's `main` for a script in `tools/`. Returns the exit code."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's folder; tools/mup in it would hide the package mup
    return run_module(module)


def usage() -> str:
    """The help text: the list of commands."""
    rows = "\n".join(f"  {name:36}{summary}" for name, summary in COMMANDS.items())
    return f"usage: muneox COMMAND [arguments]\n\n{rows}\n\n`muneox COMMAND --help` describes its arguments."


def _help(name: str) -> None:
    """Print the help text. Raises ConfigError if `name` does not ask for it."""
    if name not in ("-h", "--help"):
        raise ConfigError(f"muneox: unknown command {name!r}; expected one of {', '.join(COMMANDS)}")
    print(usage(), flush=True)


def main() -> int:
    """Run the command `muneox`. Returns the exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        return run_script(lambda: _help(name))
    sys.argv = [f"muneox {name}", *arguments]  # the command's help shows it
    return run_module(f"muneox.commands.{name.replace('-', '_')}")

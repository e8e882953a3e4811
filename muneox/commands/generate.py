"""Sample from a checkpoint. Takes the command line of train.py and --prompt.

    python generate.py --load checkpoints --prompt "def main("
    python generate.py --load checkpoints --text-gen-type interactive
    python generate.py configs/mup/base.yml configs/local_setup.yml -i prompts.txt -o samples.jsonl --num-samples 4

The checkpoint holds its configuration. Without --load, it is in the folder `save` of the configuration files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs, UsageRequested
from megatron.neox_arguments.launcher import split_prompts
from megatron.neox_arguments.resolve import generation_config

if TYPE_CHECKING:
    from megatron.neox_arguments.job_configs import GenerationConfig
    from megatron.text_generation_utils import Sampler

USAGE = """\
usage: {program} [config.yml ...] [--load DIR] [--prompt TEXT ...] [--key value ...]

Sample text from a checkpoint.

  {program} --load checkpoints --prompt "def main("
  {program} --load checkpoints --text-gen-type interactive
  {program} --load checkpoints -i prompts.txt -o samples.jsonl --num-samples 4 --temperature 0

  --prompt TEXT         continue this text and print it as it is sampled; repeatable
  --text-gen-type KIND  unconditional (default), input-file or interactive
  -i, -o FILE           sample_input_file: one prompt per line; sample_output_file: one JSON object per line
  --load DIR            checkpoint to sample from, which holds its configuration (default: `save` of config.yml)
  --iteration N         step of the checkpoint (default: the latest)
  --maximum-tokens N (64), --num-samples N (1), --seed N: equal seeds give equal samples
  --temperature T (0.8; 0: the most likely token), --top-k K (50), --top-p P
  --recompute           do not use the key-value cache

All keys: configs/neox_arguments.md
Next: `muneox eval --load DIR` evaluates the checkpoint, and `muneox convert-neox-to-hf` converts it."""


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Sample as configured. Returns exit code 0. Raises UserError."""
    prompts, rest = split_prompts(sys.argv[1:] if input_args is None else input_args)
    if "-h" in rest or "--help" in rest:
        raise UsageRequested(USAGE.format(program=os.path.basename(sys.argv[0])))
    config = generation_config(NeoXArgs.consume_neox_args(overwrite_values, rest, own_layout=False))
    if prompts and config.kind != "unconditional":
        raise ConfigError(f"command line: --prompt and text-gen-type {config.kind} exclude each other; remove one")
    if int(os.environ.get("RANK", "0")):  # started by a launcher: only one process samples
        return 0
    from megatron.text_generation_utils import Sampler  # torch loads only if the configuration is valid

    _tolerate_any_text()
    sampler = Sampler.from_config(config)
    if prompts:
        continue_prompts(sampler, prompts, config.num_samples)
    else:
        ways = {"unconditional": unconditional, "input-file": from_file, "interactive": interactive}
        ways[config.kind](sampler, config)
    return 0


def continue_prompts(sampler: Sampler, prompts: Sequence[str], num_samples: int) -> None:
    """Print each prompt and its continuation as it is sampled."""
    for index, prompt in enumerate(prompts):
        for sample in range(num_samples):
            print(prompt, end="", flush=True)
            for piece in sampler.stream(prompt, index, sample):
                print(piece, end="", flush=True)
            print(flush=True)


def unconditional(sampler: Sampler, config: GenerationConfig) -> None:
    """Sample whole documents, print them and write them to sample_output_file."""
    from megatron.text_generation_utils import generate_unconditional

    for sample in generate_unconditional(sampler, config.num_samples, config.output_file):
        print(sample.text, flush=True)
    _say_where(config)


def from_file(sampler: Sampler, config: GenerationConfig) -> None:
    """Continue each line of sample_input_file, and write to sample_output_file or print."""
    from megatron.text_generation_utils import generate_from_file

    output = config.output_file
    for sample in generate_from_file(sampler, config.input_file, config.num_samples, output):
        if not output:
            print(sample.context + sample.text, flush=True)
    _say_where(config)


def interactive(sampler: Sampler, config: GenerationConfig) -> None:
    """Answer typed prompts until the end of the input."""
    from megatron.text_generation_utils import generate_interactively, typed_lines

    if sys.stdin.isatty():
        print(f"A prompt ends with {config.prompt_end!r}. Ctrl-C stops an answer, Ctrl-D exits.")
    generate_interactively(sampler, typed_lines("> "), config.prompt_end, config.num_samples, sys.stdout)


def _say_where(config: GenerationConfig) -> None:
    if config.output_file:
        print(f"samples written to {config.output_file}", file=sys.stderr)


def _tolerate_any_text() -> None:
    """Replace characters that the terminal's encoding lacks instead of raising an error."""
    for stream in (sys.stdin, sys.stdout):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")

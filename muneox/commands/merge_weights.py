"""Write the whole weights of a checkpoint, saved under any layout, into one file.

    python tools/ckpts/merge_weights.py checkpoints weights.safetensors [--iteration 1000]

Names do not depend on the layout, and the vocabulary has no padding. The suffix of the output file selects the format:
`.safetensors` or `.pt` (torch.save).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron.checkpointing import LoadedWeights, load_weights
from megatron.command_help import command_parser
from megatron.errors import CheckpointError, ConfigError
from megatron.files import replacing
from megatron.optional import import_optional


def main(input_args: Sequence[str] | None = None) -> int:
    """Write the file. Returns exit code 0. Raises ConfigError or CheckpointError."""
    parser = command_parser(__doc__, "`muneox convert-neox-to-hf` writes a model of transformers instead.")
    parser.add_argument("directory", type=Path, help="a save directory, or one of its global_step{N}")
    parser.add_argument("output", type=Path, help="file to write, .safetensors or .pt")
    parser.add_argument("--iteration", type=int, help="step to read (default: the latest)")
    args = parser.parse_args(input_args)
    if args.output.suffix not in (".safetensors", ".pt"):
        raise ConfigError(f"{args.output}: the suffix must be .safetensors or .pt")
    loaded = load_weights(args.directory, args.iteration)
    write(loaded, args.output)
    total = sum(weight.numel() for weight in loaded.weights.values())
    print(f"wrote {args.output}: {total:,} parameters of step {loaded.iteration}")
    return 0


def write(loaded: LoadedWeights, output: Path) -> None:
    """Write the weights and the muP section (as JSON text) atomically. Raises CheckpointError."""
    weights = {name: weight.contiguous().clone() for name, weight in loaded.weights.items()}
    mup = json.dumps(loaded.client_state.get("mup", {}))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            if output.suffix == ".pt":
                torch.save({"weights": weights, "iteration": loaded.iteration, "mup": mup}, temporary)
            else:
                safetensors = import_optional("safetensors.torch", "hf", "writing .safetensors", otherwise="write .pt")
                safetensors.save_file(weights, temporary, {"iteration": str(loaded.iteration), "mup": mup})
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error.strerror}") from error

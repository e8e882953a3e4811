"""`save-base-shapes: true`: write one base-shape file a rank, from the meta device, and end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron.initialize import Runtime
from megatron.model.build import shapes_at
from megatron.neox_arguments import NeoXArgs
from megatron.parametrization.base_shapes import save_base_shapes
from megatron.parametrization.widths import ForwardFactors
from megatron.tokenizer import build_tokenizer
from megatron.training.from_args import gpt_config, resolve_base_widths, target_widths

_ANY = ForwardFactors(1.0, 1.0, 1.0, 1.0)  # shapes do not depend on them


def run_save_base_shapes(args: NeoXArgs, runtime: Runtime) -> Path:
    """Write `<base-shapes-file>.<rank>` and return its path.

    The base is what the mup-base-* keys say, or without them the configured model itself; the delta model, which
    tells widths from finite dimensions, is `mup-width-scale` times as wide at the same number of heads.
    """
    args.require("base_shapes_file")
    widths = target_widths(args)
    base, _ = resolve_base_widths(args, widths)
    tokenizer = build_tokenizer(args.tokenizer_type, args.vocab_file, args.merge_file)
    config = gpt_config(args, widths, tokenizer.vocab_size)
    scale = args.mup_width_scale
    delta = dataclasses.replace(
        base, hidden_size=base.hidden_size * scale, ffn_hidden_size=base.ffn_hidden_size * scale
    )
    file = Path(f"{args.base_shapes_file}.{runtime.rank}")
    tensor, pipe = args.model_parallel_size, args.pipe_parallel_size
    layout = f"rank {runtime.rank} of {runtime.world_size}, tensor {tensor}, pipe {pipe}"
    save_base_shapes(file, shapes_at(config, base, _ANY), shapes_at(config, delta, _ANY), base, layout)
    return file

"""A trainer for large language models. The names of GPT-NeoX's users are imported when they are first used."""

from __future__ import annotations

from megatron.forwarding import forward_names

__version__ = "0.1.0"

__getattr__ = forward_names(
    __name__,
    {
        "NeoXArgs": "megatron.neox_arguments",
        "initialize_megatron": "megatron.gpt_neox",
        "print_rank_0": "megatron.gpt_neox",
    },
)

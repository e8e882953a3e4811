"""Names inside a checkpoint of GPT-NeoX: numbered layers, and parameters by their name in the layer.

    global_step1000/layer_02-model_00-model_states.pt    a layer of one tensor-parallel rank (PipelineModule)
    global_step1000/mp_rank_00_model_states.pt           all layers of one rank (pipe-parallel-size 0), or none

Layer 0 is the embedding, 1 a function without weights, 2 to L + 1 are the blocks, L + 2 is another function, L + 3 the
final norm and L + 4 the readout. In the plain layout a name starts with `sequential.<layer>.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FIRST_BLOCK = 2
LAYER_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
RANK_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")

# our name -> the current name in GPT-NeoX, the name of Transformer Engine's layers
_SPELLINGS = {
    "mlp.dense_h_to_4h.weight": ("mlp.linear1.weight", "mlp.fc1_weight"),
    "mlp.dense_h_to_4h.bias": ("mlp.linear1.bias", "mlp.fc1_bias"),
    "mlp.dense_4h_to_h.weight": ("mlp.linear2.weight", "mlp.fc2_weight"),
    "mlp.dense_4h_to_h.bias": ("mlp.linear2.bias", "mlp.fc2_bias"),
    "attention.query_key_value.weight": ("attention.qkv.weight",),
    "attention.query_key_value.bias": ("attention.qkv.bias",),
    "attention.dense.weight": ("attention.proj.weight",),
    "attention.dense.bias": ("attention.proj.bias",),
    "post_attention_layernorm.weight": ("mlp.layer_norm_weight",),
    "post_attention_layernorm.bias": ("mlp.layer_norm_bias",),
}
# Former LLaMA checkpoints hold the gated MLP's first matrix as two: w3 is up, w1 the gate.
SPLIT_GATE = ("mlp.w3.weight", "mlp.w1.weight")
_FORMER_DOWN = "mlp.w2.weight"
# Buffers that are computed again, and states that are not weights.
_BUFFERS = re.compile(
    r".*((rotary_emb|position_embeddings)\.inv_freq|alibi_embed\.slopes|attention\.(masked_)?bias|_extra_state)$"
)

# Each rank of a tensor-parallel group holds one of these in full.
ROW_BIASES = ("attention.dense.bias", "mlp.dense_4h_to_h.bias")


def place(name: str, num_layers: int) -> tuple[int, str]:
    """Number of the layer that holds our parameter `name`, and the parameter's name in a block as ours."""
    head, _, rest = name.partition(".")
    if head == "layers":
        index, _, rest = rest.partition(".")
        return int(index) + FIRST_BLOCK, rest
    if head == "final_norm":
        return num_layers + 3, f"norm.{rest}"
    if head == "readout":
        return num_layers + 4, f"final_linear.{rest}"
    return 0, rest


def spellings(name: str) -> Iterator[str]:
    """Names that GPT-NeoX gives to a parameter of a layer, the most recent one last."""
    yield name
    yield from _SPELLINGS.get(name, ())
    if name == "mlp.dense_4h_to_h.weight":
        yield _FORMER_DOWN
    if name.endswith(("norm.weight", "layernorm.weight")):
        yield name.removesuffix("weight") + "scale"  # of RMSNorm
        yield name.removesuffix("weight") + "g"  # of ScaleNorm


def written_name(name: str, norm: str) -> str:
    """Name of a parameter of a layer in the checkpoints that GPT-NeoX writes now."""
    if name.endswith("norm.weight"):
        return name.removesuffix("weight") + {"rmsnorm": "scale", "scalenorm": "g"}.get(norm, "weight")
    return _SPELLINGS.get(name, (name,))[0] if name.startswith("mlp.") else name


def is_buffer(name: str) -> bool:
    """Whether the entry is no weight: it is computed from the configuration."""
    return _BUFFERS.fullmatch(name) is not None


def layer_files(path: Path) -> dict[tuple[int, int], Path]:
    """Files of a checkpoint with one file per layer, by (layer, tensor-parallel rank)."""
    found = ((LAYER_FILE.fullmatch(file.name), file) for file in path.iterdir())
    return {(int(match[1]), int(match[2])): file for match, file in found if match}


def rank_files(path: Path) -> list[Path]:
    """Files mp_rank_*, in order."""
    return sorted(file for file in path.iterdir() if RANK_FILE.fullmatch(file.name))

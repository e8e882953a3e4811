"""Write the files that GPT-NeoX writes, from the state of one of our models.

The rules are those of its layers (mpu/layers.py, model/transformer.py) and of its tools, written here a second time.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron.model import GPT

NEW = {
    "mlp.dense_h_to_4h": "mlp.linear1",
    "mlp.dense_4h_to_h": "mlp.linear2",
}


def grouped_rows(weight: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split our fused rows (per key-value head: its queries, key, value) into all queries, keys and values."""
    dim = weight.shape[0] // (heads + 2 * kv_heads)
    queries, keys, values = [], [], []
    at = 0
    for _ in range(kv_heads):
        queries.append(weight[at : at + heads // kv_heads * dim])
        at += heads // kv_heads * dim
        keys.append(weight[at : at + dim])
        values.append(weight[at + dim : at + 2 * dim])
        at += 2 * dim
    return torch.cat(queries), torch.cat(keys), torch.cat(values)


def shard(name: str, x: Tensor, model: GPT, rank: int, size: int) -> Tensor:
    """What a tensor-parallel rank of GPT-NeoX holds of a parameter of a layer."""
    config, widths = model.config, model.config.widths

    def rows(y: Tensor) -> Tensor:
        return y[y.shape[0] // size * rank : y.shape[0] // size * (rank + 1)]

    if "query_key_value" in name and widths.num_kv_heads != widths.num_attention_heads:
        return torch.cat([rows(y) for y in grouped_rows(x, widths.num_attention_heads, widths.num_kv_heads)])
    if "dense_h_to_4h" in name and config.gated:
        up, gate = x[: widths.ffn_hidden_size], x[widths.ffn_hidden_size :]
        return torch.cat([rows(up), rows(gate)])
    if "query_key_value" in name or "dense_h_to_4h" in name or "word_embeddings" in name or "final_linear" in name:
        return rows(x)
    if name in ("attention.dense.weight", "mlp.dense_4h_to_h.weight"):
        return x[:, x.shape[1] // size * rank : x.shape[1] // size * (rank + 1)]
    if name in ("attention.dense.bias", "mlp.dense_4h_to_h.bias") and config.parallel_residual:
        return x * (0.25 if rank == 0 else 0.75 / (size - 1)) if size > 1 else x  # the ranks are summed
    return x


def layers(model: GPT, rank: int, size: int, naming: str = "new", padding: int = 3) -> dict[int, dict[str, Tensor]]:
    """Layers of one rank by number, each with its parameters by name.

    padding: additional rows of the vocabulary for every rank.
    """
    count = model.config.widths.num_layers
    found: dict[int, dict[str, Tensor]] = {}
    for name, parameter in model.state_dict().items():
        x = parameter.detach()
        head, _, rest = name.partition(".")
        if head == "layers":
            index, _, rest = rest.partition(".")
            number = int(index) + 2
        elif head == "final_norm":
            number, rest = count + 3, f"norm.{rest}"
        elif head == "readout":
            number, rest = count + 4, "final_linear.weight"
        else:
            number = 0
        if rest in ("word_embeddings.weight", "final_linear.weight"):
            x = x[: model.config.vocab_size]
            rows = -(-x.shape[0] // size) + padding
            x = torch.cat([x, torch.full((rows * size - x.shape[0], x.shape[1]), 0.1)])
        part = shard(rest, x, model, rank, size).clone()
        if naming == "new":
            for ours, theirs in NEW.items():
                rest = rest.replace(ours, theirs)
        if model.config.norm != "layernorm" and "norm" in rest:
            rest = rest.replace(".weight", {"rmsnorm": ".scale", "scalenorm": ".g"}[model.config.norm])
        found.setdefault(number, {})[rest] = part
    if naming == "legacy":
        for number in range(2, count + 2):
            found[number]["attention.rotary_emb.inv_freq"] = torch.ones(4)
            if model.config.gated:
                up, gate = found[number].pop("mlp.dense_h_to_4h.weight").chunk(2)
                found[number] |= {"mlp.w3.weight": up, "mlp.w1.weight": gate}
                found[number]["mlp.w2.weight"] = found[number].pop("mlp.dense_4h_to_h.weight")
    return found


def header(module: Any, rank: int, size: int) -> dict[str, Any]:
    """Contents of mp_rank_*: the engine's state and what GPT-NeoX adds, random generators included."""
    return {
        "module": module,
        "optimizer": None,
        "lr_scheduler": {"num_iters": 7},
        "dp_world_size": 1,
        "mp_world_size": size,
        "global_steps": 7,
        "skipped_steps": 0,
        "iteration": 7,
        "args": {"num_layers": 2, "tokenizer_type": "HFTokenizer"},
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }


def write(
    model: GPT, folder: Path, *, size: int = 1, plain: bool = False, naming: str = "new", ranks: bool = True
) -> Path:
    """Write `folder`/global_step7. plain: without a pipeline. ranks: with the files of the engine's ranks."""
    step = folder / "global_step7"
    step.mkdir(parents=True)
    for rank in range(size):
        found = layers(model, rank, size, naming)
        if plain:
            module = {f"sequential.{number}.{name}": x for number in found for name, x in found[number].items()}
            torch.save(header(module, rank, size), step / f"mp_rank_{rank:02d}_model_states.pt")
            continue
        if model.config.tied_readout:
            found[model.config.widths.num_layers + 4] = dict(found[0])
        for number, layer in found.items():
            torch.save(layer, step / f"layer_{number:02d}-model_{rank:02d}-model_states.pt")
        if ranks:
            torch.save(header(None, rank, size), step / f"mp_rank_{rank:02d}_model_states.pt")
            torch.save({"optimizer_state_dict": {}}, step / f"zero_pp_rank_0_mp_rank_{rank:02d}_optim_states.pt")
    (folder / "latest").write_text(step.name)
    return step

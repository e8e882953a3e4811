"""Make the proxy of a target: the same configuration at a smaller width. The proxy is its own muP base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.merging import merge, override
from megatron.neox_arguments.yaml_loader import find_config, load_config

LEAST_HEADS = 2


@dataclass(frozen=True)
class Proxy:
    """A proxy: the values of its file, and the keys that the target must add to match it."""

    values: Mapping[str, Any]
    target_keys: Mapping[str, Any]


def make_proxy(target: NeoXArgs, files: Sequence[str], width: int | None) -> Proxy:
    """Make the proxy of `target`, which was loaded from `files`.

    The proxy has fewer heads. Depth, head dimension, MLP ratio and all other keys stay the same. width: hidden size of
    the proxy (default: the target's base, or an eighth of its width). Raises ConfigError if the width does not fit.
    """
    target.require("hidden_size", "num_attention_heads", "num_layers")
    target_width, target_heads = target.hidden_size, target.num_attention_heads
    assert target_width is not None and target_heads is not None
    head_dim = target_width // target_heads
    if width is None:
        heads = max(target_heads // 8, LEAST_HEADS)
        width = target.mup_base_hidden_size or heads * head_dim
    heads, rest = divmod(width, head_dim)
    if rest or not heads:
        raise ConfigError(f"--width {width}: expected a multiple of the head dimension {head_dim}, which is kept")
    if width >= target_width:
        raise ConfigError(f"--width {width}: the target's hidden-size is {target_width}; the proxy must be narrower")
    dims: dict[str, Any] = {"hidden_size": width, "num_attention_heads": heads}
    base: dict[str, Any] = {"use_mup": True, "mup_base_hidden_size": width, "mup_base_num_attention_heads": heads}
    if target.num_kv_heads is not None and target.num_kv_heads != target_heads:
        dims["num_kv_heads"] = _kv_heads(target_heads // target.num_kv_heads, heads)
        base["mup_base_num_kv_heads"] = dims["num_kv_heads"]
    if target.intermediate_size is not None:
        dims["intermediate_size"], rest = divmod(target.intermediate_size * width, target_width)
        if rest:
            raise ConfigError(f"--width {width}: intermediate-size {target.intermediate_size} does not scale to it")
    if target.mup_depth_alpha:
        base["mup_base_num_layers"] = target.mup_base_num_layers or target.num_layers
    fields = NeoXArgs.__dataclass_fields__
    merged = merge([load_config(find_config(file)) for file in files], fields)
    values = override(merged, {**dims, **base}, fields, "--make").values
    for key in ("save", "load", "log_dir", "base_shapes_file", "hostfile"):
        values.pop(key, None)
    wanted = {key: value for key, value in base.items() if getattr(target, key) != value}
    return Proxy(values, wanted)


def _kv_heads(queries_per_key: int, heads: int) -> int:
    """Number of key-value heads: as many queries per key as in the target, or one key for all queries."""
    return max(heads // queries_per_key, 1) if heads % queries_per_key == 0 or heads < queries_per_key else heads


def dump(values: Mapping[str, Any], header: Sequence[str]) -> str:
    """The text of a configuration file."""
    spelt = {key.replace("_", "-"): value for key, value in values.items() if key != "config_files"}
    return "".join(f"# {line}\n" for line in header) + yaml.safe_dump(spelt, sort_keys=False)

"""Assignment of layers to pipeline stages, computed without processes and without weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from megatron.errors import ConfigError

# pipe-partition-method `type:<regex>` is matched against the names of GPT-NeoX's pipeline layers
_KINDS = {"embedding": "EmbeddingPipe", "final_norm": "NormPipe", "readout": "ParallelLinearPipe"}
_BLOCK_KIND = "ParallelTransformerLayerPipe"

Shape = tuple[int, ...]


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: `layers.3` for `layers.3.mlp.dense_h_to_4h.weight`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]


def _weights(layers: Sequence[str], shapes: Mapping[str, Shape], method: str) -> list[int]:
    """Weight of each layer in the balance of the stages."""
    kind, _, pattern = method.partition(":")
    if kind == "uniform":
        return [1] * len(layers)
    if kind == "parameters":
        totals = dict.fromkeys(layers, 0)
        for name, shape in shapes.items():
            totals[layer_of(name)] += math.prod(shape)
        return list(totals.values())
    if kind == "type" and pattern:
        try:
            regex = re.compile(pattern, re.IGNORECASE)
        except re.error as error:
            raise ConfigError(
                f"pipe-partition-method: {pattern!r} is not a valid regular expression: {error}"
            ) from error
        weights = [int(bool(regex.search(_KINDS.get(layer, _BLOCK_KIND)))) for layer in layers]
        if not any(weights):
            known = ", ".join([_BLOCK_KIND, *_KINDS.values()])
            raise ConfigError(f"pipe-partition-method: {pattern!r} matches no layer; the layer names are {known}")
        return weights
    raise ConfigError(
        f"pipe-partition-method: expected uniform, parameters or type:<regular expression>, got {method!r}"
    )


def stage_bounds(layers: Sequence[str], shapes: Mapping[str, Shape], stages: int, method: str) -> list[int]:
    """Balance the layers over the stages. Stage i holds layers [bounds[i], bounds[i + 1]).

    The heaviest stage is as light as possible.
    layers: names in order. shapes: global shapes by parameter name. method: value of pipe-partition-method.
    Raises ConfigError for an invalid method, or if a stage would have no layer.
    """
    from deepspeed.runtime.utils import partition_balanced

    weights = _weights(layers, shapes, method)
    bounds = [int(bound) for bound in partition_balanced(weights, stages)]
    held = [b - a for a, b in zip(bounds, bounds[1:])]
    if min(held) == 0:
        raise ConfigError(
            f"pipe-partition-method {method} assigns {held} layers to the {stages} stages of pipe-parallel-size, but "
            "every stage needs a layer: use fewer stages, or type:transformer"
        )
    return bounds


def stage_parameters(names: Sequence[str], stage_layers: Sequence[str], tied_readout: bool) -> list[str]:
    """Global names of the parameters of a stage with these layers. A tied readout holds the weight of the embedding."""
    held = set(stage_layers)
    tied = {"embedding.word_embeddings.weight"} if tied_readout and "readout" in held else set()
    return [name for name in names if layer_of(name) in held or name in tied]

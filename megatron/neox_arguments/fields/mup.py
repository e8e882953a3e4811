"""Maximal update parametrization (muP): GPT-NeoX's keys, and those that its `use-mup` lacks."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import supported


@dataclass(frozen=True, kw_only=True)
class NeoXArgsMup:
    """muP: base dimensions, multipliers, coordinate check."""

    use_mup: bool = supported(
        False,
        "Train in muP: hyperparameters tuned at the base width hold at this width. Said as false, the other"
        " mup keys may stay, unused: the run is their SP baseline.",
    )
    coord_check: bool = supported(
        False,
        "Run the coordinate check instead of training; writes pictures, CSV and JSON; exits 1 if it fails.",
    )
    save_base_shapes: bool = supported(
        False, "Write this model's shapes to `<base_shapes_file>.<rank>`, one file a rank, and exit."
    )
    base_shapes_file: str | None = supported(
        None, "Prefix of the base-shape files to write (save_base_shapes) or to read."
    )
    mup_init_scale: float = supported(1.0, "Multiplies the initial standard deviation of every matrix and embedding.")
    mup_attn_temp: float = supported(1.0, "Attention temperature: scores are divided by it.")
    mup_output_temp: float = supported(1.0, "Output temperature: logits are divided by it.")
    mup_embedding_mult: float = supported(1.0, "Multiplies the output of the token and position embeddings.")
    mup_rp_embedding_mult: float = supported(1.0, "Multiplies the relative position bias.")
    mup_width_scale: int = supported(
        2, "save_base_shapes: width ratio of the delta model, which tells widths from finite dimensions."
    )
    # Not in GPT-NeoX:
    mup_base_hidden_size: int | None = supported(
        None, "hidden_size of the base model (instead of base_shapes_file). Unset base sizes scale with it."
    )
    mup_base_num_attention_heads: int | None = supported(
        None, "num_attention_heads of the base model; unset: as many as in this model."
    )
    mup_base_num_kv_heads: int | None = supported(
        None, "num_kv_heads of the base model; unset: as many as in this model."
    )
    mup_base_intermediate_size: int | None = supported(
        None, "intermediate_size of the base model; unset: scales with hidden_size."
    )
    mup_base_num_layers: int | None = supported(None, "num_layers of the base model; unset: as in this model.")
    mup_depth_alpha: float = supported(
        0.0,
        "Depth rule: 0 off, 0.5 depth-muP, 1 CompleteP: residual branches x (layers / base layers)^-alpha.",
    )
    mup_readout_zero_init: bool = supported(False, "Start the readout at zero (untied readouts only).")
    mup_query_zero_init: bool = supported(False, "Start the query projections at zero.")
    mup_weight_decay_mode: Literal["scaled", "constant", "independent"] = supported(
        "scaled",
        "scaled: lr x weight_decay does not depend on width; constant: weight_decay everywhere;"
        " independent: p -= weight_decay * p, not times lr.",
    )
    mup_eps_scaling: bool = supported(True, "Divide Adam's eps of hidden matrices by the width multiplier.")
    coord_check_widths: list[int] | None = supported(
        None, "hidden_size values of the coordinate check; unset: at least four over an 8-fold range."
    )
    coord_check_seeds: int = supported(3, "Seeds of the coordinate check.")
    coord_check_lr: float | None = supported(None, "Learning rate of the coordinate check; unset: lr.")

"""Maximal update parametrization (muP): GPT-NeoX's keys, and those that its `use-mup` lacks."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import refused, supported
from megatron.neox_arguments.limits import Items, above, at_least, one_of
from megatron.neox_arguments.transfer import COMBINED, FREE, LADDER, MUP_FAMILY, TUNED, must_match


@dataclass(frozen=True, kw_only=True)
class NeoXArgsMup:
    """muP: base dimensions, multipliers, coordinate check."""

    use_mup: bool = supported(
        False,
        "Train in muP: hyperparameters tuned at the base width hold at this width. Said as false, the other"
        " mup keys may stay, unused: the run is their SP baseline.",
        transfer=must_match("one of the two is not in muP, and SP's optimum moves with the width"),
        recipe=(LADDER,),
    )
    coord_check: bool = supported(
        False,
        "Run the coordinate check instead of training; writes pictures, CSV and JSON; exits 1 if it fails.",
        transfer=FREE,
    )
    save_base_shapes: bool = supported(
        False, "Write this model's shapes to `<base_shapes_file>.<rank>`, one file a rank, and exit.", transfer=FREE
    )
    base_shapes_file: str | None = supported(
        None, "Prefix of the base-shape files to write (save_base_shapes) or to read.", mup_only=True, transfer=FREE
    )
    mup_init_scale: float = supported(
        1.0,
        "Multiplies the initial standard deviation of every matrix and embedding.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_attn_temp: float = supported(
        1.0,
        "Attention temperature: scores are divided by it.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_output_temp: float = supported(
        1.0,
        "Output temperature: logits are divided by it.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_embedding_mult: float = supported(
        1.0,
        "Multiplies the output of the token and position embeddings.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_rp_embedding_mult: float = refused(
        1.0,
        "Multiplies the relative position bias.",
        "the muP guide's key takes effect with pos_emb rpe, which is not supported yet; remove the key",
    )
    mup_width_scale: int = supported(
        2,
        "save_base_shapes: width ratio of the delta model, which tells widths from finite dimensions.",
        limit=at_least(2),
        mup_only=True,
        transfer=FREE,
    )
    # Not in GPT-NeoX:
    mup_base_hidden_size: int | None = supported(
        None,
        "hidden_size of the base model (instead of base_shapes_file). Unset base sizes scale with it.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
        recipe=(MUP_FAMILY, LADDER),
    )
    mup_base_num_attention_heads: int | None = supported(
        None,
        "num_attention_heads of the base model; unset: as many as in this model.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
    )
    mup_base_num_kv_heads: int | None = supported(
        None,
        "num_kv_heads of the base model; unset: as many as in this model.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
    )
    mup_base_intermediate_size: int | None = supported(
        None,
        "intermediate_size of the base model; unset: scales with hidden_size.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
    )
    mup_base_num_layers: int | None = supported(
        None,
        "num_layers of the base model; unset: as in this model.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
        recipe=(MUP_FAMILY,),
    )
    mup_depth_alpha: float = supported(
        0.0,
        "Depth rule: 0 off, 0.5 depth-muP, 1 CompleteP: residual branches x (layers / base layers)^-alpha.",
        limit=one_of(0, 0.5, 1),
        mup_only=True,
        transfer=must_match("the two have different depth rules"),
        recipe=(MUP_FAMILY,),
    )
    mup_readout_zero_init: bool = supported(False, "Start the readout at zero (untied readouts only).", mup_only=True)
    mup_query_zero_init: bool = supported(False, "Start the query projections at zero.", mup_only=True)
    mup_weight_decay_mode: Literal["scaled", "constant", "independent"] = supported(
        "scaled",
        "scaled: lr x weight_decay does not depend on width; constant: weight_decay everywhere;"
        " independent: p -= weight_decay * p, not times lr.",
        mup_only=True,
        transfer=must_match("the two scale weight decay differently"),
    )
    mup_eps_scaling: bool = supported(
        True,
        "Divide Adam's eps of hidden matrices by the width multiplier.",
        mup_only=True,
        transfer=must_match("the two scale Adam's eps differently"),
    )
    coord_check_widths: list[int] | None = supported(
        None,
        "hidden_size values of the coordinate check; unset: at least four over an 8-fold range.",
        limit=Items(int, at_least(1)),
        mup_only=True,
        transfer=FREE,
    )
    coord_check_seeds: int = supported(
        3, "Seeds of the coordinate check.", limit=at_least(1), mup_only=True, transfer=FREE
    )
    coord_check_lr: float | None = supported(
        None, "Learning rate of the coordinate check; unset: lr.", limit=above(0), mup_only=True, transfer=FREE
    )

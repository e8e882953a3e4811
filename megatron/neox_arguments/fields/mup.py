"""Keys of Maximal Update Parametrization (muP): those of GPT-NeoX, and additional ones."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import supported
from megatron.neox_arguments.limits import Items, above, at_least, one_of
from megatron.neox_arguments.transfer import COMBINED, FREE, LADDER, MUP_FAMILY, TUNED, must_match


@dataclass(kw_only=True)
class NeoXArgsMup:
    """Base dimensions, multipliers and coordinate check of muP."""

    use_mup: bool = supported(
        False,
        "Train in muP: hyperparameters tuned at the base width remain valid at this width. If set to false, other mup"
        " keys are ignored, and the run is the SP baseline.",
        transfer=must_match("one of the two models is in SP, whose optimum shifts with the width"),
        recipe=(LADDER,),
    )
    coord_check: bool = supported(
        False,
        "Run the coordinate check instead of training. Writes plots, CSV and JSON. The exit code is 1 if it fails.",
        transfer=FREE,
    )
    save_base_shapes: bool = supported(
        False, "Write the model's shapes to `<base_shapes_file>.<rank>`, one file per rank, and exit.", transfer=FREE
    )
    base_shapes_file: str | None = supported(
        None, "Prefix of the base-shape files to read, or to write with save_base_shapes.", mup_only=True, transfer=FREE
    )
    mup_init_scale: float = supported(
        1.0,
        "Factor of the initial standard deviation of every matrix and embedding.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_attn_temp: float = supported(
        1.0,
        "Attention temperature. Attention scores are divided by it.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_output_temp: float = supported(
        1.0,
        "Output temperature. Logits are divided by it.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_embedding_mult: float = supported(
        1.0,
        "Factor of the output of the token and position embeddings.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_rp_embedding_mult: float = supported(
        1.0,
        "With pos_emb rpe: factor of the relative position bias.",
        limit=above(0),
        mup_only=True,
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    mup_width_scale: int = supported(
        2,
        "With save_base_shapes: width of the delta model over that of the base. Dimensions that differ are widths.",
        limit=at_least(2),
        mup_only=True,
        transfer=FREE,
    )
    # These keys are not in GPT-NeoX.
    mup_base_hidden_size: int | None = supported(
        None,
        "hidden_size of the base model (instead of base_shapes_file).",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
        recipe=(MUP_FAMILY, LADDER),
    )
    mup_base_num_attention_heads: int | None = supported(
        None,
        "num_attention_heads of the base model. If unset, as in this model.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
    )
    mup_base_num_kv_heads: int | None = supported(
        None,
        "num_kv_heads of the base model. If unset, as in this model with grouped heads, else one per query head.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
    )
    mup_base_intermediate_size: int | None = supported(
        None,
        "intermediate_size of the base model. If unset, scaled in proportion to hidden_size.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
    )
    mup_base_num_layers: int | None = supported(
        None,
        "num_layers of the base model. If unset, as in this model.",
        limit=at_least(1),
        mup_only=True,
        transfer=COMBINED,
        recipe=(MUP_FAMILY,),
    )
    mup_depth_alpha: float = supported(
        0.0,
        "Depth rule: 0 off, 0.5 depth-muP, 1 CompleteP. Residual branches are scaled by (layers / base layers)^-alpha.",
        limit=one_of(0, 0.5, 1),
        mup_only=True,
        transfer=must_match("the two models use different depth rules"),
        recipe=(MUP_FAMILY,),
    )
    mup_readout_zero_init: bool = supported(
        False, "Initialise the readout to zero (untied readout only).", mup_only=True
    )
    mup_query_zero_init: bool = supported(False, "Initialise the query projections to zero.", mup_only=True)
    mup_weight_decay_mode: Literal["scaled", "constant", "independent"] = supported(
        "scaled",
        "scaled: lr x weight_decay does not depend on the width. constant: weight_decay is not scaled."
        " independent: p -= weight_decay * (rate / peak rate) * p, which does not depend on the peak rate.",
        mup_only=True,
        transfer=must_match("the two models scale weight decay differently"),
    )
    mup_eps_scaling: bool = supported(
        True,
        "Divide Adam's eps by the width multiplier, as gradients fall. A vector uses the ratio of its own dimension.",
        mup_only=True,
        transfer=must_match("the two models scale Adam's eps differently"),
    )
    coord_check_widths: list[int] | None = supported(
        None,
        "hidden_size values of the coordinate check. If unset, at least four values over an 8-fold range.",
        limit=Items(int, at_least(1)),
        mup_only=True,
        transfer=FREE,
    )
    coord_check_seeds: int = supported(
        3, "Number of seeds of the coordinate check.", limit=at_least(1), mup_only=True, transfer=FREE
    )
    coord_check_lr: float | None = supported(
        None, "Learning rate of the coordinate check. If unset, lr.", limit=above(0), mup_only=True, transfer=FREE
    )

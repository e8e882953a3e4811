"""Keys of the model: sizes, layers, positions and initialisation."""

from dataclasses import dataclass
from typing import Any, Literal

from megatron.neox_arguments.fields.sections import RopeScalingSection
from megatron.neox_arguments.keys import refused, satisfied, supported
from megatron.neox_arguments.limits import SHARE, above, at_least
from megatron.neox_arguments.transfer import (
    COMBINED,
    FAMILY,
    FREE,
    GROWS,
    LADDER,
    MUP_FAMILY,
    PRECISION,
    TPV,
    TUNED,
    must_match,
    shifts,
)

_INIT = Literal[
    "normal",
    "scaled_normal",
    "orthogonal",
    "scaled_orthogonal",
    "xavier_uniform",
    "xavier_normal",
    "wang_init",
    "small_init",
    "single_residual_scaled_normal",
]
_NO_SHARING = "layers cannot share weights; without the key every layer has its own weights, which is another model"
_SDPA = "scaled_dot_product_attention fuses scale, mask and softmax on devices that support it"


@dataclass(kw_only=True)
class NeoXArgsModel:
    """Shape and layers of the model."""

    precision: Literal["fp16", "fp32", "bfloat16"] | None = supported(
        None,
        "Precision of training. If unset, it follows from the `fp16` and `bf16` sections, else fp32.",
        transfer=PRECISION,
    )
    num_layers: int | None = supported(
        None, "Number of transformer blocks.", limit=at_least(1), transfer=COMBINED, recipe=(FAMILY,)
    )
    hidden_size: int | None = supported(None, "Width of the residual stream.", limit=at_least(1), transfer=GROWS)
    intermediate_size: int | None = supported(
        None,
        "Inner width of the MLP. If unset, 4 x hidden_size. With a gated activation each branch has a third of it"
        " (int(intermediate_size * 2/3) // 2, rounded up to mlp_multiple_of), as in GPT-NeoX.",
        limit=at_least(1),
        transfer=GROWS,
    )
    mlp_multiple_of: int = supported(
        1, "Round the inner width of the MLP up to a multiple of this value.", limit=at_least(1)
    )
    expansion_factor: float | None = supported(
        None, "Inner width of the MLP as a multiple of hidden_size, if intermediate_size is unset.", limit=above(0)
    )
    num_attention_heads: int | None = supported(
        None, "Number of query heads. Must divide hidden_size.", limit=at_least(1), transfer=GROWS
    )
    num_kv_heads: int | None = supported(
        None,
        "Number of key-value heads (grouped-query attention). Must divide num_attention_heads. If unset, equal to it.",
        limit=at_least(1),
        transfer=GROWS,
    )
    seq_length: int | None = supported(
        None,
        "Number of tokens per training sample.",
        limit=at_least(1),
        transfer=shifts("transfer across sequence lengths is observed, not derived", f"{TPV}, table 1"),
        recipe=(FAMILY, LADDER),
    )
    sliding_window_width: int | None = supported(
        None,
        "A token attends to itself and this many tokens before it, as in GPT-NeoX (Hugging Face's sliding_window is 1"
        " more). At longer sequences, one mask of seq_length^2 numbers replaces the flash kernel.",
        limit=at_least(1),
    )
    max_position_embeddings: int | None = supported(
        None,
        "Maximum number of positions, and rows of a learned position table. At least seq_length.",
        limit=at_least(1),
        transfer=FREE,
    )
    norm: Literal["layernorm", "rmsnorm", "non_parametric_layernorm", "scalenorm", "te_rmsnorm", "te_layernorm"] = (
        supported(
            "layernorm",
            "Type of the normalisation layers. scalenorm divides by the length of the vector and has one gain;"
            " non_parametric_layernorm has no gain and no bias.",
            refuse={
                "te_rmsnorm": "Transformer Engine is not supported; rmsnorm is the same function",
                "te_layernorm": "Transformer Engine is not supported; layernorm is the same function",
            },
            recipe=(FAMILY, LADDER),
        )
    )
    layernorm_fusion: bool = satisfied(
        False,
        "Request a fused LayerNorm.",
        "PyTorch's layer_norm is already a single kernel",
    )
    rmsnorm_fusion: bool = satisfied(False, "Request a fused RMSNorm.", "PyTorch's rms_norm is used")
    use_qk_layernorm: bool = supported(False, "Normalise the queries and keys of each head before attention.")
    layernorm_epsilon: float = supported(1e-5, "Epsilon of layernorm and non_parametric_layernorm.", limit=above(0))
    rms_norm_epsilon: float = supported(1e-8, "Epsilon of rmsnorm.", limit=above(0))
    scalenorm_epsilon: float = supported(1e-8, "Smallest length by which scalenorm divides.", limit=above(0))
    pos_emb: Literal["learned", "rotary", "sinusoidal", "rpe", "alibi", "none"] = supported(
        "learned",
        "Type of position information. sinusoidal adds fixed sines and cosines to the token embeddings.",
        recipe=(FAMILY,),
    )
    rpe_num_buckets: int = supported(
        32, "With pos_emb rpe: number of buckets of relative positions.", limit=at_least(2), recipe=(FAMILY,)
    )
    rpe_max_distance: int = supported(
        128,
        "With pos_emb rpe: all larger distances share the last bucket. Must be larger than rpe_num_buckets / 2.",
        limit=at_least(2),
        recipe=(FAMILY,),
    )
    opt_pos_emb_offset: int = supported(
        0,
        "With pos_emb learned: row of the table for the first position (OPT uses 2). max_position_embeddings counts the"
        " rows before it too.",
        limit=at_least(0),
    )
    no_weight_tying: bool = supported(False, "Use a separate readout matrix instead of the embedding matrix.")
    attention_config: list[Any] | None = satisfied(
        None,
        "Attention type of each layer, for example [[[flash], 12]]. Only global and flash are supported; both are full"
        " causal attention.",
        "every layer uses full causal attention with scaled_dot_product_attention",
    )
    sparsity_config: dict[str, Any] | None = refused(
        None,
        "Layout of sparse attention.",
        neutral=({},),
        feature="sparse_attention",
    )
    num_unique_layers: int | None = refused(
        None,
        "Number of layers with separate weights.",
        _NO_SHARING,
    )
    param_sharing_style: str = refused(
        "grouped",
        "Order of the layers that share weights.",
        _NO_SHARING,
    )
    make_vocab_size_divisible_by: int = supported(
        128,
        "Pad the rows of the embedding to a multiple of this value times the tensor-parallel size."
        " Padded rows have probability 0.",
        limit=at_least(1),
        transfer=FREE,
    )
    activation: Literal[
        "gelu", "gelu_tanh", "geglu", "relu", "softsign", "swish", "mish", "silu", "reglu", "swiglu", "bilinear", "glu"
    ] = supported(
        "gelu",
        "Activation function of the MLP. geglu, swiglu, reglu, bilinear and glu are gated. gelu_tanh is GELU's tanh"
        " approximation.",
        recipe=(FAMILY, LADDER),
    )
    use_flashattn_swiglu: bool = satisfied(
        False,
        "Request flash-attn's fused SwiGLU.",
        "PyTorch's kernels compute the same function",
    )
    scaled_upper_triang_masked_softmax_fusion: bool = satisfied(False, "Request a fused causal softmax.", _SDPA)
    scaled_masked_softmax_fusion: bool = satisfied(False, "Request a fused masked softmax.", _SDPA)
    bias_gelu_fusion: bool = supported(
        False,
        "With activation gelu: train with GELU's tanh approximation, which is what GPT-NeoX's fused kernel computes."
        " The same as activation: gelu_tanh.",
        recipe=(FAMILY, LADDER),
    )
    bias_dropout_fusion: bool = satisfied(
        False,
        "Request fused bias and dropout.",
        "PyTorch computes the same function",
    )
    rope_fusion: bool = satisfied(
        False,
        "Request a fused rotary embedding.",
        "PyTorch computes the same function",
    )
    fused_kernels_build_path: str | None = refused(
        None, "Folder in which fused kernels are built.", "no kernels are compiled; remove the key"
    )
    fp16_lm_cross_entropy: bool = refused(
        False, "Compute the loss in half precision.", "the loss is always computed in fp32; remove the key"
    )
    init_method_std: float = supported(
        0.02,
        "Initial standard deviation of init_method normal, scaled_normal and single_residual_scaled_normal.",
        limit=at_least(0),
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    apply_query_key_layer_scaling: bool = refused(
        False,
        "Divide attention scores by the layer number.",
        "not needed, because the softmax is computed in fp32; the scores are the same without the key",
    )
    use_cpu_initialization: bool = satisfied(
        False,
        "Initialise weights on the CPU.",
        "a seed gives the same initial weights on every device",
    )
    attention_softmax_in_fp32: bool = satisfied(
        False,
        "Request an fp32 softmax in attention.",
        "scaled_dot_product_attention computes the softmax in fp32",
    )
    rotary_pct: float = supported(1.0, "Share of the dimensions of each head that rotate.", limit=SHARE)
    rotary_emb_base: int = supported(10000, "Base of the rotary embedding's frequencies.", limit=at_least(1))
    rope_scaling: dict[str, Any] | None = supported(
        None,
        "Stretch the rotary frequencies for longer contexts than those of the pretraining, as in a Hugging Face model:"
        " {rope_type: llama3, factor: 8.0, original_max_position_embeddings: 8192}.",
        section=RopeScalingSection,
    )
    rotary_save_freqs_buffer: bool = refused(
        False,
        "Store the rotary frequencies in checkpoints.",
        "the frequencies are recomputed from rotary_emb_base; remove the key",
    )
    init_method: _INIT = supported(
        "normal",
        "Initialisation of all matrices except the output projections.",
        transfer=must_match("the two models use different initialisation formulas"),
    )
    output_layer_init_method: _INIT = supported(
        "scaled_normal",
        "Initialisation of the output projections of attention and MLP.",
        transfer=must_match("the two models use different initialisation formulas"),
    )
    gmlp_attn_dim: int = refused(64, "Width of gMLP's attention.", feature="gmlp")
    gpt_j_residual: bool = supported(False, "Parallel residual: x + attention(norm1(x)) + mlp(norm2(x)).")
    gpt_j_tied: bool = supported(False, "With gpt_j_residual: attention and MLP share one norm.")
    use_bias_in_norms: bool = supported(True, "Use a bias in LayerNorm.")
    use_bias_in_attn_linear: bool = supported(True, "Use biases in the linear layers of attention.")
    use_bias_in_mlp: bool = supported(True, "Use biases in the linear layers of the MLP.")
    soft_prompt_tuning: dict[str, Any] | None = refused(
        None,
        "Train a soft prompt only.",
        "soft prompts are not supported; without the key all weights are trained",
        neutral=({}, {"enabled": False}),
    )
    mamba_selective_scan_fusion: bool = refused(False, "Fused selective scan.", feature="mamba")
    mamba_causal_conv_fusion: bool = refused(False, "Fused causal convolution.", feature="mamba")
    mamba_inner_func_fusion: bool = refused(False, "Fused Mamba block.", feature="mamba")
    mamba_selective_fp32_params: bool = refused(True, "Keep Mamba's A and D in fp32.", feature="mamba")
    mamba_use_bias_in_conv: bool = refused(True, "Bias in Mamba's convolution.", feature="mamba")
    mamba_use_bias_in_linears: bool = refused(False, "Biases in Mamba's linear layers.", feature="mamba")
    output_layer_parallelism: Literal["column"] = satisfied(
        "column", "How the readout is sharded.", "the readout is always sharded over the vocabulary"
    )
    serve_model_weights: bool = refused(False, "Serve weights to an inference process.", feature="preferences")
    weight_server_port: int | list[int] = refused(6000, "Port of the weight server.", feature="preferences")
    online_dataserver_ips: str | list[str] = refused(
        "localhost", "Hosts of the online data server.", feature="preferences"
    )
    online_dataserver_ports: int | list[int] = refused(10000, "Ports of the online data server.", feature="preferences")
    te_columnparallel: bool = refused(False, "Transformer Engine column-parallel layers.", feature="transformer_engine")
    te_rowparallel: bool = refused(False, "Transformer Engine row-parallel layers.", feature="transformer_engine")
    te_layernorm_mlp: bool = refused(False, "Transformer Engine fused norm and MLP.", feature="transformer_engine")
    te_mha: bool = refused(False, "Transformer Engine attention.", feature="transformer_engine")
    te_fp8_format: Literal["e4m3", "hybrid"] = refused("hybrid", "FP8 format.", feature="transformer_engine")
    te_fp8_wgrad: bool = refused(True, "Weight gradients in FP8.", feature="transformer_engine")
    te_fp8_amax_history_len: int = refused(1, "Length of the FP8 amax history.", feature="transformer_engine")
    te_fp8_amax_compute_algo: str = refused("most_recent", "How the FP8 amax is chosen.", feature="transformer_engine")
    te_fp8_margin: int = refused(0, "Margin of the FP8 scale.", feature="transformer_engine")
    te_fp8_mha: bool = refused(False, "FP8 attention.", feature="transformer_engine")
    dim_att: int | None = refused(None, "Attention width of RWKV.", feature="rwkv")
    head_size: int | None = refused(None, "Head size of RWKV.", feature="rwkv")
    ffn_dim: int | None = refused(None, "MLP width of RWKV.", feature="rwkv")

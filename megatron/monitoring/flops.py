"""Floating-point operations of training, and peak rates of GPUs, for TFLOP/s and MFU."""

from __future__ import annotations

from megatron.architecture import MixtureOfExperts

# Dense matrix multiplication in bf16 with fp32 accumulation (fp16 for V100 and T4, which have no bf16),
# without sparsity, in TFLOP/s, from the vendors' data sheets. If a sheet gives only the figure with sparsity,
# half of it is used. Keys are parts of the device name that the driver reports. The longest matching key is used:
# "H100 PCIe" takes precedence over "H100".
PEAK_TFLOPS: dict[str, float] = {
    "V100": 125.0,  # Tesla V100 data sheet (SXM2)
    "T4": 65.0,  # T4 data sheet
    "A100": 312.0,  # A100 data sheet, PCIe and SXM
    "A800": 312.0,  # as A100
    "A40": 149.7,  # A40 data sheet
    "A30": 165.0,  # A30 data sheet
    "A10": 125.0,  # A10 data sheet
    "RTX A6000": 154.8,  # NVIDIA Ampere GA102 white paper
    "RTX 3090": 71.0,  # NVIDIA Ampere GA102 white paper
    "RTX 4090": 165.2,  # NVIDIA Ada white paper
    "L4": 121.0,  # L4 data sheet, 242 with sparsity
    "L40S": 362.0,  # L40S data sheet
    "H100": 989.4,  # H100 data sheet, SXM
    "H800": 989.4,  # as H100 SXM
    "H100 PCIe": 756.0,  # H100 PCIe product brief
    "H100 NVL": 835.0,  # H100 NVL data sheet, 1,671 with sparsity
    "H200": 989.4,  # H200 data sheet, SXM
    "H200 NVL": 835.5,  # H200 data sheet, 1,671 with sparsity
    "GH200": 989.4,  # GH200 data sheet
    "B200": 2250.0,  # Blackwell architecture brief, HGX B200, 4,500 with sparsity
    "GB200": 2500.0,  # GB200 NVL72 data sheet, per GPU, 5,000 with sparsity
    "MI250X": 383.0,  # AMD Instinct MI250X data sheet (both dies)
    "MI300X": 1307.4,  # AMD Instinct MI300X data sheet
}


def peak_tflops(device_name: str) -> float | None:
    """Peak rate in TFLOP/s of a device, by its torch.cuda.get_device_name(). None if it is not listed."""
    words = device_name.replace("-", " ").replace("_", " ").split()
    # Match whole words: A10 must not match A100.
    fitting = [key for key in PEAK_TFLOPS if all(word in words for word in key.split())]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def flops_per_token(
    *,
    num_layers: int,
    hidden_size: int,
    num_attention_heads: int,
    num_kv_heads: int,
    head_dim: int,
    ffn_hidden_size: int,
    gated: bool,
    vocab_size: int,
    seq_length: int,
    experts: MixtureOfExperts | None = None,
    sliding_window: int | None = None,
) -> float:
    """Floating-point operations per training token: forward and backward, three times the forward matrices.

    Counted as in PaLM (arXiv:2204.02311, appendix B): 2 operations per multiply-add, and attention scores over the
    whole sequence, although the causal mask lets a kernel skip half of them. With a sliding window, a token has scores
    for at most `sliding_window` + 1 tokens. Look-ups, norms, activations and the
    recomputation of activation checkpointing do not count. For multi-head attention this gives 6 N + 12 L H Q T,
    where N is the number of parameters of all matrices that multiply (with the readout, without the embedding).
    experts: a token uses `top_k` of them and the router, in the blocks that have experts.
    gated: the MLP has three matrices, gate, up and down (SwiGLU), instead of two.
    """
    attention_width = num_attention_heads * head_dim
    qkv_and_output = hidden_size * (2 * attention_width + 2 * num_kv_heads * head_dim)
    mlp = (3 if gated else 2) * hidden_size * ffn_hidden_size
    seen = seq_length if sliding_window is None else min(seq_length, sliding_window + 1)
    scores_and_values = 2 * seen * attention_width
    mlps = num_layers * mlp
    if experts is not None:
        mlps += experts.blocks(num_layers) * ((experts.top_k - 1) * mlp + hidden_size * experts.num_experts)
    multiply_adds = num_layers * (qkv_and_output + scores_and_values) + mlps + hidden_size * vocab_size
    return 3.0 * 2.0 * multiply_adds

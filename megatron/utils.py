"""GPT-NeoX's module of this name. Its functions are in megatron.gpt_neox."""

from megatron.gpt_neox import print_rank_0, setup_for_inference_or_eval

__all__ = ["print_rank_0", "setup_for_inference_or_eval"]

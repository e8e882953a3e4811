"""Models of the GPT-NeoX family, as a flat list of layers."""

from megatron.model.config import GPTConfig
from megatron.model.gpt import GPT

__all__ = ["GPT", "GPTConfig"]

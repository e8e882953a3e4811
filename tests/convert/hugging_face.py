"""Compare one of our models with a folder that transformers loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.model import GPT
from megatron.sampling import Sampling, stream_tokens
from tests.model.helpers import tokens

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="pip install -e .[hf]")

GREEDY = 20


def load(folder: Path) -> Any:
    """The model in `folder`, as its user loads it. Missing and additional tensors are errors."""
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return loaded.eval()


def greedy(model: GPT, prompt: torch.Tensor, use_cache: bool, count: int = GREEDY) -> list[list[int]]:
    sampling = Sampling(maximum_tokens=count, use_cache=use_cache)
    return torch.stack(list(stream_tokens(model, prompt, sampling)), dim=1).tolist()


@torch.no_grad()
def assert_same_model(ours: GPT, theirs: Any, length: int = 24, *, text: bool = True) -> None:
    """Logits within 1e-4 with equal maxima, and equal greedy text with and without a cache."""
    x = tokens(3, length, vocab=ours.config.vocab_size)
    a, b = ours(x), theirs(x).logits
    assert a.std() > 0.05, "equality of tiny logits would prove little"
    assert float((a - b).abs().max()) < 1e-4
    assert torch.equal(a.argmax(-1), b.argmax(-1))
    if not text:
        return
    prompt = x[:, :4]
    for use_cache in (True, False):
        written = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=GREEDY,
            use_cache=use_cache,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert written[:, 4:].tolist() == greedy(ours, prompt, use_cache)

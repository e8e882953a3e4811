"""Logits, gradients and greedy text equal those of Hugging Face's models with the same weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron.architecture import MixtureOfExperts
from megatron.model import GPT
from megatron.model.alibi import alibi_slopes
from megatron.model.moe import balance_loss
from megatron.model.relative_position import position_buckets
from megatron.sampling import generate_tokens
from tests.model.helpers import VOCAB, build, config, tokens

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="pip install -e .[hf]")

HIDDEN, HEADS, FFN, LAYERS, LENGTH = 32, 4, 48, 3, 16
State = dict[str, Tensor]


def gpt_neox(state: State) -> State:
    """Map the names of GPTNeoXForCausalLM to ours, for weights and for gradients."""
    readout = "lm_head.weight" if "lm_head.weight" in state else "embed_out.weight"  # before transformers 5
    ours = {
        "embedding.word_embeddings.weight": state["gpt_neox.embed_in.weight"],
        "readout.weight": state[readout],
    }
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = state[f"gpt_neox.final_layer_norm.{kind}"]
        for i in range(LAYERS):
            for part in (
                "input_layernorm",
                "post_attention_layernorm",
                "attention.query_key_value",  # with one query per key-value head both are ordered by head: q, k, v
                "attention.dense",
                "mlp.dense_h_to_4h",
                "mlp.dense_4h_to_h",
            ):
                ours[f"layers.{i}.{part}.{kind}"] = state[f"gpt_neox.layers.{i}.{part}.{kind}"]
    return ours


def llama(state: State, kv_heads: int, tied: bool) -> State:
    """Map the names of LlamaForCausalLM to ours: q, k and v interleaved by key-value head, up before gate."""
    ours = {
        "embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "final_norm.weight": state["model.norm.weight"],
    }
    if not tied:
        ours["readout.weight"] = state["lm_head.weight"]
    for i in range(LAYERS):
        theirs, here = f"model.layers.{i}", f"layers.{i}"
        q, k, v = (state[f"{theirs}.self_attn.{x}_proj.weight"] for x in "qkv")
        by_head = [x.reshape(kv_heads, -1, HIDDEN) for x in (q, k, v)]
        ours[f"{here}.attention.query_key_value.weight"] = torch.cat(by_head, dim=1).reshape(-1, HIDDEN)
        ours[f"{here}.attention.dense.weight"] = state[f"{theirs}.self_attn.o_proj.weight"]
        up, gate = (state[f"{theirs}.mlp.{x}_proj.weight"] for x in ("up", "gate"))
        ours[f"{here}.mlp.dense_h_to_4h.weight"] = torch.cat((up, gate))
        ours[f"{here}.mlp.dense_4h_to_h.weight"] = state[f"{theirs}.mlp.down_proj.weight"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            ours[f"{here}.{norm}.weight"] = state[f"{theirs}.{norm}.weight"]
    return ours


def mixtral(state: State, kv_heads: int) -> State:
    """Map the names of MixtralForCausalLM (since transformers 5) to ours: as Llama, with the stacks of the experts."""
    mlps = {
        f"model.layers.{i}.mlp.{x}_proj.weight": torch.empty(0) for i in range(LAYERS) for x in ("up", "gate", "down")
    }
    ours = llama({**state, **mlps}, kv_heads, tied=False)
    for i in range(LAYERS):
        theirs, here = f"model.layers.{i}.mlp", f"layers.{i}.mlp"
        for name in ("dense_h_to_4h", "dense_4h_to_h"):
            del ours[f"{here}.{name}.weight"]
        ours[f"{here}.router.weight"] = state[f"{theirs}.gate.weight"]
        gate, up = state[f"{theirs}.experts.gate_up_proj"].chunk(2, dim=1)
        ours[f"{here}.experts.dense_h_to_4h"] = torch.cat((up, gate), dim=1)
        ours[f"{here}.experts.dense_4h_to_h"] = state[f"{theirs}.experts.down_proj"]
    return ours


def randomise(model: torch.nn.Module) -> None:
    """Draw every parameter at random, large enough that attention is far from uniform."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.25)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)


def gradients(model: torch.nn.Module) -> State:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(model: GPT, oracle: Any, translate) -> None:  # type: ignore[no-untyped-def]
    model.load_state_dict(translate(dict(oracle.named_parameters())), strict=True)
    x = tokens(3, LENGTH)
    ours, theirs = model(x), oracle(x).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.std() > 0.3  # equality of tiny logits would prove little
    cotangent = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5)) / ours[0].numel() ** 0.5
    (ours * cotangent).sum().backward()
    (theirs * cotangent).sum().backward()
    expected = translate(gradients(oracle))
    for name, gradient in gradients(model).items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 1e-5, (name, float(error))
    prompt = x[:, :4]
    greedy = oracle.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=8,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert generate_tokens(model, prompt, maximum_tokens=8) == greedy[:, 4:].tolist()


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox(parallel):
    oracle = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=FFN,
            max_position_embeddings=LENGTH,
            use_parallel_residual=parallel,
        )  # defaults: a quarter of each head is rotated, gelu is exact, the readout is not tied
    ).eval()
    randomise(oracle)
    model = build(
        config(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            ffn_hidden_size=FFN,
            padded_vocab_size=VOCAB,
            pos_emb="rotary",
            rotary_pct=0.25,
            parallel_residual=parallel,
            tied_readout=False,
        )
    )
    assert_same(model, oracle, gpt_neox)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_llama(tied, kv_heads):
    oracle = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            intermediate_size=FFN,
            max_position_embeddings=LENGTH,
            rms_norm_eps=1e-6,
            tie_word_embeddings=tied,
        )
    ).eval()
    randomise(oracle)
    model = build(
        config(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            num_kv_heads=kv_heads,
            ffn_hidden_size=FFN,
            padded_vocab_size=VOCAB,
            norm="rmsnorm",
            norm_epsilon=1e-6,
            activation="swiglu",
            attention_bias=False,
            mlp_bias=False,
            tied_readout=tied,
        )
    )
    assert_same(model, oracle, lambda state: llama(state, kv_heads, tied))


@pytest.mark.parametrize("window", [1, 4, LENGTH])
def test_mistral(window):
    """Hugging Face counts the token itself as part of the window: sliding_window is our window plus 1."""
    oracle = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            intermediate_size=FFN,
            max_position_embeddings=LENGTH,
            rms_norm_eps=1e-6,
            sliding_window=window + 1,
            tie_word_embeddings=False,
        )
    ).eval()
    randomise(oracle)
    model = build(
        config(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            num_kv_heads=2,
            ffn_hidden_size=FFN,
            padded_vocab_size=VOCAB,
            norm="rmsnorm",
            norm_epsilon=1e-6,
            activation="swiglu",
            attention_bias=False,
            mlp_bias=False,
            tied_readout=False,
            sliding_window=window,
        )
    )
    assert_same(model, oracle, lambda state: llama(state, 2, tied=False))


def mpt(state: dict[str, Any]) -> dict[str, Any]:
    """MPT fuses all queries, all keys, all values."""
    dim = HIDDEN // HEADS
    ours = {"embedding.word_embeddings.weight": state["transformer.wte.weight"]}
    for i in range(LAYERS):
        block = f"transformer.blocks.{i}"
        fused = state[f"{block}.attn.Wqkv.weight"].unflatten(0, (3, HEADS, dim))
        ours |= {
            f"layers.{i}.input_layernorm.weight": state[f"{block}.norm_1.weight"],
            f"layers.{i}.attention.query_key_value.weight": fused.transpose(0, 1).flatten(0, 2),
            f"layers.{i}.attention.dense.weight": state[f"{block}.attn.out_proj.weight"],
            f"layers.{i}.post_attention_layernorm.weight": state[f"{block}.norm_2.weight"],
            f"layers.{i}.mlp.dense_h_to_4h.weight": state[f"{block}.ffn.up_proj.weight"],
            f"layers.{i}.mlp.dense_4h_to_h.weight": state[f"{block}.ffn.down_proj.weight"],
        }
    return ours | {"final_norm.weight": state["transformer.norm_f.weight"]}


def test_mpt_with_alibi():
    oracle = transformers.MptForCausalLM(
        transformers.MptConfig(
            d_model=HIDDEN,
            n_heads=HEADS,
            n_layers=LAYERS,
            expansion_ratio=4,
            max_seq_len=LENGTH,
            vocab_size=VOCAB,
            attn_config={"alibi": True},
        )
    ).eval()
    randomise(oracle)
    model = build(
        config(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            ffn_hidden_size=4 * HIDDEN,
            padded_vocab_size=VOCAB,
            pos_emb="alibi",
            norm_bias=False,
            attention_bias=False,
            mlp_bias=False,
        )
    )
    assert_same(model, oracle, mpt)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 8, 12, 25, 40, 64, 96])
def test_slopes_are_those_of_bloom(heads):
    """BLOOM adds slope * position of the key, which differs from ALiBi by a number per query."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    bias = build_alibi_tensor(torch.ones(1, 4), heads, torch.float32)
    torch.testing.assert_close(torch.tensor(alibi_slopes(heads)), bias[:, 0, 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("buckets, distance", [(32, 128), (8, 20), (16, 9), (5, 100)])
def test_buckets_are_those_of_t5(buckets, distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(3 * distance)
    theirs = T5Attention._relative_position_bucket(-distances, False, buckets, distance)
    assert torch.equal(position_buckets(distances, buckets, distance), theirs)


NEEDS_5 = pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="another layout of the experts")


@NEEDS_5
@pytest.mark.parametrize("k", [2, 3])
def test_mixtral(k):
    kv_heads = 2
    oracle = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            intermediate_size=FFN,
            num_local_experts=4,
            num_experts_per_tok=k,
            max_position_embeddings=LENGTH,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            sliding_window=None,
        )
    ).eval()
    randomise(oracle)
    model = build(
        config(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            num_kv_heads=kv_heads,
            ffn_hidden_size=FFN,
            padded_vocab_size=VOCAB,
            norm="rmsnorm",
            norm_epsilon=1e-6,
            activation="swiglu",
            attention_bias=False,
            mlp_bias=False,
            tied_readout=False,
            experts=MixtureOfExperts(num_experts=4, top_k=k, router="topk", normalize=True),
        )
    )
    assert_same(model, oracle, lambda state: mixtral(state, kv_heads))


@NEEDS_5
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_balancing_loss_of_mixtral(k):
    """Transformers sums f over the k choices instead of averaging it: its loss is k times ours."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(2))
    theirs = load_balancing_loss_func((logits[0],), num_experts=4, top_k=k)
    torch.testing.assert_close(balance_loss(logits, logits.topk(k, -1).indices), theirs / k)

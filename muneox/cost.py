"""What a model costs before it is trained."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.neox_arguments import NeoXArgs


@dataclass(frozen=True)
class Cost:
    """A run's size before it is trained."""

    params: int
    tokens: int
    flops: float


def cost_of(args: NeoXArgs, vocab_size: int | None = None) -> Cost:
    """Parameters, tokens and training FLOPs (see megatron.monitoring.flops) of a configuration.

    vocab_size: the tokenizer's where unset, which its files must be there for.
    """
    from megatron.tokenizer import build_tokenizer
    from megatron.training.from_args import model_plan
    from megatron.training.report import flops_a_token

    args.require("train_iters", "train_batch_size")
    if vocab_size is None:
        vocab_size = build_tokenizer(args.tokenizer_type, args.vocab_file, args.merge_file).vocab_size
    plan = model_plan(args, vocab_size)
    tokens = args.train_iters * args.train_batch_size * args.seq_length
    return Cost(plan.num_parameters, tokens, flops_a_token(plan) * tokens)

"""Values that follow from others, as pure functions of numbers."""

from __future__ import annotations

from megatron.architecture import GATED_ACTIVATIONS


def ffn_hidden_size(
    hidden_size: int,
    intermediate_size: int | None = None,
    expansion_factor: float | None = None,
    activation: str = "gelu",
    mlp_multiple_of: int = 1,
) -> int:
    """Width between the MLP's two matrices (of each branch, where the activation is gated).

    GPT-NeoX's meaning of the keys: a gated MLP divides the nominal width by three, so that its up and gate
    matrices together hold as many weights as they would ungated; the result is rounded up to
    `mlp_multiple_of`. LLaMA 7B: intermediate_size 32768, multiple 256, swiglu -> 11008.
    """
    if intermediate_size:
        width = intermediate_size
    elif expansion_factor:
        width = int(expansion_factor * hidden_size)
    else:
        width = 4 * hidden_size
    if activation in GATED_ACTIVATIONS:
        width = int(width * 2 / 3) // 2
    return -(-width // mlp_multiple_of) * mlp_multiple_of


class BatchSizeError(ValueError):
    """The batch sizes contradict each other; the message says which values agree."""


def batch_sizes(
    train: int | None, micro: int | None, steps: int | None, dp: int | None
) -> tuple[int, int, int, int] | None:
    """Complete (train batch, micro batch, accumulation steps, data-parallel size).

    train = micro * steps * dp, so one of the four may be missing; with fewer, accumulation steps and then
    data-parallel size are 1. None where neither a train nor a micro batch is given. Raises BatchSizeError.
    """
    if train is None:
        if micro is None:
            return None
        return micro * (steps or 1) * (dp or 1), micro, steps or 1, dp or 1
    if micro is None:
        steps, dp = steps or 1, dp or 1
        micro = _divide(train, steps * dp, f"gradient_accumulation_steps {steps} x data-parallel size {dp}")
    elif steps is None:
        dp = dp or 1
        steps = _divide(train, micro * dp, f"train_micro_batch_size_per_gpu {micro} x data-parallel size {dp}")
    elif dp is None:
        dp = _divide(
            train,
            micro * steps,
            f"train_micro_batch_size_per_gpu {micro} x gradient_accumulation_steps {steps}",
        )
    elif train != micro * steps * dp:
        raise BatchSizeError(
            f"train_batch_size {train} is not train_micro_batch_size_per_gpu {micro} x"
            f" gradient_accumulation_steps {steps} x data-parallel size {dp} = {micro * steps * dp};"
            f" use train_batch_size {micro * steps * dp}, or leave one of the three out"
        )
    return train, micro, steps, dp


def _divide(train: int, by: int, what: str) -> int:
    if train % by:
        raise BatchSizeError(f"train_batch_size {train} is no multiple of {what}; use {_multiples(train, by)}")
    return train // by


def _multiples(number: int, step: int) -> str:
    """The multiples of `step` on both sides of `number`."""
    below, above = number // step * step, (number // step + 1) * step
    return f"{below} or {above}" if below else f"{above}"


def base_head_counts(heads: int, kv_heads: int, base_heads: int | None, base_kv_heads: int | None) -> tuple[int, int]:
    """Query and key-value heads of the base model, where a key may leave them open.

    heads, kv_heads: of the target. An open number of query heads is the target's; an open number of key-value heads
    is the target's where heads are grouped, else one for each query head.
    """
    base_heads = base_heads or heads
    if base_kv_heads is None:
        base_kv_heads = kv_heads if kv_heads != heads else base_heads
    return base_heads, base_kv_heads

"""Compute derived sizes from numbers: MLP width, batch sizes and base head counts."""

from __future__ import annotations

from megatron.architecture import GATED_ACTIVATIONS


def ffn_hidden_size(
    hidden_size: int,
    intermediate_size: int | None = None,
    expansion_factor: float | None = None,
    activation: str = "gelu",
    mlp_multiple_of: int = 1,
) -> int:
    """Return the inner width of the MLP, or of each branch if the activation is gated.

    The keys have GPT-NeoX's meaning. A gated MLP uses a third of the nominal width, because its up and gate matrices
    together then have as many weights as an ungated MLP. The result is rounded up to a multiple of `mlp_multiple_of`.
    LLaMA 7B: intermediate_size 32768, multiple 256, swiglu -> 11008.
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
    """The batch sizes contradict each other. The message names values that agree."""


def batch_sizes(
    train: int | None, micro: int | None, steps: int | None, dp: int | None
) -> tuple[int, int, int, int] | None:
    """Return (train batch, micro batch, accumulation steps, data-parallel size) with missing values filled in.

    train = micro * steps * dp, so any one of the four can be derived from the others. If more are missing, the
    accumulation steps and then the data-parallel size default to 1. Returns None if neither train nor micro is given.
    Raises BatchSizeError if the values contradict each other.
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
            f" use train_batch_size {micro * steps * dp}, or remove one of the three"
        )
    return train, micro, steps, dp


def _divide(train: int, by: int, what: str) -> int:
    if train % by:
        raise BatchSizeError(f"train_batch_size {train} is not a multiple of {what}; use {_multiples(train, by)}")
    return train // by


def _multiples(number: int, step: int) -> str:
    """The multiples of `step` directly below and above `number`, in words."""
    below, above = number // step * step, (number // step + 1) * step
    return f"{below} or {above}" if below else f"{above}"


def base_head_counts(heads: int, kv_heads: int, base_heads: int | None, base_kv_heads: int | None) -> tuple[int, int]:
    """Return the query and key-value heads of the base model, filling in missing values.

    heads, kv_heads: head counts of the target. Missing base_heads: the target's. Missing base_kv_heads: the target's
    if its heads are grouped, else one per query head.
    """
    base_heads = base_heads or heads
    if base_kv_heads is None:
        base_kv_heads = kv_heads if kv_heads != heads else base_heads
    return base_heads, base_kv_heads

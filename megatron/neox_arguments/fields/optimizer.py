"""Optimizer and learning-rate schedule."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import refused, supported
from megatron.neox_arguments.limits import SHARE, at_least, one_of
from megatron.neox_arguments.transfer import (
    COMBINED,
    FAMILY,
    FREE,
    LADDER,
    SCHEDULE,
    SIZE_LADDER,
    TUNED,
    must_match,
    shifts,
)

_USE = "use adam (AdamW) or sgd"


@dataclass(frozen=True, kw_only=True)
class NeoXArgsOptimizer:
    """Optimizer; see also `optimizer`, `zero_optimization` and `weight_decay`."""

    optimizer_type: Literal[
        "adam", "adamw", "onebitadam", "cpu_adam", "cpu_torch_adam", "sm3", "madgrad_wd", "sgd", "lion"
    ] = supported(
        "adam",
        "Same as optimizer.type. adam has decoupled weight decay, as GPT-NeoX's fused Adam: it is adamw.",
        refuse={
            "onebitadam": f"1-bit Adam is not supported; {_USE}",
            "cpu_adam": f"optimizer offload is not supported; {_USE}",
            "cpu_torch_adam": f"optimizer offload is not supported; {_USE}",
            "sm3": f"SM3 is not supported and has no muP rule here; {_USE}",
            "madgrad_wd": f"MADGRAD is not supported and has no muP rule here; {_USE}",
            "lion": f"Lion is not supported yet; {_USE}",
        },
        same_as="optimizer.type",
        transfer=must_match("every optimizer has a scaling rule and an optimum of its own"),
        recipe=(FAMILY, LADDER),
    )
    use_bnb_optimizer: bool = refused(
        False, "Use bitsandbytes' 8-bit Adam.", "bitsandbytes is not supported; use optimizer type adam"
    )
    zero_stage: int | list[int] | Literal["all"] | None = supported(
        None,
        "ZeRO stage; same as zero_optimization.stage. 0 to 3; 2 and 3 without a pipeline.",
        limit=one_of(0, 1, 2, 3),
        same_as="zero_optimization.stage",
        fallback=0,
        transfer=FREE,
    )
    zero_reduce_scatter: bool | None = supported(
        None,
        "Same as zero_optimization.reduce_scatter.",
        same_as="zero_optimization.reduce_scatter",
        fallback=True,
        transfer=FREE,
    )
    zero_contiguous_gradients: bool | None = supported(
        None,
        "Same as zero_optimization.contiguous_gradients.",
        same_as="zero_optimization.contiguous_gradients",
        fallback=False,
        transfer=FREE,
    )
    zero_reduce_bucket_size: int | None = supported(
        None,
        "Same as zero_optimization.reduce_bucket_size, in elements.",
        limit=at_least(1),
        same_as="zero_optimization.reduce_bucket_size",
        fallback=500_000_000,
        transfer=FREE,
    )
    zero_allgather_bucket_size: int | None = supported(
        None,
        "Same as zero_optimization.allgather_bucket_size, in elements.",
        limit=at_least(1),
        same_as="zero_optimization.allgather_bucket_size",
        fallback=500_000_000,
        transfer=FREE,
    )
    optimizer_implementation: Literal["torch", "deepspeed", "apex"] = supported(
        "torch", "Whose fused AdamW: torch's, DeepSpeed's or NVIDIA apex's (the latter two: adam only).", transfer=FREE
    )
    lr: float | None = supported(
        None,
        "Peak learning rate; same as optimizer.params.lr. Training needs it.",
        limit=at_least(0),
        same_as="optimizer.params.lr",
        transfer=TUNED,
        recipe=(SIZE_LADDER,),
    )


@dataclass(frozen=True, kw_only=True)
class NeoXArgsLRScheduler:
    """Learning-rate schedule: a base rate over steps, times each parameter group's lr_mult."""

    lr_decay_style: Literal["constant", "linear", "cosine", "exponential", "wsd"] = supported(
        "linear",
        "Shape after warm-up: constant, linear, cosine or exponential decay, or wsd (stay, then cool down).",
        transfer=SCHEDULE,
        recipe=(FAMILY, LADDER),
    )
    lr_decay_iters: int | None = supported(
        None, "Step at which decay ends; unset: train_iters.", limit=at_least(1), transfer=COMBINED, recipe=(FAMILY,)
    )
    lr_decay_fraction: float | None = supported(
        None,
        "Share of train_iters after which decay ends; excludes lr_decay_iters.",
        limit=SHARE,
        same_as="lr_decay_iters",
        transfer=SCHEDULE,
    )
    min_lr: float = supported(
        0.0, "The base rate never decays below this.", limit=at_least(0), transfer=COMBINED, recipe=(SIZE_LADDER,)
    )
    warmup: float = supported(
        0.01,
        "Share of the training steps that warm up.",
        limit=SHARE,
        transfer=shifts(
            "warm-up limits early updates, so its share bears on the highest rate that trains",
            "Kosson et al. 2024, arXiv:2410.23922",
        ),
        recipe=(FAMILY, SIZE_LADDER),
    )
    warmup_style: Literal["linear", "inverse_log"] = supported(
        "linear", "Shape of the warm-up: linear, or Mu-scaling's inverse-logarithmic rise.", transfer=SCHEDULE
    )
    lr_cooldown_fraction: float = supported(
        0.2, "lr_decay_style wsd: share of training that the final decay takes.", limit=SHARE, transfer=SCHEDULE
    )
    lr_cooldown_style: Literal["linear", "cosine", "sqrt"] = supported(
        "linear", "lr_decay_style wsd: shape of the final decay.", transfer=SCHEDULE
    )
    override_lr_scheduler: bool = supported(
        False, "On resume, take the schedule from this configuration instead of the checkpoint's.", transfer=FREE
    )
    use_checkpoint_lr_scheduler: bool = supported(
        False, "On resume, take the schedule from the checkpoint instead of this configuration.", transfer=FREE
    )

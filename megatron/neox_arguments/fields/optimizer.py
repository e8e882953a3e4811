"""Keys of the optimizer and the learning-rate schedule."""

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


@dataclass(kw_only=True)
class NeoXArgsOptimizer:
    """Optimizer. See also `optimizer`, `zero_optimization` and `weight_decay`."""

    optimizer_type: Literal[
        "adam", "adamw", "onebitadam", "cpu_adam", "cpu_torch_adam", "sm3", "madgrad_wd", "sgd", "lion"
    ] = supported(
        "adam",
        "Same as optimizer.type. adam means AdamW: weight decay is decoupled, as in GPT-NeoX's fused Adam.",
        refuse={
            "onebitadam": f"1-bit Adam is not supported; {_USE}",
            "cpu_adam": f"optimizer offload is not supported; {_USE}",
            "cpu_torch_adam": f"optimizer offload is not supported; {_USE}",
            "sm3": f"SM3 is not supported and has no muP rule here; {_USE}",
            "madgrad_wd": f"MADGRAD is not supported and has no muP rule here; {_USE}",
            "lion": f"Lion is not supported yet; {_USE}",
        },
        same_as="optimizer.type",
        transfer=must_match("each optimizer has its own scaling rules and optimum"),
        recipe=(FAMILY, LADDER),
    )
    use_bnb_optimizer: bool = refused(False, "Use the 8-bit Adam of bitsandbytes.", feature="bitsandbytes")
    zero_stage: int | list[int] | Literal["all"] | None = supported(
        None,
        "ZeRO stage. Same as zero_optimization.stage. Stages 2 and 3 cannot be combined with a pipeline.",
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
        "torch",
        "Implementation of the fused AdamW: PyTorch, DeepSpeed or NVIDIA apex. The latter two support adam only.",
        transfer=FREE,
    )
    lr: float | None = supported(
        None,
        "Peak learning rate. Same as optimizer.params.lr. Required for training.",
        limit=at_least(0),
        same_as="optimizer.params.lr",
        transfer=TUNED,
        recipe=(SIZE_LADDER,),
    )


@dataclass(kw_only=True)
class NeoXArgsLRScheduler:
    """Learning-rate schedule: a base rate per step, multiplied by the lr_mult of each parameter group."""

    lr_decay_style: Literal["constant", "linear", "cosine", "exponential", "wsd"] = supported(
        "linear",
        "Shape after warm-up: constant, linear, cosine or exponential decay, or wsd (constant, then a final decay).",
        transfer=SCHEDULE,
        recipe=(FAMILY, LADDER),
    )
    lr_decay_iters: int | None = supported(
        None,
        "Step at which the decay ends. If unset, train_iters.",
        limit=at_least(1),
        transfer=COMBINED,
        recipe=(FAMILY,),
    )
    lr_decay_fraction: float | None = supported(
        None,
        "Share of train_iters after which the decay ends. Cannot be combined with lr_decay_iters.",
        limit=SHARE,
        same_as="lr_decay_iters",
        transfer=SCHEDULE,
    )
    min_lr: float = supported(
        0.0, "Minimum base rate of the decay.", limit=at_least(0), transfer=COMBINED, recipe=(SIZE_LADDER,)
    )
    warmup: float = supported(
        0.01,
        "Share of the training steps used for warm-up.",
        limit=SHARE,
        transfer=shifts(
            "warm-up limits early updates, so its length affects the highest stable learning rate",
            "Kosson et al. 2024, arXiv:2410.23922",
        ),
        recipe=(FAMILY, SIZE_LADDER),
    )
    warmup_style: Literal["linear", "inverse_log"] = supported(
        "linear", "Shape of the warm-up: linear, or the inverse-logarithmic increase of Mu-scaling.", transfer=SCHEDULE
    )
    lr_cooldown_fraction: float = supported(
        0.2,
        "With lr_decay_style wsd: share of the training steps used for the final decay.",
        limit=SHARE,
        transfer=SCHEDULE,
    )
    lr_cooldown_style: Literal["linear", "cosine", "sqrt"] = supported(
        "linear", "With lr_decay_style wsd: shape of the final decay.", transfer=SCHEDULE
    )
    override_lr_scheduler: bool = supported(
        False, "On resume, use the schedule of this configuration instead of the checkpoint's.", transfer=FREE
    )
    use_checkpoint_lr_scheduler: bool = supported(
        False, "On resume, use the checkpoint's schedule instead of this configuration's.", transfer=FREE
    )

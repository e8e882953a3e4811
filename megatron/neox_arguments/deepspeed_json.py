"""Build the DeepSpeed configuration of a NeoXArgs."""

from __future__ import annotations

import copy
from typing import Any

from megatron.neox_arguments.fields import KEYS, repeated_in

_NEOX_ONLY = ("fp16", "type")  # keys of the fp16 section that DeepSpeed does not know


def deepspeed_config(args: Any) -> dict[str, Any]:
    """Return DeepSpeed's JSON configuration for `args` (a NeoXArgs).

    It has no optimizer and no scheduler section. The trainer builds both, because every parameter group has its own
    learning-rate multiplier.
    """
    same = {name: getattr(args, name) for name, key in KEYS.items() if key.to_deepspeed}
    config = {name: value for name, value in same.items() if value not in (None, {})}
    config["zero_optimization"] = _zero(args)
    config["zero_allow_untested_optimizer"] = True
    config["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW updates offloaded states; nothing is compiled
    # Send whole activations between stages: with sequence parallelism the ranks hold different parts of them.
    config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    if args.precision == "fp16":
        config["fp16"] = _fp16(args)
    if args.precision == "bfloat16":
        config["bf16"] = {**(args.bf16 or {}), "enabled": True}
    extra = args.deepspeed_extra_args or {}
    config.update({name: value for name, value in extra.items() if name not in KEYS and value is not None})
    return copy.deepcopy(config)


def _zero(args: Any) -> dict[str, Any]:
    section = {key: value for key, value in (args.zero_optimization or {}).items() if key != "cpu_offload"}
    section.update({inner: getattr(args, key) for inner, key in repeated_in("zero_optimization").items()})
    if (args.zero_optimization or {}).get("cpu_offload"):  # DeepSpeed's former name
        section.setdefault("offload_optimizer", {"device": "cpu"})
    return section


def _fp16(args: Any) -> dict[str, Any]:
    section = {key: value for key, value in (args.fp16 or {}).items() if key not in _NEOX_ONLY}
    section.update({inner: getattr(args, key) for inner, key in repeated_in("fp16").items()})
    section.update(
        enabled=True,
        loss_scale=args.loss_scale or 0,  # 0: DeepSpeed scales the loss dynamically
        loss_scale_window=int(args.loss_scale_window),
        min_loss_scale=int(args.min_scale),
    )
    return section

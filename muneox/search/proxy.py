"""Variants of the proxy's configuration at other widths and with a trial's parameters, and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.data.fingerprint import corpus_fingerprint
from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import KEYS
from megatron.neox_arguments.resolve import cost_config, data_prefixes
from megatron.neox_arguments.transfer import FREE, SEARCH
from muneox.cost import Cost, cost_of
from muneox.search.space import Space


@dataclass(frozen=True)
class TrialRun:
    """One training run of a trial."""

    hidden_size: int
    seed: int

    @property
    def name(self) -> str:
        return f"w{self.hidden_size}-s{self.seed}"


def runs_of(args: NeoXArgs, space: Space) -> list[TrialRun]:
    """Runs of each trial, smallest width first."""
    args.require("hidden_size")
    assert args.hidden_size is not None
    widths, seeds = space.widths or (args.hidden_size,), space.seeds or (args.seed,)
    return [TrialRun(width, seed) for width in sorted(widths) for seed in seeds]


def width_changes(args: NeoXArgs, hidden_size: int) -> dict[str, int]:
    """Keys that change if the model gets another hidden size. Raises ConfigError if a key does not scale evenly.

    The number of heads grows, at constant head dimension, if mup-base-num-attention-heads is set. Otherwise it
    stays, because the key defaults to the model's own number of heads. Key-value heads follow the same rule.
    intermediate_size always grows.
    """
    if hidden_size == args.hidden_size:
        return {}
    heads = {
        "num_attention_heads": args.mup_base_num_attention_heads is not None,
        "num_kv_heads": args.mup_base_num_kv_heads is not None
        or (args.mup_base_num_attention_heads is not None and args.num_kv_heads == args.num_attention_heads),
        "intermediate_size": True,
    }
    changes = {"hidden_size": hidden_size}
    for key, grows in heads.items():
        value = getattr(args, key)
        if not grows or value is None:
            continue
        scaled, rest = divmod(value * hidden_size, args.hidden_size)
        if rest or not scaled:
            raise ConfigError(
                f"widths: {hidden_size} does not fit: {key} {value} at hidden-size {args.hidden_size} would become "
                f"{value * hidden_size / args.hidden_size:g}"
            )
        changes[key] = scaled
    return changes


def tied_changes(args: NeoXArgs, params: Mapping[str, Any]) -> dict[str, Any]:
    """Scale min-lr with lr if only lr varies, which keeps the shape of the schedule."""
    lr = params.get("lr")
    if isinstance(lr, int | float) and "min_lr" not in params and args.min_lr and args.lr:
        return {"min_lr": lr * (args.min_lr / args.lr)}
    return {}


def trial_args(args: NeoXArgs, params: Mapping[str, Any], run: TrialRun, log_dir: Path | None = None) -> NeoXArgs:
    """Configuration of one run of a trial, without checkpoints and without a final test. Raises ConfigError.

    TensorBoard is off because its folder cannot hold many runs. Batches are read in the training process because
    starting loader processes again would cost a short run seconds.
    """
    return args.replace(
        **width_changes(args, run.hidden_size),
        **{**params, **tied_changes(args, params)},
        seed=run.seed,
        save=None,
        load=None,
        do_test=False,
        num_workers=0,
        tensorboard_dir=None,
        log_dir=None if log_dir is None else str(log_dir),
    )


def check_space(args: NeoXArgs, space: Space) -> None:
    """Build the configuration at both ends or all choices of each parameter, and at each width. Raises ConfigError."""
    args.require("lr", "train_iters", "hidden_size", "num_attention_heads", "seq_length")
    runs = runs_of(args, space)
    for parameter in space.parameters:
        for value in parameter.choices or (parameter.low, parameter.high):
            try:
                trial_args(args, {parameter.key: value}, runs[0])
            except ConfigError as error:
                raise ConfigError(f"parameters: {parameter.key}: {value!r} cannot be trained: {error}") from None
    for run in runs:
        trial_args(args, {parameter.key: parameter.at(0.5) for parameter in space.parameters}, run)


def describe(args: NeoXArgs, space: Space) -> dict[str, Any]:
    """Identity of a search: its space, and every key that affects a run's loss and does not vary."""
    varied = {parameter.key.split(".")[0] for parameter in space.parameters}
    if "lr" in varied:
        varied |= {"min_lr", "optimizer"} if args.min_lr else {"optimizer"}
    kept = {
        key: value
        for key, value in args.non_default().items()
        if key not in varied and (KEYS[key].transfer is not FREE or SEARCH in KEYS[key].recipe)
    }
    optimizer = {k: v for k, v in ((args.optimizer or {}).get("params") or {}).items() if k not in ("lr", *varied)}
    return {"space": space.describe(), "configuration": kept, "optimizer": optimizer}


def corpus_of(args: NeoXArgs) -> dict[str, Any]:
    """Bytes and SHA-256 of the corpus. Raises DataError if it cannot be read."""
    return corpus_fingerprint(data_prefixes(args))


def check(args: NeoXArgs, space: Space, target: NeoXArgs | None) -> Cost | None:
    """Check the space, and the target if there is one. Returns the cost of the target. Raises ConfigError."""
    check_space(args, space)
    return None if target is None else check_target(args, space, target)


def check_target(args: NeoXArgs, space: Space, target: NeoXArgs) -> Cost:
    """Cost of the target. Raises ConfigError if a proxy of the search has as many parameters as the target."""
    widest = max(runs_of(args, space), key=lambda run: run.hidden_size)
    if (target.hidden_size or 0) < widest.hidden_size:
        raise ConfigError(
            f"--target has width {target.hidden_size}, and the model to search on {widest.hidden_size}: swap them, "
            "since a search trains the narrower model, and --target names the wider one"
        )
    of_target = cost_of(cost_config(target))
    of_proxy = cost_of(cost_config(args.replace(**width_changes(args, widest.hidden_size))))
    if of_proxy.params >= of_target.params:
        raise ConfigError(
            f"the proxy (hidden-size {widest.hidden_size}, {of_proxy.params:,} parameters) is as large as its target "
            f"(hidden-size {target.hidden_size}, {of_target.params:,}): search on a narrower proxy"
        )
    return of_target

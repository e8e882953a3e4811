"""Compare proxy and target key by key: differences break the transfer, shift the optimum or grow with the width."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import KEYS
from megatron.neox_arguments.resolve import model_config
from megatron.neox_arguments.transfer import SCHEDULE, TPV, TransferClass


class Kind(Enum):
    """Effect of a difference on the transfer."""

    BREAKS = "breaks the transfer"
    SHIFTS = "shifts the optimum"
    GROWS = "grows with the width"


@dataclass(frozen=True)
class Finding:
    """One difference: its values in proxy and target, its effect, the reason and the source."""

    kind: Kind
    key: str
    proxy: Any
    target: Any
    why: str
    source: str


def compare(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    """All differences that affect the transfer from proxy to target, most severe first."""
    findings: list[Finding] = []
    for check in (_parametrization, _base, _widths, _head_dimension, _depth, _schedule, _optimizer, _keys):
        findings += check(proxy, target)
    order = list(Kind)
    return sorted(findings, key=lambda finding: order.index(finding.kind))


def _numbers(key: str, proxy: NeoXArgs, target: NeoXArgs) -> tuple[int, int]:
    """A key's values in proxy and target. Raises ConfigError if one of them lacks the key."""
    for args in (proxy, target):
        args.require(key)
    return int(getattr(proxy, key)), int(getattr(target, key))


def _breaks(key: str, proxy: Any, target: Any, why: str, source: str = f"{TPV}, table 1") -> Finding:
    return Finding(Kind.BREAKS, key, proxy, target, why, source)


def _parametrization(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    if proxy.use_mup or target.use_mup:
        return []
    return [
        _breaks("use_mup", False, False, "neither is in muP: SP's optimum moves with the width", f"{TPV}, figure 1")
    ]


def _base(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    """Base dimensions, resolved from keys and files. Hyperparameters refer to the base model."""
    if not (proxy.use_mup and target.use_mup):
        return []
    from megatron.training.model_from_config import resolve_base_widths

    (of_proxy, _), (of_target, _) = (resolve_base_widths(model_config(args)) for args in (proxy, target))
    names = {
        "hidden_size": "mup_base_hidden_size",
        "num_attention_heads": "mup_base_num_attention_heads",
        "num_kv_heads": "mup_base_num_kv_heads",
        "ffn_hidden_size": "mup_base_intermediate_size",
    }
    if target.mup_depth_alpha:
        names["num_layers"] = "mup_base_num_layers"
    heads = proxy.mup_base_num_attention_heads or target.mup_base_num_attention_heads
    return [
        _breaks(
            key,
            getattr(of_proxy, name),
            getattr(of_target, name),
            "the base models differ, so the same value has another meaning",
            f"{TPV}, appendix B",
        )
        for name, key in names.items()
        if getattr(of_proxy, name) != getattr(of_target, name)
        # unset base heads default to the model's own number of heads: the head dimension grows in both models
        and not ("heads" in name and heads is None)
    ]


def _widths(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    findings = [
        Finding(Kind.GROWS, key, a, b, "", "")
        for key in sorted(name for name, key in KEYS.items() if key.transfer.kind is TransferClass.GROWS)
        if (a := getattr(proxy, key)) != (b := getattr(target, key))
    ]
    widths = _numbers("hidden_size", proxy, target)
    if widths[0] >= widths[1]:
        why = "the proxy is not narrower than its target: search on a narrower proxy"
        findings.append(_breaks("hidden_size", proxy.hidden_size, target.hidden_size, why, "nothing to transfer"))
    ratios = [(w := model_config(args).widths).ffn_hidden_size / w.hidden_size for args in (proxy, target)]
    if abs(ratios[0] / ratios[1] - 1) > 0.02:  # allows for rounding to mlp_multiple_of
        shown = [f"{ratio:.3g} x hidden" for ratio in ratios]
        why = "the MLP's width is another multiple of the hidden size: the aspect ratio changes, not only the width"
        findings.append(
            Finding(Kind.SHIFTS, "intermediate_size", shown[0], shown[1], why, f"{TPV}, table 1: width alone")
        )
    return findings


def _head_dimension(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    widths, heads = _numbers("hidden_size", proxy, target), _numbers("num_attention_heads", proxy, target)
    dims = [width // count for width, count in zip(widths, heads)]
    if dims[0] == dims[1]:
        return []
    why = "the head dimension grows; the scale sqrt(d_base)/d covers it, but a proxy with small heads is less accurate"
    return [Finding(Kind.SHIFTS, "head dimension", dims[0], dims[1], why, f"{TPV}, appendix E.2")]


def _depth(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    if proxy.num_layers == target.num_layers:
        return []
    if target.mup_depth_alpha:
        why = f"the depth rule alpha {target.mup_depth_alpha:g} covers it"
        if target.mup_depth_alpha < 1:
            why += " partly: only alpha 1 was found to transfer the learning rate"
    else:
        why = "without a depth rule the optimum moves with depth: set mup-depth-alpha and mup-base-num-layers"
    source = "Dey et al. 2025 (CompleteP), arXiv:2505.01618"
    return [Finding(Kind.SHIFTS, "num_layers", proxy.num_layers, target.num_layers, why, source)]


def _schedule(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    """End of the decay as a share of the run, and minimum learning rate as a share of the peak."""
    findings = []
    shape = SCHEDULE.why
    decays = (proxy.lr_decay_iters, target.lr_decay_iters)
    ends = [decay / args.train_iters for decay, args in zip(decays, (proxy, target)) if decay and args.train_iters]
    if len(ends) == 1 or (ends and abs(ends[0] - ends[1]) > 1e-6):
        findings.append(_breaks("lr_decay_iters", proxy.lr_decay_iters, target.lr_decay_iters, shape))
    if proxy.lr and target.lr:
        floors = [(proxy.min_lr or 0.0) / proxy.lr, (target.min_lr or 0.0) / target.lr]
        if abs(floors[0] - floors[1]) > 1e-6:
            shown = [f"{floor:.3g} x lr" for floor in floors]
            findings.append(_breaks("min_lr", shown[0], shown[1], shape))
    return findings


def _optimizer(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    given = [dict((args.optimizer or {}).get("params") or {}) for args in (proxy, target)]
    findings = []
    if target.mup_weight_decay_mode == "constant" and target.weight_decay and proxy.hidden_size != target.hidden_size:
        why = "mup-weight-decay-mode constant: lr x weight decay of hidden matrices falls as the width grows"
        source = "Wang and Aitchison 2024, arXiv:2405.13698"
        findings.append(Finding(Kind.SHIFTS, "weight_decay", proxy.weight_decay, target.weight_decay, why, source))
    return findings + [
        _breaks(
            f"optimizer.params.{key}",
            given[0].get(key),
            given[1].get(key),
            "it was tuned together with the other hyperparameters: use the proxy's value",
        )
        for key in sorted({*given[0], *given[1]} - {"lr", "weight_decay"})
        if given[0].get(key) != given[1].get(key)
    ]


def _keys(proxy: NeoXArgs, target: NeoXArgs) -> list[Finding]:
    """Every key that is compared independently of others, by its class."""
    kinds = {TransferClass.SHIFTS: Kind.SHIFTS, TransferClass.MUST_MATCH: Kind.BREAKS}
    return [
        Finding(kinds[key.transfer.kind], name, a, b, key.transfer.why, key.transfer.source)
        for name, key in KEYS.items()
        if key.transfer.kind in kinds and (a := getattr(proxy, name)) != (b := getattr(target, name))
    ]

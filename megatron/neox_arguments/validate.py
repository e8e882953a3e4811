"""Refuse what does not fit together, and what is not supported, each with the reason and a way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from megatron.neox_arguments import validate_layout, validate_run
from megatron.neox_arguments.complete import as_dict
from megatron.neox_arguments.keys import REFUSED
from megatron.neox_arguments.sections import SECTION_KEYS
from megatron.neox_arguments.validate_run import Problem, show

_SUPPORTED_OPTIMIZERS = ("adam", "adamw", "sgd")


def problems(v: Mapping[str, Any], given: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Every (key, sentence) that speaks against the resolved values `v`; `given` is what the user gave."""
    yield from _refused(v, fields)
    yield from _sections(v)
    yield from _extra_args(v, fields)
    yield from validate_layout.problems(v)
    yield from _positive(v)
    yield from validate_run.problems(v, given)
    yield from _launcher(v)


def _refused(v: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[Problem]:
    for name, field in fields.items():
        value, meta = v[name], field.metadata
        if meta["status"] == REFUSED and value != field.default and value not in meta["neutral"]:
            yield name, f"{name}: {show(value)} is refused: {meta['reason']}"
        reason = meta.get("refuse", {}).get(value) if isinstance(value, str) else None
        if reason:
            yield name, f"{name}: {show(value)} is refused: {reason}"


def _sections(v: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys, types and values inside nested sections, which the field types do not reach."""
    for path, known in SECTION_KEYS.items():
        top, _, inner = path.partition(".")
        section = v[top] or {}
        section = section.get(inner, {}) if inner else section
        if not isinstance(section, dict):
            yield top, f"{path}: needs keys and values, not {show(section)}"
            continue
        for key in section:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                yield top, f"{path}.{key}: unknown key; {hint}"
    yield from _optimizer_params(v)
    for top in ("fp16", "bf16", "torch_autocast"):
        if v[top] and not isinstance(v[top].get("enabled"), bool):
            yield top, f"{top}: needs enabled: true or enabled: false"


def _extra_args(v: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Extra sections for DeepSpeed must not get around a refusal or contradict a key."""
    for key, value in (v["deepspeed_extra_args"] or {}).items():
        where = f"deepspeed_extra_args.{key}"
        meta = fields[key].metadata if key in fields else {}
        if meta.get("status") == REFUSED and value not in meta["neutral"]:
            yield "deepspeed_extra_args", f"{where}: is refused: {meta['reason']}"
        elif key in fields and not (isinstance(value, dict) and v[key] is None):
            yield "deepspeed_extra_args", f"{where}: is a key of its own; move it to the top level"


def _optimizer_params(v: Mapping[str, Any]) -> Iterator[Problem]:
    section = v["optimizer"] or {}
    if section and not isinstance(section.get("type"), str):
        yield "optimizer", "optimizer.type: missing; Adam, AdamW or SGD would do"
    elif section and section["type"].lower() not in _SUPPORTED_OPTIMIZERS:
        yield "optimizer", f"optimizer.type: {section['type']!r} is refused: use Adam (AdamW) or SGD"
    params = as_dict(section.get("params"))
    for key in ("lr", "eps", "weight_decay", "momentum"):
        value = params.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            yield "optimizer", f"optimizer.params.{key}: needs a number of at least 0, not {show(value)}"
    betas = params.get("betas", [0.9, 0.999])
    if not (
        isinstance(betas, list) and len(betas) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in betas)
    ):
        yield "optimizer", f"optimizer.params.betas: needs two numbers from 0 to below 1, not {show(betas)}"
    if not isinstance(params.get("nesterov", False), bool):
        yield "optimizer", f"optimizer.params.nesterov: needs true or false, not {show(params['nesterov'])}"
    foreign = ("momentum", "nesterov") if v["optimizer_type"] != "sgd" else ("betas", "eps")
    for key in foreign:
        if params.get(key):
            yield "optimizer", f"optimizer.params.{key}: optimizer {v['optimizer_type']} has none; remove it"


_AT_LEAST_ONE = (
    "num_layers", "hidden_size", "num_attention_heads", "num_kv_heads", "seq_length",
    "max_position_embeddings", "intermediate_size", "mlp_multiple_of", "make_vocab_size_divisible_by",
    "padded_vocab_size", "log_interval",
    "steps_per_print", "checkpoint_num_layers", "eval_interval", "keep_last_n_checkpoints", "exit_interval",
    "mup_base_hidden_size", "mup_base_num_attention_heads", "mup_base_num_kv_heads",
    "mup_base_intermediate_size", "mup_base_num_layers", "coord_check_seeds", "maximum_tokens", "num_samples",
    "rotary_emb_base", "hysteresis",
    "lr_decay_iters", "num_gpus",
)  # fmt: skip
_ABOVE_ZERO = (
    "expansion_factor", "layernorm_epsilon", "rms_norm_epsilon", "mup_init_scale", "mup_attn_temp",
    "mup_output_temp", "mup_embedding_mult", "mup_rp_embedding_mult", "gradient_predivide_factor",
    "peak_theoretical_tflops", "coord_check_lr", "weighted_sampler_alpha", "loss_scale_window", "min_scale",
)  # fmt: skip
_NOT_NEGATIVE = (
    "train_iters", "eval_iters", "lr", "min_lr", "weight_decay", "gradient_clipping", "init_method_std",
    "z_loss", "num_workers", "temperature", "top_k", "iteration", "seed", "loss_scale",
)  # fmt: skip
_SHARES = ("rotary_pct", "warmup", "lr_decay_fraction", "lr_cooldown_fraction", "top_p")
_BELOW_ONE = ("attention_dropout", "hidden_dropout")


def _positive(v: Mapping[str, Any]) -> Iterator[Problem]:
    checks = (
        (_AT_LEAST_ONE, lambda x: x >= 1, "at least 1"),
        (_ABOVE_ZERO, lambda x: x > 0, "above 0"),
        (_NOT_NEGATIVE, lambda x: x >= 0, "at least 0"),
        (_SHARES, lambda x: 0 <= x <= 1, "from 0 to 1"),
        (_BELOW_ONE, lambda x: 0 <= x < 1, "from 0 to below 1"),
    )
    for names, holds, wanted in checks:
        for name in names:
            if v[name] is not None and not holds(v[name]):
                yield name, f"{name}: needs a number {wanted}, not {v[name]}"


def _launcher(v: Mapping[str, Any]) -> Iterator[Problem]:
    if v["include"] and v["exclude"]:
        yield "include", "include: exclude is given too; keep one of the two"
    for key in ("include", "exclude"):
        for other, unset in (("num_gpus", None), ("num_nodes", -1)):
            if v[key] and v[other] != unset:
                yield other, f"{other}: {key} already says which slots to use; keep one of the two"
    slurm = v["launcher"] == "slurm" or v["deepspeed_slurm"]
    for key in ("comment", "account"):
        if v[key] and not slurm:
            yield key, f"{key}: only launcher slurm has one; remove it or set launcher: slurm"
    if v["deepspeed_slurm"] and v["deepspeed_mpi"]:
        yield "deepspeed_mpi", "deepspeed_mpi: deepspeed_slurm is given too; keep one of the two"
    if not 0 < v["master_port"] < 65536:
        yield "master_port", f"master_port: needs a number from 1 to 65535, not {v['master_port']}"

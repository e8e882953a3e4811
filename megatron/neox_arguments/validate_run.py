"""Validate the keys of one run against each other: shape, attention, optimizer, schedule, data and muP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.neox_arguments.complete import as_dict
from megatron.neox_arguments.fields import FIELDS, KEYS
from megatron.neox_arguments.keys import SUPPORTED
from megatron.neox_arguments.limits import is_number, listed
from megatron.neox_arguments.messages import shown

Problem = tuple[str, str]
_OF_ONE_OPTIMIZER = {"momentum": "sgd", "nesterov": "sgd", "betas": "adam", "eps": "adam"}


def problems(v: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem of the resolved values `v` as (key, message). `given`: the keys that the user set."""
    yield from _shape(v)
    yield from _rope_scaling(v)
    yield from _attention_config(v)
    yield from _experts(v, given)
    yield from _optimizer(v)
    yield from _schedule(v)
    yield from _data(v)
    yield from _faults(v)
    yield from _profiling(v)
    yield from _mup(v, given)


def _shape(v: Mapping[str, Any]) -> Iterator[Problem]:
    hidden, heads, kv_heads = v["hidden_size"], v["num_attention_heads"], v["num_kv_heads"]
    if hidden and heads and heads > 0:
        if hidden % heads:
            near = sorted({hidden // heads * heads, (hidden // heads + 1) * heads} - {0})
            yield (
                "num_attention_heads",
                f"num_attention_heads: {heads} does not divide hidden_size {hidden};"
                f" use hidden_size {listed(near)}, or {_near_divisor(hidden, heads)} heads",
            )
        elif v["pos_emb"] == "rotary" and int(hidden // heads * v["rotary_pct"]) % 2:
            rotating = int(hidden // heads * v["rotary_pct"])
            yield (
                "rotary_pct",
                f"rotary_pct: {v['rotary_pct']} of head dimension {hidden // heads} is {rotating} dimensions,"
                " but dimensions rotate in pairs; choose a value that gives an even number",
            )
        if kv_heads and kv_heads > 0 and heads % kv_heads:
            yield (
                "num_kv_heads",
                f"num_kv_heads: {kv_heads} does not divide num_attention_heads {heads};"
                f" use {_near_divisor(heads, kv_heads)}",
            )
    seq_length, positions = v["seq_length"], v["max_position_embeddings"]
    if seq_length and positions and seq_length > positions:
        yield (
            "seq_length",
            f"seq_length: {seq_length} is greater than max_position_embeddings {positions}; increase the latter",
        )
    if v["pos_emb"] == "learned" and seq_length and seq_length > 0 and not positions:
        yield (
            "max_position_embeddings",
            f"max_position_embeddings: pos_emb learned needs a value; use at least {seq_length} (seq_length)",
        )
    yield from _absolute_positions(v)
    if v["intermediate_size"] and v["expansion_factor"]:
        yield "expansion_factor", "expansion_factor: intermediate_size is also set; keep one of the two"
    if v["gpt_j_tied"] and not v["gpt_j_residual"]:
        yield "gpt_j_tied", "gpt_j_tied: needs gpt_j_residual: true"


def _absolute_positions(v: Mapping[str, Any]) -> Iterator[Problem]:
    hidden, seq_length, rows, offset = (
        v[key] for key in ("hidden_size", "seq_length", "max_position_embeddings", "opt_pos_emb_offset")
    )
    if v["pos_emb"] == "sinusoidal" and hidden and hidden % 2:
        yield "hidden_size", f"hidden_size: pos_emb sinusoidal needs an even number, got {hidden}"
    if offset and v["pos_emb"] != "learned":
        yield "opt_pos_emb_offset", "opt_pos_emb_offset: needs pos_emb: learned"
    elif offset and seq_length and rows and seq_length <= rows < seq_length + offset:
        yield (
            "max_position_embeddings",
            f"max_position_embeddings: {rows} rows are too few for seq_length {seq_length} from row"
            f" opt_pos_emb_offset {offset} on; use at least {seq_length + offset}",
        )


def _near_divisor(number: int, near: int) -> int:
    """Return the divisor of `number` closest to `near`, the smaller one of a tie; 1 where none is within 10,000."""
    distances = range(min(near, 10_000))
    near_ones = (d for distance in distances for d in (near - distance, near + distance))
    return next((d for d in near_ones if d > 0 and number % d == 0), 1)


def _rope_scaling(v: Mapping[str, Any]) -> Iterator[Problem]:
    section = v["rope_scaling"]
    if not isinstance(section, dict):
        return
    kind = section.get("rope_type")
    for key in ("rope_type", "factor"):
        if section.get(key) is None:
            yield "rope_scaling", f"rope_scaling.{key}: missing; add rope_type and factor"
    if v["pos_emb"] == "rpe" and v["rpe_max_distance"] <= v["rpe_num_buckets"] // 2:
        yield (
            "rpe_max_distance",
            f"rpe_max_distance: expected more than {v['rpe_num_buckets'] // 2}, half of rpe_num_buckets, got"
            f" {v['rpe_max_distance']}",
        )
    if v["pos_emb"] != "rpe" and v["mup_rp_embedding_mult"] != 1.0:
        yield (
            "mup_rp_embedding_mult",
            "mup_rp_embedding_mult: it multiplies the relative position bias, which needs pos_emb: rpe; remove the key",
        )
    if v["pos_emb"] != "rotary":
        yield "rope_scaling", "rope_scaling: needs pos_emb: rotary"
    if kind == "llama3" and section.get("original_max_position_embeddings") is None:
        yield "rope_scaling", "rope_scaling.original_max_position_embeddings: missing; llama3 needs it"
    for key in ("low_freq_factor", "high_freq_factor"):
        if key in section and kind != "llama3":
            yield "rope_scaling", f"rope_scaling.{key}: only rope_type llama3 uses it; remove it"
    if kind == "linear" and "original_max_position_embeddings" in section:
        yield (
            "rope_scaling",
            "rope_scaling.original_max_position_embeddings: rope_type linear does not use it; remove it",
        )
    low, high = section.get("low_freq_factor", 1.0), section.get("high_freq_factor", 4.0)
    if is_number(low) and is_number(high) and low >= high:
        yield "rope_scaling", f"rope_scaling.high_freq_factor: expected more than low_freq_factor {low}, got {high}"


def _attention_config(v: Mapping[str, Any]) -> Iterator[Problem]:
    """Check [[[types...], repeats], ...], or a list with one type per layer. Only full causal attention is known."""
    kinds_seen: list[str] = []
    count = 0
    for item in v["attention_config"] or []:
        if isinstance(item, list) and len(item) == 2 and isinstance(item[0], list):
            kinds, repeat = item
            repeat = -(-(v["num_layers"] or 0) // max(len(kinds), 1)) if repeat == "all" else repeat
            if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
                yield "attention_config", f"attention_config: expected [[types], number of repeats], got {shown(item)}"
                return
            kinds_seen += map(str, kinds)
            count += len(kinds) * repeat
        else:
            kinds_seen.append(str(item))
            count += 1
    for kind in dict.fromkeys(kinds_seen):
        if kind not in ("global", "flash"):
            yield "attention_config", f"attention_config: {kind!r} is unknown; use global or flash"
    if v["attention_config"] and v["num_layers"] and count != v["num_layers"]:
        yield (
            "attention_config",
            f"attention_config: describes {count} layers, but num_layers is {v['num_layers']}",
        )


def _experts(v: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    experts, top_k = v["moe_num_experts"], v["moe_top_k"]
    if experts < 2:
        for key in given:
            sets = key.startswith("moe_") and v[key] != FIELDS[key].default and KEYS[key].status == SUPPORTED
            if sets and experts == 1:
                yield key, f"{key}: has no effect without experts; set moe_num_experts to at least 2, or remove the key"
        return
    if top_k > experts:
        yield "moe_top_k", f"moe_top_k: {top_k} is greater than moe_num_experts {experts}; use at most {experts}"
    if v["moe_normalize_expert_weights"] and top_k == 1:
        yield (
            "moe_normalize_expert_weights",
            "moe_normalize_expert_weights: the weight of a single expert is then always 1, so the router learns"
            " nothing; set moe_top_k to at least 2, or remove the key",
        )
    if v["moe_router_type"] != "sinkhorn":
        return
    if v["moe_aux_loss_coeff"]:
        yield (
            "moe_aux_loss_coeff",
            "moe_aux_loss_coeff: a sinkhorn router balances the experts itself; remove the key, or set"
            " moe_router_type: topk",
        )
    if v["moe_jitter_eps"]:
        yield "moe_jitter_eps", "moe_jitter_eps: a sinkhorn router has no jitter; set moe_router_type: topk"


def _optimizer(v: Mapping[str, Any]) -> Iterator[Problem]:
    section = v["optimizer"] or {}
    if section and section.get("type") is None:
        yield "optimizer", "optimizer.type: missing; expected Adam, AdamW or SGD"
    params = as_dict(section.get("params"))
    for key, kind in _OF_ONE_OPTIMIZER.items():
        if params.get(key) and v["optimizer_type"] != kind:
            yield "optimizer", f"optimizer.params.{key}: optimizer {v['optimizer_type']} does not use it; remove it"


def _schedule(v: Mapping[str, Any]) -> Iterator[Problem]:
    if v["lr"] is not None and v["min_lr"] > v["lr"] >= 0:
        yield "min_lr", f"min_lr: {v['min_lr']} is greater than lr {v['lr']}; decrease it"
    if v["lr_decay_iters"] is not None and v["lr_decay_fraction"] is not None:
        yield "lr_decay_fraction", "lr_decay_fraction: lr_decay_iters is also set; keep one of the two"
    if v["override_lr_scheduler"] and v["use_checkpoint_lr_scheduler"]:
        yield (
            "override_lr_scheduler",
            "override_lr_scheduler: contradicts use_checkpoint_lr_scheduler; keep one of the two",
        )
    factor = v["checkpoint_factor"]
    if factor is not None and v["checkpoint_scale"] == "linear" and (factor < 1 or factor != int(factor)):
        yield "checkpoint_factor", f"checkpoint_factor: expected a whole number of steps, got {factor}"
    if factor is not None and v["checkpoint_scale"] == "log" and factor <= 1:
        yield (
            "checkpoint_factor",
            f"checkpoint_factor: checkpoint_scale log expects a number above 1, got {factor}",
        )


def _data(v: Mapping[str, Any]) -> Iterator[Problem]:
    parts = ("train", "valid", "test")
    if v["data_path"] and v["train_data_paths"]:
        yield "train_data_paths", "train_data_paths: data_path is also set; keep one of the two"
    for part in parts:
        paths, weights = v[f"{part}_data_paths"], v[f"{part}_data_weights"]
        if weights is None:
            continue
        if not paths:
            yield f"{part}_data_weights", f"{part}_data_weights: needs {part}_data_paths"
        elif len(weights) != len(paths):
            yield (
                f"{part}_data_weights",
                f"{part}_data_weights: {len(weights)} weights for {len(paths)} paths; give one weight per path",
            )
        if weights and not any(weights):
            yield f"{part}_data_weights", f"{part}_data_weights: expected at least one number above 0, got only 0"
    yield from _labels(v)
    yield from _epochs(v)
    shares = v["split"].replace("/", ",").split(",")
    try:
        numbers = [float(share) for share in shares if share.strip()]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 3 or any(n < 0 for n in numbers) or sum(numbers) <= 0:
        yield "split", f"split: expected up to three shares, for example '969, 30, 1', got {v['split']!r}"


def _labels(v: Mapping[str, Any]) -> Iterator[Problem]:
    for part in ("train", "valid", "test"):
        key, paths, labels = f"{part}_label_data_paths", v[f"{part}_data_paths"], v[f"{part}_label_data_paths"]
        if labels and not paths:
            yield key, f"{key}: needs {part}_data_paths"
        elif labels and len(labels) != len(paths):
            yield key, f"{key}: {len(labels)} paths for {len(paths)} {part}_data_paths; give the labels of each of them"
        elif paths and v["train_label_data_paths"] and not labels:
            yield (
                key,
                f"{key}: missing, but train_label_data_paths is set: the loss on {part}_data_paths would count other"
                " tokens than the training loss; set it",
            )
    if not v["allow_chopped"] and v["pack_impl"] == "packed":
        yield (
            "allow_chopped",
            "allow_chopped: pack_impl packed cuts every document where a sample ends; set pack_impl to"
            " pack_until_overflow or unpacked",
        )


def _epochs(v: Mapping[str, Any]) -> Iterator[Problem]:
    if v["train_epochs"] is None:
        return
    others = {
        "train_iters": v["train_iters"] is not None,
        "weight_by_num_documents": v["weight_by_num_documents"],
        "train_data_weights": len(set(v["train_data_weights"] or ())) > 1,
    }
    for key, is_set in others.items():
        if is_set:
            yield "train_epochs", f"train_epochs: contradicts {key}; keep one of the two"
    if v["pack_impl"] != "packed":
        yield "train_epochs", f"train_epochs: needs pack_impl packed, as in GPT-NeoX, got {v['pack_impl']}"


def _faults(v: Mapping[str, Any]) -> Iterator[Problem]:
    for key in ("nonfinite_policy", "loss_spike_policy"):
        if v[key] == "rewind" and not v["save"]:
            yield key, f"{key}: rewind loads the last checkpoint; set save to a folder for checkpoints"
        elif v[key] == "rewind" and v["no_save_optim"]:
            yield key, f"{key}: rewind continues with the optimizer state of a checkpoint, which no_save_optim omits"
    if v["no_save_optim"] and v["zero_stage"] == 3:
        yield (
            "no_save_optim",
            "no_save_optim: ZeRO 3 keeps the weights in the optimizer state; use stage 2, or save the optimizer state",
        )
    if v["async_save"] and not v["save"]:
        yield "async_save", "async_save: has no effect without save; set save to a folder for checkpoints"
    if v["override_optimizer"] and not v["load"]:
        yield "override_optimizer", "override_optimizer: has no effect without load; set load or remove the key"


def _profiling(v: Mapping[str, Any]) -> Iterator[Problem]:
    first, last = v["profile_step_start"], v["profile_step_stop"]
    if (v["profile"] or v["memory_profiling"]) and last <= first:
        yield "profile_step_stop", f"profile_step_stop: expected more than profile_step_start {first}, got {last}"
    if v["profile"] and not (v["tensorboard_dir"] or v["log_dir"]):
        yield "profile", "profile: needs tensorboard_dir or log_dir, the folder of the traces"
    if v["memory_profiling"] and not v["memory_profiling_path"]:
        yield "memory_profiling", "memory_profiling: needs memory_profiling_path, the folder of the snapshot"


def _mup(v: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    """Check the muP keys.

    Without muP they have no effect, which is an error unless the user sets `use_mup: false`. An overlay with
    `use_mup: false` can thus turn a muP configuration into its SP baseline. coord_check and save_base_shapes always
    need muP.
    """
    if not v["use_mup"]:
        for key in ("coord_check", "save_base_shapes"):
            if v[key]:
                yield key, f"{key}: needs use_mup: true"
        if "use_mup" not in given:
            for key in given:
                if KEYS[key].mup_only and v[key] != FIELDS[key].default:
                    yield (
                        key,
                        f"{key}: has no effect without use_mup: true (set use_mup: false to train in SP)",
                    )
        return
    if v["save_base_shapes"] and not v["base_shapes_file"]:
        yield "save_base_shapes", "save_base_shapes: needs base_shapes_file, the prefix of the files to write"
    has_base = v["base_shapes_file"] or v["mup_base_hidden_size"]
    if not (has_base or v["save_base_shapes"] or v["coord_check"]):
        yield (
            "use_mup",
            "use_mup: needs the base model; set mup_base_hidden_size or base_shapes_file (see save_base_shapes)",
        )
    if v["mup_readout_zero_init"] and not v["no_weight_tying"]:
        yield (
            "mup_readout_zero_init",
            "mup_readout_zero_init: a tied readout is the embedding, which cannot be zero; set no_weight_tying: true",
        )
    heads, kv_heads = v["mup_base_num_attention_heads"], v["mup_base_num_kv_heads"]
    if v["mup_base_hidden_size"] and heads and heads > 0 and v["mup_base_hidden_size"] % heads:
        yield (
            "mup_base_num_attention_heads",
            f"mup_base_num_attention_heads: {heads} does not divide mup_base_hidden_size {v['mup_base_hidden_size']}",
        )
    if heads and kv_heads and kv_heads > 0 and heads % kv_heads:
        yield "mup_base_num_kv_heads", f"mup_base_num_kv_heads: {kv_heads} does not divide {heads} base heads"
    widths = v["coord_check_widths"]
    if widths is not None and len(set(widths)) < 2:
        yield "coord_check_widths", f"coord_check_widths: expected at least two different sizes, got {widths}"

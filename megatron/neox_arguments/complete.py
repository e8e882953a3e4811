"""Fill in derived values: batch sizes, precision, optimizer, ZeRO stage and former names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron.neox_arguments.fields import FIELDS, KEYS, repeated_in
from megatron.neox_arguments.limits import is_number
from megatron.neox_arguments.sizes import BatchSizeError, batch_sizes

_OPTIMIZER_NAMES = {"adamw": "adam"}


class _Values:
    """Values during completion: `values` has every key, `given` the user's keys, `problems` (key, message) pairs."""

    def __init__(self, values: Mapping[str, Any], given: Mapping[str, Any]):
        self.values, self.given = dict(values), given
        self.problems: list[tuple[str, str]] = []

    def one_of(
        self, key: str, others: Mapping[str, Any], default: Any, same: Callable[[Any, Any], bool] = lambda a, b: a == b
    ) -> Any:
        """Return the value of `key`, which any of `others` (name -> value or None) can also set.

        Values that differ are a problem. `default` is returned if none is set.
        """
        chosen, source = self.given.get(key), key
        for other, value in others.items():
            if value is None:
                continue
            if chosen is None:
                chosen, source = value, other
            elif not same(chosen, value):
                self.problems.append(
                    (source, f"{source}: {chosen} disagrees with {other}: {value}; keep one of the two")
                )
        return default if chosen is None else chosen


def complete(values: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return all values with the derived ones filled in, and the problems as (key, message) pairs."""
    state = _Values(values, given)
    for step in (_parallel, _batch, _precision, _optimizer, _zero, _extra_sections, _training):
        step(state)
    return state.values, state.problems


def _parallel(r: _Values) -> None:
    v = r.values
    model_ranks = max(v["model_parallel_size"], 1) * max(v["pipe_parallel_size"], 1)
    if v["world_size"] is None and v["global_num_gpus"] is not None:
        v["world_size"] = v["global_num_gpus"]
    elif v["world_size"] is None and (v["num_gpus"] or 0) > 0 and not v["include"] and not v["exclude"]:
        one_host = v["num_nodes"] < 1 and not v["hostfile"]
        if one_host or v["num_nodes"] > 0:
            v["world_size"] = v["num_gpus"] * max(v["num_nodes"], 1)
    world_size = v["world_size"]
    if world_size is not None and world_size < 1:
        v["world_size"] = None  # outside its declared range
    elif world_size is not None and world_size % model_ranks:
        r.problems.append(
            (
                "model_parallel_size",
                f"model_parallel_size: {world_size} processes are not divisible by model_parallel_size"
                f" {v['model_parallel_size']} x pipe_parallel_size {max(v['pipe_parallel_size'], 1)};"
                f" start a multiple of {model_ranks} processes",
            )
        )
        v["world_size"] = None
    v["is_pipe_parallel"] = v["pipe_parallel_size"] > 1
    if r.given.get("is_pipe_parallel", v["is_pipe_parallel"]) != v["is_pipe_parallel"]:
        r.problems.append(("is_pipe_parallel", "is_pipe_parallel: is derived from pipe_parallel_size; remove it"))


def _batch(r: _Values) -> None:
    v = r.values
    micro = r.one_of("train_micro_batch_size_per_gpu", {"batch_size": r.given.get("batch_size")}, None)
    sizes = {
        "train_batch_size": v["train_batch_size"],
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": r.given.get("gradient_accumulation_steps"),
    }
    model_ranks = max(v["model_parallel_size"], 1) * max(v["pipe_parallel_size"], 1)
    if any(size is not None and size < 1 for size in sizes.values()):
        return  # outside their declared range
    data_parallel = v["world_size"] // model_ranks if v["world_size"] else None
    try:
        train, micro, steps = sizes.values()
        sizes_of_all = batch_sizes(train, micro, steps, data_parallel)
    except BatchSizeError as error:
        r.problems.append(("train_batch_size", str(error)))
        return
    if sizes_of_all is None:  # valid for tools that do not train; the trainer requires a size
        v["gradient_accumulation_steps"] = sizes["gradient_accumulation_steps"] or 1
        data_parallel = data_parallel or 1
    else:
        *resolved, data_parallel = sizes_of_all
        v.update(zip(sizes, resolved, strict=True))
        v["batch_size"] = v["train_micro_batch_size_per_gpu"]
    v["world_size"] = data_parallel * model_ranks


def _precision(r: _Values) -> None:
    v = r.values
    fp16, bf16 = v["fp16"] or {}, v["bf16"] or {}
    fp16_on = fp16.get("enabled") is True
    asked = {}
    if fp16_on and fp16.get("type", "fp16") != "fp16":
        asked["fp16.type"] = "bfloat16"  # GPT-NeoX's older spelling of bfloat16
    elif fp16_on:
        asked["fp16.enabled"] = "fp16"
    if bf16.get("enabled") is True:
        asked["bf16.enabled"] = "bfloat16"
    precision = r.one_of("precision", asked, "fp32")
    for key, section, name in (("fp16", fp16, "fp16"), ("bf16", bf16, "bfloat16")):
        if precision == name and section.get("enabled") is False and r.given.get("precision") == name:
            r.problems.append((key, f"{key}: enabled: false disagrees with precision: {name}; keep one of the two"))
    v["precision"] = precision
    for inner, key in repeated_in("fp16").items():
        fixed = r.one_of(key, {f"fp16.{inner}": fp16.get(inner)}, v[key])
        if v[key] != FIELDS[key].default and precision != "fp16":
            r.problems.append((key, f"{key}: needs precision fp16, but precision is {precision}; remove it"))
        v[key] = fixed or None if key == "loss_scale" else fixed
    dynamic = v["loss_scale"] is None
    if r.given.get("dynamic_loss_scale", dynamic) != dynamic:
        hint = "remove loss_scale" if not dynamic else "set loss_scale"
        r.problems.append(
            (
                "dynamic_loss_scale",
                f"dynamic_loss_scale: {not dynamic} disagrees with loss_scale {v['loss_scale']}; {hint}",
            )
        )
    v["dynamic_loss_scale"] = dynamic


def _optimizer(r: _Values) -> None:
    v = r.values
    section = v["optimizer"] or {}
    params = as_dict(section.get("params"))
    kind = section.get("type")
    kind = kind.lower() if isinstance(kind, str) else None

    def same(a: str, b: str) -> bool:
        return _OPTIMIZER_NAMES.get(a, a) == _OPTIMIZER_NAMES.get(b, b)

    chosen = r.one_of("optimizer_type", {"optimizer.type": kind}, "adam", same)
    v["optimizer_type"] = _OPTIMIZER_NAMES.get(chosen, chosen)
    for inner, key in repeated_in("optimizer.params").items():
        v[key] = r.one_of(key, {f"optimizer.params.{inner}": _number(params.get(inner))}, v[key])
    clip = {"clip_grad": r.given.get("clip_grad")}
    v["gradient_clipping"] = v["clip_grad"] = r.one_of("gradient_clipping", clip, v["gradient_clipping"])
    wire = r.one_of("communication_data_type", {"fp32_allreduce": "fp32" if v["fp32_allreduce"] else None}, None)
    v["communication_data_type"] = wire


def _zero(r: _Values) -> None:
    section = r.values["zero_optimization"] or {}
    for inner, key in repeated_in("zero_optimization").items():
        r.values[key] = r.one_of(key, {f"zero_optimization.{inner}": section.get(inner)}, KEYS[key].fallback)


def _extra_sections(r: _Values) -> None:
    """Move sections of deepspeed_extra_args to the top-level key of the same name, if it is passed to DeepSpeed."""
    for name, value in as_dict(r.values["deepspeed_extra_args"]).items():
        key = KEYS.get(name)
        if key and key.section and key.to_deepspeed:
            r.values[name] = r.one_of(name, {f"deepspeed_extra_args.{name}": value}, None)


def _training(r: _Values) -> None:
    v = r.values
    evaluates = v["eval_iters"] > 0
    for key, value in (
        ("do_train", (v["train_iters"] or v["train_epochs"] or 0) > 0),
        ("do_valid", evaluates),
        ("do_test", evaluates),
    ):
        if v[key] is None:
            v[key] = value
    if v["text_gen_type"] is None:
        v["text_gen_type"] = "input-file" if v["sample_input_file"] else "unconditional"
    if v["num_kv_heads"] is None:
        v["num_kv_heads"] = v["num_attention_heads"]
    if v["max_position_embeddings"] is None and v["pos_emb"] != "learned":
        v["max_position_embeddings"] = v["seq_length"]
    for part in ("train", "valid", "test"):
        if v[f"{part}_data_paths"] and v[f"{part}_data_weights"] is None:
            v[f"{part}_data_weights"] = [1.0] * len(v[f"{part}_data_paths"])


def as_dict(value: Any) -> dict[str, Any]:
    """Return `value` if it is a mapping, else an empty one. Validation reports other values."""
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """Return `value` if it is a number, else None. Validation reports other values."""
    return float(value) if is_number(value) else None

"""Validate the parallel layout against the model, the number of processes and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.neox_arguments.limits import listed
from megatron.neox_arguments.sizes import ffn_hidden_size
from megatron.neox_arguments.validate_run import Problem


def problems(v: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem of the parallel layout in the resolved values `v` as (key, message)."""
    yield from _tensor(v)
    yield from _pipeline(v)
    yield from _zero(v)


def _ffn(v: Mapping[str, Any]) -> int | None:
    if not v["hidden_size"]:
        return None
    return ffn_hidden_size(
        v["hidden_size"], v["intermediate_size"], v["expansion_factor"], v["activation"], v["mlp_multiple_of"] or 1
    )


def _tensor(v: Mapping[str, Any]) -> Iterator[Problem]:
    """Check the sizes that tensor parallelism divides into equal parts."""
    key, ranks = "model_parallel_size", v["model_parallel_size"]
    if ranks <= 1:
        return
    cut = {
        "num_attention_heads": v["num_attention_heads"],
        "num_kv_heads": v["num_kv_heads"],
        "the inner width of the MLP (intermediate_size, mlp_multiple_of)": _ffn(v),
        "padded_vocab_size": v["padded_vocab_size"],
    }
    if v["sequence_parallel"]:
        cut["seq_length (sequence_parallel)"] = v["seq_length"]
    for what, size in cut.items():
        if size and size > 0 and size % ranks:
            fitting = [n for n in range(1, size + 1) if all(s % n == 0 for s in cut.values() if s)]
            yield (
                key,
                f"{key}: {ranks} does not divide {what}, which is {size};"
                f" use model_parallel_size {listed(fitting)}, or a multiple of {ranks} for {what.split(' (')[0]}",
            )
            return


def _pipeline(v: Mapping[str, Any]) -> Iterator[Problem]:
    stages, layers = v["pipe_parallel_size"], v["num_layers"]
    if stages <= 1:
        return
    if layers and layers < stages:
        yield (
            "pipe_parallel_size",
            f"pipe_parallel_size: {stages} stages for num_layers {layers}: each stage needs a layer; use at most"
            f" {layers} stages",
        )
    if v["zero_stage"] in (2, 3):
        yield (
            "pipe_parallel_size",
            f"pipe_parallel_size: DeepSpeed's pipeline supports ZeRO stages 0 and 1, not {v['zero_stage']}, because"
            " stages 2 and 3 shard the gradients that the pipeline accumulates; use zero_optimization.stage 1 or"
            " pipe_parallel_size 0",
        )


def _zero(v: Mapping[str, Any]) -> Iterator[Problem]:
    stage, key, section = v["zero_stage"], "zero_optimization", v["zero_optimization"] or {}
    if not isinstance(stage, int):
        return  # reported by the checks of type and limit
    for name, least in (("cpu_offload", 1), ("offload_optimizer", 1), ("offload_param", 3)):
        offload = section.get(name)
        if not offload or (isinstance(offload, dict) and offload.get("device") in (None, "none")):
            continue
        where = f"zero_optimization.{name}"
        if stage < least:
            yield key, f"{where}: needs ZeRO stage {least} or higher, got {stage}"
        if v["pipe_parallel_size"] > 1:
            yield key, f"{where}: is not supported with a pipeline; use pipe_parallel_size 0 or remove it"
        if v["optimizer_implementation"] != "torch":
            yield key, f"{where}: needs optimizer_implementation torch, the only one that also runs on the CPU"

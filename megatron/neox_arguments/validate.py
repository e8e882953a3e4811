"""Validate a configuration: unsupported values and values that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.neox_arguments import validate_layout, validate_run, validate_sections
from megatron.neox_arguments.features import UNSUPPORTED, described, requested
from megatron.neox_arguments.fields import FIELDS, KEYS
from megatron.neox_arguments.validate_key import out_of_range, refusal, refusal_reason
from megatron.neox_arguments.validate_run import Problem


def problems(v: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem of the resolved values `v` as (key, message). `given`: the keys that the user set.

    A key with an invalid value is not compared with other keys, which would only add consequential errors.
    """
    wrong = set()
    for key, problem in (*_single(given), *validate_sections.problems(v, given)):
        wrong.add(key)
        yield key, problem
    for key, problem in (*validate_layout.problems(v), *validate_run.problems(v, given), *_launcher(v)):
        if key not in wrong:
            yield key, problem


def other_runs(given: Mapping[str, Any]) -> list[Problem]:
    """Return one problem for each unsupported feature without which the configuration describes another run.

    They make every other problem pointless to report.
    """
    return [
        (keys[0], described(keys, UNSUPPORTED[feature].sentence))
        for feature, keys in requested(given, _features(_refused(given))).items()
        if UNSUPPORTED[feature].other_run
    ]


def _refused(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the reason for each key with a refused value."""
    reasons = {
        name: refusal_reason(value, KEYS[name], FIELDS[name].default) for name, value in given.items() if name in KEYS
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _features(refused: Mapping[str, str]) -> dict[str, str]:
    """Return the unsupported feature of each refused key that belongs to one."""
    return {name: KEYS[name].feature for name in refused if KEYS[name].feature}


def _single(given: Mapping[str, Any]) -> Iterator[Problem]:
    """Check each value alone. Keys that are refused for the same reason are one problem."""
    groups: dict[str, list[str]] = {}
    for name, reason in _refused(given).items():
        groups.setdefault(reason, []).append(name)
    for reason, names in groups.items():
        first = names[0]
        alone = refusal(first, given[first], KEYS[first], FIELDS[first].default)
        yield first, described(names, reason) if len(names) > 1 else alone or ""
    for name, value in given.items():
        if problem := out_of_range(name, value, KEYS[name]):
            yield name, problem


def _launcher(v: Mapping[str, Any]) -> Iterator[Problem]:
    if v["include"] and v["exclude"]:
        yield "include", "include: exclude is also set; keep one of the two"
    for key in ("include", "exclude"):
        for other in ("num_gpus", "num_nodes"):
            if v[key] and v[other] != FIELDS[other].default:
                yield other, f"{other}: {key} already selects the slots; keep one of the two"
    slurm = v["launcher"] == "slurm" or v["deepspeed_slurm"]
    for key in ("comment", "account"):
        if v[key] and not slurm:
            yield key, f"{key}: needs launcher: slurm; set it or remove {key}"
    if v["deepspeed_slurm"] and v["deepspeed_mpi"]:
        yield "deepspeed_mpi", "deepspeed_mpi: deepspeed_slurm is also set; keep one of the two"

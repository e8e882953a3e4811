"""Merge configuration files and command-line overrides into one mapping of known keys."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.errors import ConfigError, one_per_line
from megatron.neox_arguments.fields import ALIASES, KEYS
from megatron.neox_arguments.foreign import foreign_key
from megatron.neox_arguments.former import GONE
from megatron.neox_arguments.yaml_loader import MAX_DEPTH, ConfigFile

OVERLAY = "overlay"  # a property of the file, not of the run
_PRECISIONS = ("precision", "fp16.enabled", "bf16.enabled")


@dataclass
class Merged:
    """Values of known keys, and the origin of each (`file:line`, or the command line)."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def normalise(key: str) -> str:
    """Return the canonical name of a top-level key: `-` becomes `_`, and former names are replaced."""
    name = key.replace("-", "_")
    return ALIASES.get(name, name)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown key, with the closest known key."""
    name = key.replace("-", "_")
    if name in GONE:
        return f"unknown key {key!r}: {GONE[name]}"
    if len(name) > 80:
        return f"unknown key {key[:80]!r}..."
    if (hint := foreign_key(name)) is not None:
        return f"unknown key {key!r}; {hint}"
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def merge(files: Iterable[ConfigFile], known: Iterable[str]) -> Merged:
    """Merge configuration files.

    A file with `overlay: true` overrides keys of the other files and is applied after them. Raises ConfigError, which
    names every unknown key and every key that two files set.
    """
    known, files = set(known), list(files)
    merged = _merge_distinct([file for file in files if not _is_overlay(file)], known)
    for file in files:
        if _is_overlay(file):
            changes = _dotted({key: value for key, value in file.values.items() if key != OVERLAY})
            merged = override(merged, changes, known, file.path)
    return merged


def _dotted(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to dotted keys. An overlay then changes only the keys that it names."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        nested = isinstance(value, dict) and value
        flat.update(_dotted(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


def _is_overlay(file: ConfigFile) -> bool:
    if file.values.get(OVERLAY) not in (None, True, False):
        raise ConfigError(f"{file.path}:{file.lines[OVERLAY]}: overlay: expected true or false")
    return bool(file.values.get(OVERLAY))


def _merge_distinct(files: Iterable[ConfigFile], known: set[str]) -> Merged:
    merged, problems = Merged(), []
    for file in files:
        for key, value in file.values.items():
            where = f"{file.path}:{file.lines[key]}" if file.lines[key] else file.path
            if not isinstance(key, str):
                problems.append(f"{where}: expected text as a key, got {key!r}; put it in quotes")
                continue
            name = normalise(key)
            if key == OVERLAY:
                continue
            if name not in known:
                problems.append(f"{where}: {unknown_key(key, known)}")
            elif name in merged.values:
                problems.append(f"{where}: key {key!r} is already set in {merged.origins[name]}; keep one of the two")
            else:
                merged.values[name], merged.origins[name] = value, where
    if problems:
        raise ConfigError(one_per_line(problems))
    return merged


def override(merged: Merged, changes: Mapping[str, Any] | None, known: Iterable[str], origin: str) -> Merged:
    """Return a copy of `merged` with `changes` applied. Keys can be dotted (optimizer.params.lr).

    Raises ConfigError for unknown keys.
    """
    values, origins = copy.deepcopy(merged.values), dict(merged.origins)
    known, problems = set(known), []
    assignments: list[tuple[str, Any]] = []
    for key, value in (changes or {}).items():
        top, *rest = str(key).split(".")
        name = normalise(top)
        if name not in known:
            problems.append(f"{origin}: {unknown_key(top, known)}")
            continue
        if len(rest) > MAX_DEPTH:
            problems.append(f"{origin}: {key!r} names more than {MAX_DEPTH} nested sections")
            continue
        path = ".".join([name, *rest])
        if path in dict(assignments):
            problems.append(f"{origin}: key {key!r} is given twice")
        origins[name] = origin
        assignments.append((path, copy.deepcopy(value)))
    for path, value in assignments:
        _drop_synonyms(values, path, value)
    for path, value in assignments:
        if not _assign(values, path, value):
            problems.append(f"{origin}: {path!r} names a key inside a value that is not a section")
    if problems:
        raise ConfigError(one_per_line(problems))
    return Merged(values, {key: origins[key] for key in values if key in origins})


def _drop_synonyms(values: dict[str, Any], path: str, value: Any) -> None:
    """Remove all other keys that set the same value as an override of `path`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _drop_synonyms(values, f"{path}.{key}", inner)
    for name, key in KEYS.items():
        if key.same_as and path in (name, key.same_as):
            _remove(values, key.same_as if path == name else name)
    if path in _PRECISIONS:
        _switch_precision(values, path, value)


def _switch_precision(values: dict[str, Any], path: str, value: Any) -> None:
    """Update the fp16 and bf16 sections to agree with an override of the precision at `path`."""
    if path != "precision":
        values.pop("precision", None)
    for section in ("fp16", "bf16"):
        chosen = value == {"fp16": "fp16", "bf16": "bfloat16"}[section] if path == "precision" else None
        if isinstance(values.get(section), dict) and path != f"{section}.enabled":
            values[section].pop("type", None)
            if chosen is not None or value is True:
                values[section]["enabled"] = bool(chosen)


def _assign(values: dict[str, Any], path: str, value: Any) -> bool:
    *sections, last = path.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            return False
    values[last] = value
    return True


def _remove(values: dict[str, Any], path: str) -> None:
    *sections, last = path.split(".")
    for section in sections:
        values = values.get(section) or {}
        if not isinstance(values, dict):
            return
    values.pop(last, None)

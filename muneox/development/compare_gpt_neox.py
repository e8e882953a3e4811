"""Compare the configurations that GPT-NeoX derives from its files with those derived here, field by field.

    git clone https://github.com/EleutherAI/gpt-neox
    python tools/compare_gpt_neox.py gpt-neox
    python tools/compare_gpt_neox.py gpt-neox --record    # also writes the values that the tests compare with

GPT-NeoX's own classes derive its side, in a process of its own. Two of their imports are replaced, because they only
compare versions: pkg_resources and the installed flash-attn. The exit code is 1 if a field differs that is not listed
in DEPARTURES.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, first_line
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import FIELDS

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests" / "neox_arguments" / "gpt_neox_derived.json"
PROCESSES = 64

# Derived fields that differ on purpose: key -> what it is here.
DEPARTURES = {
    "attention_config": "as written; GPT-NeoX expands it to one word per layer",
    "do_train": "true or false; GPT-NeoX sets it when training starts",
    "do_valid": "true or false; GPT-NeoX sets it when training starts",
    "do_test": "true or false; GPT-NeoX sets it when training starts",
    "git_hash": "not read; every run records its commit",
    "is_pipe_parallel": "true from two stages; one stage is a plain module here",
    "num_kv_heads": "num_attention_heads if unset, instead of null",
    "optimizer_type": "in lower case, and adamw is adam",
    "sparsity_config": "null if unset, instead of {}",
    "temperature": "0.8 by default, so that generate.py samples; 0 takes the most likely token",
    "top_k": "50 by default, so that generate.py samples",
    "world_size": "the number of processes; GPT-NeoX sets it when training starts",
    "communication_data_type": "fp32 if fp32_allreduce is true",
    "deepspeed_extra_args": "as written; GPT-NeoX adds bf16 to it if precision is bfloat16",
    "comms_logger": "also set by deepspeed_extra_args.comms_logger",
}

# Single fields of single files: (file, key) -> what it is here.
SINGLE_DEPARTURES = {
    ("configs/pythia/1B.yml", "precision"): "bfloat16, as its fp16.type states and as published; GPT-NeoX reads fp16",
}

# Runs in GPT-NeoX's checkout. Arguments: a JSON file of {name: files}, and the output.
_DERIVE = """
import contextlib, importlib.metadata, io, json, logging, os, sys, types
import packaging.version
stub = types.ModuleType("pkg_resources")
stub.packaging = packaging
sys.modules["pkg_resources"] = stub
installed = importlib.metadata.version
importlib.metadata.version = lambda name: "2.6.0" if name == "flash-attn" else installed(name)
os.environ["DS_ACCELERATOR"] = "cpu"
logging.disable(logging.CRITICAL)
sys.path.insert(0, os.getcwd())
from megatron.neox_arguments import NeoXArgs
NeoXArgs.enable_logging = lambda self: None
derived = {}
for name, files in json.load(open(sys.argv[1])).items():
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            values = NeoXArgs.from_ymls(files, {"global_num_gpus": int(sys.argv[3])}).all_config
        derived[name] = {key: value for key, value in values.items() if key != "config_files"}
    except Exception as error:
        derived[name] = f"{type(error).__name__}: {error}"
with open(sys.argv[2], "w") as file:
    json.dump(derived, file, default=lambda value: sorted(value) if isinstance(value, set) else repr(value))
"""

# Files that only add to a model's file, by the start of their names.
_OVERLAYS = (
    *("local_setup", "text_generation", "cpu_mock_config", "sparse", "prof", "eleutherai_cluster"),
    *("pythia-paths", "slurm_local"),
)


def combination(name: str) -> list[str]:
    """Return the files to merge with GPT-NeoX's file `name` (a path in its checkout) to get a whole configuration."""
    path = Path(name)
    if name.startswith(("configs/llama/", "configs/llama2/", "configs/mistral/")):
        model = "configs/llama/7B.yml" if path.stem == "train_config" else name
        return [model, "configs/llama/train_config.yml", "configs/local_setup.yml"]
    return ["configs/125M.yml", name] if path.stem.startswith(_OVERLAYS) else [name]


def configuration_files(checkout: Path) -> list[str]:
    """Return the YAML and JSON files of configurations in GPT-NeoX's checkout. Raises ConfigError if there are none."""
    folders = ("configs", "post-training/configs", "tests/config", "tests/test_configs")
    found = [
        str(path.relative_to(checkout))
        for folder in folders
        for path in sorted((checkout / folder).rglob("*"))
        if path.suffix in (".yml", ".json")
    ]
    if not found:
        raise ConfigError(f"{checkout}: holds no configurations; expected a checkout of GPT-NeoX")
    return found


def derived_by_gpt_neox(checkout: Path, names: Sequence[str]) -> dict[str, dict[str, Any] | str]:
    """Return every derived field, or the error, of each configuration, by GPT-NeoX's own code."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, output = Path(folder, "wanted.json"), Path(folder, "derived.json")
        wanted.write_text(json.dumps({name: combination(name) for name in names}))
        command = [sys.executable, "-P", "-c", _DERIVE, str(wanted), str(output), str(PROCESSES)]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ConfigError(f"{checkout}: GPT-NeoX's configuration cannot be imported: {last}")
        derived: dict[str, dict[str, Any] | str] = json.loads(output.read_text())
        return derived


def differing(name: str, theirs: Mapping[str, Any], ours: NeoXArgs) -> dict[str, tuple[Any, Any]]:
    """Return the fields with different values that are no departure: key -> (GPT-NeoX's value, the value here)."""
    pairs = {key: (value, getattr(ours, key)) for key, value in theirs.items() if key in FIELDS}
    expected = DEPARTURES.keys() | {key for file, key in SINGLE_DEPARTURES if file == name}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and key not in expected}


def compare(checkout: Path, derived: Mapping[str, dict[str, Any] | str]) -> tuple[list[str], int]:
    """Return one line per refused configuration or differing field, and the number of unexpected differences."""
    lines, wrong, loaded = [], 0, 0
    for name, theirs in derived.items():
        try:
            ours = NeoXArgs.from_ymls([checkout / file for file in combination(name)], {"global_num_gpus": PROCESSES})
        except ConfigError as error:
            lines.append(f"refused here  {name}: {first_line(error).removeprefix(f'{checkout}/')}")
            continue
        loaded += 1
        if isinstance(theirs, str):
            lines.append(f"refused there {name}: {theirs.splitlines()[0]}")
            continue
        for key, (before, here) in differing(name, theirs, ours).items():
            lines.append(f"differs       {name}: {key}: {before!r} in GPT-NeoX, {here!r} here")
            wrong += 1
    there = sum(not isinstance(theirs, str) for theirs in derived.values())
    lines.append(f"{len(derived)} configurations: {there} load in GPT-NeoX, {loaded} here; {wrong} fields differ")
    return lines, wrong


def record(derived: Mapping[str, dict[str, Any] | str]) -> None:
    """Write the fields that differ from their defaults, for the configurations that GPT-NeoX loads."""
    values = {
        name: {
            key: value
            for key, value in sorted(fields.items())
            if key in FIELDS and value != FIELDS[key].default and key not in ("attention_config", "git_hash")
        }
        for name, fields in derived.items()
        if not isinstance(fields, str)
    }
    rows = (f"  {json.dumps(name)}: {json.dumps(fields)}" for name, fields in sorted(values.items()))
    RECORD.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def main(input_args: Sequence[str] | None = None) -> int:
    """Print the comparison. Returns the exit code. Raises ConfigError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a clone of GPT-NeoX")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    args = parser.parse_args(input_args)
    derived = derived_by_gpt_neox(args.checkout, configuration_files(args.checkout))
    if args.record:
        record(derived)
    lines, wrong = compare(args.checkout, derived)
    print("\n".join(lines))
    return int(wrong > 0)

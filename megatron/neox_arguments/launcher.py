"""Parse the command lines of deepy.py and workers, and build the command line of DeepSpeed's launcher."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, UserError
from megatron.neox_arguments.merging import normalise, unknown_key
from megatron.neox_arguments.messages import kinds
from megatron.neox_arguments.yaml_loader import parse_scalar

USAGE = """\
usage: {program} config.yml [more.yml ...] [-d FOLDER] [--key value ...]

  config.yml            YAML or JSON files to merge; the suffix .yml is optional
  -d, --conf_dir FOLDER folder of the configuration files
  --key value           override any key: --lr 3e-4, --use-mup, --optimizer.params.eps=1e-9
  -H hostfile, -i sample_input_file, -o sample_output_file

All keys: configs/neox_arguments.md"""
_SHORT = {"-H": "hostfile", "-i": "sample_input_file", "-o": "sample_output_file"}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class UsageRequested(UserError):
    """Raised for --help. The message is the usage, and the exit code is 0."""

    exit_code = 0


@dataclass
class CommandLine:
    """A parsed command line: configuration files, their folder, overrides and the launcher's own options."""

    files: list[str] = field(default_factory=list)
    folder: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)


def parse_command_line(
    argv: Sequence[str], annotations: Mapping[str, Any], program: str, passed: Sequence[str] = ()
) -> CommandLine:
    """Parse `argv`. `annotations` maps each known key to its type; options in `passed` are kept separate.

    Raises ConfigError for an unknown option or a missing value, and UsageRequested for --help.
    """
    result, rest = CommandLine(), list(argv)
    while rest:
        token = rest.pop(0)
        if token in ("-h", "--help"):
            raise UsageRequested(USAGE.format(program=program))
        if not token.startswith("-") or token == "-":
            result.files.append(token)
            continue
        option, has_value, value = token.partition("=")
        inline = value if has_value else None
        name = _SHORT.get(option, option[2:] if option.startswith("--") else option)
        if option in ("-d", "--conf_dir", "--conf-dir"):
            result.folder = _value(option, inline, rest)
        elif name.replace("-", "_") in passed:
            result.passed[name.replace("-", "_")] = _passed(name, inline, rest)
        else:
            top = normalise(name.split(".")[0])
            if top not in annotations or name.startswith("-"):
                raise ConfigError(f"command line: {unknown_key(name.split('.')[0], annotations)}")
            path = ".".join([top, *name.split(".")[1:]])
            if path in result.overrides:
                raise ConfigError(f"command line: {option} is given twice")
            wanted = annotations[top] if path == top else Any
            result.overrides[path] = _override(option, wanted, inline, rest)
    return result


def _value(option: str, inline: str | None, rest: list[str]) -> str:
    if inline is not None:
        return inline
    if not rest or (rest[0].startswith("-") and not re.match(r"^-[\d.]", rest[0])):
        raise ConfigError(f"command line: {option}: expected a value")
    return rest.pop(0)


def _passed(name: str, inline: str | None, rest: list[str]) -> str:
    if name == "deepspeed" and inline is None:  # a bare flag
        return ""
    return _value(f"--{name}", inline, rest)


def _override(option: str, wanted: Any, inline: str | None, rest: list[str]) -> Any:
    accepted = kinds(wanted)
    if bool in accepted:
        if inline is None:
            inline = rest.pop(0) if rest and rest[0].lower() in _TRUE + _FALSE else "true"
        if inline.lower() not in _TRUE + _FALSE:
            raise ConfigError(f"command line: {option}: expected true or false, got {inline!r}")
        return inline.lower() in _TRUE
    text = _value(option, inline, rest)
    if text == "null":  # back to the default, whatever the files say
        return None
    if str in accepted and not accepted & {int, list, dict}:
        return text
    return parse_scalar(text)


def encode(config: Mapping[str, Any]) -> str:
    """Encode `config` as base64 JSON, which needs no quoting in any shell."""
    return base64.urlsafe_b64encode(json.dumps(config).encode()).decode()


def decode(text: str) -> dict[str, Any]:
    """Decode base64 JSON, or read a JSON file whose path is `text`. Raises ConfigError."""
    try:
        is_file = text.endswith(".json") and Path(text).is_file()
        data = Path(text).read_bytes() if is_file else base64.b64decode(text, altchars=b"-_", validate=True)
        config = json.loads(data)
    except (OSError, binascii.Error, ValueError):
        raise ConfigError("--megatron_config: expected base64-encoded JSON or a JSON file") from None
    if not isinstance(config, dict):
        raise ConfigError("--megatron_config: expected a mapping of keys to values")
    return config


def launched_world_size(config: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of processes that a launcher reports in the environment, or None."""
    names = ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
    if config.get("deepspeed_mpi"):
        names += ["PMI_SIZE"]
    if (config.get("deepspeed_slurm") or config.get("launcher") == "slurm") and "SLURM_PROCID" in environment:
        names += ["SLURM_NTASKS"]
    for name in names:
        if name in environment:
            try:
                return int(environment[name])
            except ValueError:
                raise ConfigError(f"environment: {name}={environment[name]!r} is not a number") from None
    return None


def rank_environment(args: Any, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Derive RANK, LOCAL_RANK, WORLD_SIZE and MASTER_* from the environment of MPI or SLURM.

    A worker sets these variables before it joins the process group. The result is empty if RANK is already set, or if
    neither deepspeed_mpi nor deepspeed_slurm is true.
    """
    if "RANK" in environment or not (args.deepspeed_mpi or args.deepspeed_slurm):
        return {}
    sources = _SLURM_RANKS if args.deepspeed_slurm else _MPI_RANKS
    found = {}
    for name, candidates in sources.items():
        value = next((environment[c] for c in candidates if c in environment), None)
        if value is None:
            key = "deepspeed_slurm" if args.deepspeed_slurm else "deepspeed_mpi"
            raise ConfigError(
                f"{key}: none of {', '.join(candidates)} is in the environment; start the processes with srun or mpirun"
            )
        found[name] = value
    host = args.master_addr or first_slurm_host(environment.get("SLURM_JOB_NODELIST", ""))
    if "MASTER_ADDR" not in environment and host:
        found["MASTER_ADDR"] = host
    if "MASTER_PORT" not in environment:
        found["MASTER_PORT"] = str(args.master_port)
    return found


_SLURM_RANKS = {"RANK": ["SLURM_PROCID"], "LOCAL_RANK": ["SLURM_LOCALID"], "WORLD_SIZE": ["SLURM_NTASKS"]}
_MPI_RANKS = {
    "RANK": ["OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK"],
    "LOCAL_RANK": ["OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"],
    "WORLD_SIZE": ["OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE"],
}


def runner_arguments(args: Any, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the options of DeepSpeed's launcher for `args` (a NeoXArgs). Raises ConfigError."""
    options: dict[str, Any] = {}
    if args.hostfile:
        if not os.path.isfile(args.hostfile):
            raise ConfigError(f"hostfile: {args.hostfile}: file not found")
        options["hostfile"] = args.hostfile
    elif args.num_nodes > 1:
        raise ConfigError(f"num_nodes: {args.num_nodes} hosts need hostfile, a file that lists them")
    options.update(include=args.include, exclude=args.exclude, master_addr=args.master_addr)
    options.update(num_nodes=args.num_nodes if args.num_nodes > 0 else None, num_gpus=args.num_gpus)
    options["master_port"] = args.master_port if args.master_port != 29500 else None
    slurm = args.deepspeed_slurm or args.launcher == "slurm"
    launcher = "slurm" if slurm else args.launcher
    options["launcher"] = launcher if launcher != "pdsh" else None
    if args.deepspeed_slurm and not args.master_addr:
        options["master_addr"] = first_slurm_host(environment.get("SLURM_JOB_NODELIST", ""))
    result = []
    for key, value in options.items():
        if value not in (None, ""):
            result += [f"--{key}", str(value)]
    job = [f"--{key}={value}" for key, value in (("comment", args.comment), ("account", args.account)) if value]
    if job:  # one token: argparse reads a separate value that starts with -- as an option
        result.append("--launcher_args=" + shlex.join(job))
    flags = {"force_multi": args.force_multi, "no_ssh_check": args.no_ssh_check or args.deepspeed_slurm}
    return result + [f"--{key}" for key, on in flags.items() if on]


def first_slurm_host(nodes: str) -> str | None:
    """Return the first host of a SLURM node list such as gpu[03-07,9],login1, or None for an empty list."""
    match = re.match(r"([^,\[\]]*)(?:\[([0-9]+)[^\]]*\])?([^,\[\]]*)", nodes)
    return "".join(part or "" for part in match.groups()) or None if match else None

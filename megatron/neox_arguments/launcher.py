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
from megatron.files import parse_json, read_bytes
from megatron.neox_arguments.hosts import Hosts, limit_hosts, read_hostfile, select_hosts
from megatron.neox_arguments.merging import normalise, unknown_key
from megatron.neox_arguments.messages import kinds
from megatron.neox_arguments.ranks import first_slurm_host, slurm_hosts
from megatron.neox_arguments.yaml_loader import CONFIG_SUFFIXES, parse_scalar

USAGE = """\
usage: {program} config.yml [more.yml ...] [-d FOLDER] [--key value ...]

Start a job, such as training, with one process per device.

  {program} configs/mup/base.yml configs/local_setup.yml --save checkpoints
  {program} configs/mup/base.yml configs/local_setup.yml --train-iters 1000 --load checkpoints

  config.yml            YAML or JSON files to merge; the suffix .yml is optional
  -d, --conf_dir FOLDER folder of the configuration files
  --key value           override any key: --lr 3e-4, --use-mup, --optimizer.params.eps=1e-9; lists: --eval-tasks a b
  -H hostfile, -i sample_input_file, -o sample_output_file

All keys: configs/neox_arguments.md
Next: `muneox generate --load DIR` samples from the checkpoint, and `muneox eval --load DIR` evaluates it."""
_SHORT = {"-H": "hostfile", "-i": "sample_input_file", "-o": "sample_output_file"}
DEFAULT_HOSTFILE = "/job/hostfile"  # DeepSpeed's
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
            files_given = any(file.endswith(CONFIG_SUFFIXES) for file in result.files)
            result.overrides[path] = _override(option, wanted, inline, rest, files_given)
    return result


def _value(option: str, inline: str | None, rest: list[str]) -> str:
    if inline is not None:
        return inline
    if not rest or (rest[0].startswith("-") and not re.match(r"^-[\d.]", rest[0])):
        raise ConfigError(f"command line: {option}: expected a value")
    return rest.pop(0)


def _following(rest: list[str], files_given: bool) -> list[str]:
    """Take the further values of a list from `rest`, up to the next option.

    A configuration file also ends the list, unless one has been given before it (files_given).
    """
    taken = []
    while rest and not rest[0].startswith("-") and (files_given or not rest[0].endswith(CONFIG_SUFFIXES)):
        taken.append(rest.pop(0))
    return taken


def _passed(name: str, inline: str | None, rest: list[str]) -> str:
    if name == "deepspeed" and inline is None:  # a bare flag
        return ""
    return _value(f"--{name}", inline, rest)


def _override(option: str, wanted: Any, inline: str | None, rest: list[str], files_given: bool) -> Any:
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
    value = parse_scalar(text)
    if accepted == {list} and inline is None and not isinstance(value, list):
        return [value, *map(parse_scalar, _following(rest, files_given))]
    return value


def encode(config: Mapping[str, Any]) -> str:
    """Encode `config` as base64 JSON, which needs no quoting in any shell."""
    return base64.urlsafe_b64encode(json.dumps(config).encode()).decode()


def decode(text: str) -> dict[str, Any]:
    """Decode base64 JSON, or read a JSON file whose path is `text`. Raises ConfigError."""
    try:
        is_file = text.endswith(".json") and Path(text).is_file()
        data = read_bytes(text) if is_file else base64.b64decode(text, altchars=b"-_", validate=True)
        config = parse_json(data)
    except (OSError, binascii.Error, ValueError):
        raise ConfigError("--megatron_config: expected base64-encoded JSON or a JSON file") from None
    if not isinstance(config, dict):
        raise ConfigError("--megatron_config: expected a mapping of keys to values")
    return config


def split_prompts(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the command line into the values of --prompt and the arguments for NeoXArgs. Raises ConfigError."""
    prompts, rest = [], []
    tokens = iter(argv)
    for token in tokens:
        if token == "--prompt":
            prompt = next(tokens, None)
            if prompt is None:
                raise ConfigError("command line: --prompt needs a text")
            prompts.append(prompt)
        elif token.startswith("--prompt="):
            prompts.append(token.removeprefix("--prompt="))
        else:
            rest.append(token)
    return prompts, rest


def runner_arguments(args: Any, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the options of DeepSpeed's launcher for `args` (a NeoXArgs). Raises ConfigError."""
    hosts = launcher_hosts(args, environment)
    options: dict[str, Any] = {"hostfile": None if missing_hostfile(args) else args.hostfile}
    options.update(include=args.include, exclude=args.exclude, master_addr=args.master_addr)
    options.update(num_nodes=args.num_nodes if args.num_nodes > 0 else None, num_gpus=args.num_gpus)
    options["master_port"] = args.master_port if args.master_port != 29500 else None
    slurm = args.deepspeed_slurm or args.launcher == "slurm"
    launcher = "slurm" if slurm else args.launcher
    options["launcher"] = launcher if launcher != "pdsh" else None
    if slurm and not args.master_addr:
        options["master_addr"] = next(iter(hosts)) if hosts else first_slurm_host(environment)
    result = []
    for key, value in options.items():
        if value not in (None, ""):
            result.append(f"--{key}={value}")
    job = [f"--{key}={value}" for key, value in (("comment", args.comment), ("account", args.account)) if value]
    if job:  # one token: argparse reads a separate value that starts with -- as an option
        result.append("--launcher_args=" + shlex.join(job))
    flags = {"force_multi": args.force_multi, "no_ssh_check": args.no_ssh_check or launcher != "pdsh"}
    return result + [f"--{key}" for key, on in flags.items() if on]


def launcher_hosts(args: Any, environment: Mapping[str, str] = os.environ) -> Hosts | None:
    """Return the hosts and slots that `args` (a NeoXArgs) selects, or None for this host alone.

    They come from the hostfile or, with launcher slurm, from the allocation. A hostfile that does not exist is ignored
    (see `missing_hostfile`) unless the configuration needs other hosts. Raises ConfigError.
    """
    needs_file = args.num_nodes > 1 or args.include or args.exclude or args.force_multi
    if (args.hostfile or os.path.isfile(DEFAULT_HOSTFILE)) and not (missing_hostfile(args) and not needs_file):
        hosts = read_hostfile(args.hostfile or DEFAULT_HOSTFILE)
        return limit_hosts(select_hosts(hosts, args.include, args.exclude), args.num_nodes, args.num_gpus)
    if args.launcher == "slurm" or args.deepspeed_slurm:
        nodes = slurm_hosts(environment.get("SLURM_JOB_NODELIST", ""))
        slots = range(args.num_gpus or _number("SLURM_GPUS_ON_NODE", environment, "SLURM_NTASKS_PER_NODE") or 1)
        hosts = select_hosts({node: tuple(slots) for node in nodes}, args.include, args.exclude, "the allocation")
        if not hosts:
            raise ConfigError(
                "launcher: slurm starts processes on the hosts of an allocation, and there is none "
                "(SLURM_JOB_NODELIST); start this through sbatch or salloc, or give a hostfile"
            )
        return limit_hosts(hosts, args.num_nodes, None)
    if args.num_nodes > 1:
        raise ConfigError(f"num_nodes: {args.num_nodes} hosts need hostfile, a file that lists them")
    return None


def missing_hostfile(args: Any) -> bool:
    """Whether `args` (a NeoXArgs) names a hostfile that does not exist. As in DeepSpeed, this host is then used."""
    return bool(args.hostfile) and not os.path.exists(args.hostfile)


def _number(name: str, environment: Mapping[str, str], other: str) -> int | None:
    value = environment.get(name) or environment.get(other) or ""
    return int(value) if value.isdigit() else None

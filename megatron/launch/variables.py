"""Environment variables that workers on other hosts get from this one."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from megatron.errors import ConfigError
from megatron.neox_arguments.job_configs import LauncherConfig

_PREFIXES = ("PYTHON", "OMP_", "NCCL", "UCX", "MV2", "MLFLOW", "WANDB_")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE = ".deepspeed_env"


def exported_variables(config: LauncherConfig, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Names and values: what the libraries read, the key `export_variables`, and the file .deepspeed_env.

    Any value may be a secret: launchers pass them in ways that no process list shows. Raises ConfigError for a listed
    variable that is not set, and for a file that is not understood.
    """
    found = {name: value for name, value in environment.items() if name.startswith(_PREFIXES) and _NAME.fullmatch(name)}
    if config.wandb_host is not None and "WANDB_API_KEY" not in found:
        found |= _wandb_login(config.wandb_host, environment)
    for name in config.export_variables:
        if name not in environment:
            raise ConfigError(f"export_variables: {name} is not set in the environment of this launcher")
        found[name] = environment[name]
    for folder in (Path.home(), Path()):  # DeepSpeed's places and order
        found |= _read(folder / environment.get("DS_ENV_FILE", _FILE))
    return found


def _read(file: Path) -> dict[str, str]:
    """Lines NAME=VALUE. Messages name the line, not its text."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{file}: cannot be read as text; its lines are NAME=VALUE") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        name, is_assignment, value = line.strip().partition("=")
        if not name or name.startswith("#"):
            continue
        if not is_assignment or not _NAME.fullmatch(name):
            raise ConfigError(f"{file}:{number}: expected NAME=VALUE")
        found[name] = value
    return found


def _wandb_login(host: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The key for `host` in this user's netrc, which other hosts may not have."""
    for path in (environment.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            login = (
                netrc.netrc(os.path.expanduser(path)).authenticators(urlsplit(host).hostname or "") if path else None
            )
        except (OSError, netrc.NetrcParseError):
            continue
        if login and login[2]:
            return {"WANDB_API_KEY": login[2]}
    return {}

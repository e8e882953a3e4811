"""Define `NeoXArgs`, the validated, frozen configuration."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from megatron.errors import ConfigError
from megatron.neox_arguments import launcher, messages, ranks, validate
from megatron.neox_arguments.complete import complete
from megatron.neox_arguments.fields import KEYS, NeoXArgsKeys
from megatron.neox_arguments.interface import GptNeoxInterface
from megatron.neox_arguments.keys import SATISFIED
from megatron.neox_arguments.merging import Merged, merge, override
from megatron.neox_arguments.spelling import as_declared
from megatron.neox_arguments.yaml_loader import ConfigFile, find_config, load_config, recorded_config

_WORKER_OPTIONS = ("megatron_config", "deepspeed_config", "deepspeed", "local_rank")
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@pydantic_dataclass(kw_only=True, config=_STRICT)
class NeoXArgs(GptNeoxInterface, NeoXArgsKeys):
    """All keys of a run, validated, with derived values filled in.

    Create one with `from_ymls`, `from_dict`, `consume_deepy_args` or `consume_neox_args`. Each raises ConfigError with
    one line per problem. A key that is null has its default. `replace` creates a changed copy. An assignment to a key
    changes the object in the same way: it is always valid and resolved.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _complete(cls, data: Any, handler: Any) -> NeoXArgs:
        given = {key: value for key, value in (data.kwargs or {}).items() if value is not None}
        given = as_declared(given)
        try:
            args: NeoXArgs = handler(type(data)(data.args, given))
        except ValidationError as error:
            raise messages.Problems(messages.type_problems(error, _TYPES)) from None
        if other := validate.other_runs(given):
            raise messages.Problems(other)
        values, problems = complete({key: getattr(args, key) for key in _KNOWN}, given)
        problems += validate.problems(values, given)
        if problems:
            raise messages.Problems(problems)
        for key in _KNOWN:
            object.__setattr__(args, key, values[key])
        object.__setattr__(args, "_given", copy.deepcopy(given))
        return args

    @property
    def given(self) -> dict[str, Any]:
        """The keys that the user set, before derived values are filled in."""
        given: dict[str, Any] = vars(self)["_given"]
        return given

    @classmethod
    def from_ymls(
        cls,
        paths_to_yml_files: Sequence[str | os.PathLike[str]],
        overwrite_values: Mapping[str, Any] | None = None,
        world_size: int | None = None,
    ) -> NeoXArgs:
        """Read and merge configuration files.

        `overwrite_values` take precedence over the files. Their keys can be dotted (optimizer.params.lr).
        `world_size` is the number of processes. If None, WORLD_SIZE, the launcher keys or the batch sizes set it.
        """
        return cls._build(cls._read(paths_to_yml_files), overwrite_values, _world_size(world_size))

    @classmethod
    def from_dict(
        cls,
        args_dict: Mapping[str, Any],
        overwrite_values: Mapping[str, Any] | None = None,
        world_size: int | None = None,
    ) -> NeoXArgs:
        """Like `from_ymls`, for a mapping with the same keys as a file."""
        return cls._build(cls._from_mapping(args_dict), overwrite_values, _world_size(world_size))

    @classmethod
    def consume_deepy_args(cls, input_args: Sequence[str] | None = None, script: str | None = None) -> NeoXArgs:
        """Parse the command line of deepy.py: `[script.py] a.yml b.yml [-d FOLDER] [--key value ...]`.

        `user_script` is set to the script on the command line (default: train.py), in the current folder or else in the
        folder of deepy.py. If `script` is given, it is used instead, and the command line names no script. Raises
        ConfigError, or UsageRequested on --help.
        """
        argv = sys.argv[1:] if input_args is None else input_args
        program = _program() if script else f"{_program()} [script.py]"
        line = launcher.parse_command_line(argv, _TYPES, program)
        if script is None:
            named = bool(line.files) and line.files[0].endswith(".py")
            script = _script(line.files.pop(0) if named else "train.py")
        line.overrides["user_script"] = script
        return cls._build(cls._read(line.files, line.folder), line.overrides, None, "command line")

    @classmethod
    def consume_neox_args(
        cls,
        overwrite_values: Mapping[str, Any] | None = None,
        input_args: Sequence[str] | None = None,
        *,
        own_layout: bool = True,
    ) -> NeoXArgs:
        """Parse the command line of a worker: the arguments that deepy.py passes, or files and overrides.

        The order of the parameters is GPT-NeoX's. The name of the worker's script is accepted before the arguments.

        The world size comes from the launcher's environment (WORLD_SIZE, MPI or SLURM), and is 1 without a launcher. A
        dry run takes it from the configuration, and so does a job that uses a trained model under another layout than
        that of training (own_layout: False), such as generation. Such a job needs no file if `load` names a checkpoint,
        which holds the configuration of its run.
        """
        argv = sys.argv[1:] if input_args is None else input_args
        line = launcher.parse_command_line(argv, _TYPES, _program(), _WORKER_OPTIONS)
        if "megatron_config" in line.passed:
            if line.files and not (len(line.files) == 1 and line.files[0].endswith(".py")):
                raise ConfigError(
                    f"command line: {line.files[0]}: cannot be combined with --megatron_config; remove one"
                )
            merged = cls._from_mapping(launcher.decode(line.passed["megatron_config"]))
        else:
            recorded = not (line.files or own_layout) and "load" in line.overrides
            if recorded:
                line.files.append(recorded_config(line.overrides["load"], line.overrides.get("iteration")))
            merged = cls._read(line.files, line.folder)
            if recorded:
                merged.values.pop("text_gen_type", None)  # it follows from the command line of this job
        merged = override(merged, line.overrides, _KNOWN, "command line")
        dry_run = (overwrite_values or {}).get("dry_run", merged.values.get("dry_run"))
        processes = None if dry_run or not own_layout else ranks.launched_world_size(merged.values) or 1
        return cls._build(merged, overwrite_values, processes)

    def get_deepspeed_main_args(self) -> list[str]:
        """Return the arguments of `deepspeed.launcher.runner.main`: options, script and encoded configuration.

        The configuration is passed as the user set it. Each worker resolves it with its own world size.
        """
        return [*launcher.runner_arguments(self), *self.worker_command()]

    def worker_command(self) -> list[str]:
        """Return the script and the arguments of each worker: the encoded configuration."""
        if self.user_script is None:
            raise ConfigError(self._missing("user_script"))
        given = {key: value for key, value in self.given.items() if key != "world_size"}
        return [
            self.user_script,
            "--deepspeed_config",
            launcher.encode(self.deepspeed_config),
            "--megatron_config",
            launcher.encode(given),
        ]

    def replace(self, **changes: Any) -> NeoXArgs:
        """Return a copy with `changes` applied to the user's keys, resolved and validated again."""
        return type(self)._build(Merged(copy.deepcopy(self.given)), changes, None, "replace")

    def require(self, *keys: str) -> None:
        """Raise ConfigError if any of `keys` has no value. The message names every missing key."""
        missing = [key for key in keys if getattr(self, key) is None]
        if missing:
            raise ConfigError("\n".join(map(self._missing, missing)))

    @staticmethod
    def _missing(key: str) -> str:
        return f"{key}: missing; {KEYS[key].doc}"

    def to_dict(self) -> dict[str, Any]:
        """Return every key except `config_files`, resolved and JSON-serializable. `from_dict` accepts it."""
        return {key: copy.deepcopy(getattr(self, key)) for key in _KNOWN if key != "config_files"}

    def non_default(self) -> dict[str, Any]:
        """Return the items of `to_dict` that differ from the defaults."""
        return {key: value for key, value in self.to_dict().items() if value != _KNOWN[key].default}

    def notices(self) -> list[str]:
        """Return one sentence per satisfied key that is set."""
        return [
            f"{name}: {key.notice}"
            for name, key in KEYS.items()
            if key.status == SATISFIED and getattr(self, name) != _KNOWN[name].default
        ]

    @classmethod
    def _read(cls, paths: Sequence[str | os.PathLike[str]], folder: str | None = None) -> Merged:
        if not paths:
            raise ConfigError("command line: expected at least one configuration file (see configs/)")
        found = [find_config(os.fspath(path), folder) for path in paths]
        for path in found:
            if found.count(path) > 1:
                raise ConfigError(f"{path}: given twice; give each configuration file once")
        files = [load_config(path) for path in found]
        merged = merge(files, _KNOWN)
        names = [os.path.basename(file.path) for file in files]
        unique = len(set(names)) == len(names)
        merged.values["config_files"] = {
            name if unique else file.path: file.text for name, file in zip(names, files, strict=True)
        }
        return merged

    @classmethod
    def _from_mapping(cls, mapping: Mapping[str, Any]) -> Merged:
        return merge([ConfigFile("configuration", "", dict(mapping), dict.fromkeys(mapping, 0))], _KNOWN)

    @classmethod
    def _build(
        cls,
        merged: Merged,
        changes: Mapping[str, Any] | None,
        world_size: int | None,
        origin: str = "overwrite_values",
    ) -> NeoXArgs:
        merged = override(merged, changes, _KNOWN, origin)
        if world_size is not None:
            merged.values["world_size"] = world_size
        try:
            return cls(**merged.values)
        except messages.Problems as problems:
            raise problems.located(merged.origins) from None


def _program() -> str:
    """The program's name for the usage message, as in argparse."""
    return os.path.basename(sys.argv[0])


def _script(name: str) -> str:
    """Return the path of script `name`, in the current folder or else in the launcher's. Raises ConfigError."""
    next_to = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), name)
    found = next((path for path in (name, next_to) if os.path.isfile(path)), None)
    if found is None:
        raise ConfigError(f"{name}: script not found, neither in this folder nor in {os.path.dirname(next_to)}")
    return found


def _world_size(argument: int | None) -> int | None:
    return ranks.launched_world_size({}) if argument is None else argument


_KNOWN: dict[str, dataclasses.Field[Any]] = NeoXArgs.__dataclass_fields__
_TYPES = {key: field.type for key, field in _KNOWN.items()}

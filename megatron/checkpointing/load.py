"""Load a checkpoint: files are verified first, run no code, and a damaged step falls back to an earlier one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing import collective
from megatron.checkpointing.integrity import load_safely, verify_share
from megatron.checkpointing.layout import (
    CONFIGS,
    LATEST,
    MANIFEST,
    WITHOUT_OPTIMIZER,
    locate,
    read_latest,
    step_directories,
)
from megatron.checkpointing.neox import Assembly, NeoxCheckpoint, is_neox, raw_tensors, saved_iteration
from megatron.checkpointing.reshard import Target, load_neox, load_whole
from megatron.checkpointing.rng import restore_rng_state
from megatron.checkpointing.save import rng_file
from megatron.checkpointing.unchanged import Compared, check_unchanged
from megatron.checkpointing.whole import Layout, WholeCheckpoint
from megatron.errors import CheckpointError
from megatron.files import read_bytes

logger = logging.getLogger(__name__)
_COUNTS = ("global_steps", "global_samples", "skipped_steps")  # of DeepSpeed
_SECTIONS = ("mup", "data", "layout")  # of client_state; each a mapping or missing


@dataclass(frozen=True)
class LoadedCheckpoint:
    """Result of `load_checkpoint`. `iteration` is 0 when finetuning; `rank_state` belongs to this rank."""

    iteration: int
    path: Path
    client_state: dict[str, Any]
    rank_state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedWeights:
    """Model weights on the CPU by name, memory-mapped from the checkpoint, with its state and configurations.

    Weights are whole and without vocabulary padding. The weights of a checkpoint that does not record its layout
    (for example a converted one) are returned as stored and can contain padding.
    """

    weights: dict[str, torch.Tensor]
    iteration: int
    path: Path
    client_state: dict[str, Any]
    configs: dict[str, str]


def find_intact(load_dir: str | Path, iteration: int | None = None) -> Path | None:
    """Return the verified checkpoint directory to read, or None if `load_dir` holds no checkpoint.

    Collective if torch.distributed is initialised. Without `iteration` this is the step in `latest`. If that step
    is damaged, it is the newest intact step before it, and a warning names the damaged files. Steps after `latest`
    belong to an abandoned branch; they count only if `latest` itself is missing or unreadable. Raises CheckpointError
    if no such step is intact, or if the requested `iteration` is missing or damaged.
    """
    load_dir, iteration = locate(Path(load_dir), iteration)
    candidates: list[Path] = collective.from_rank_0(lambda: _candidates(load_dir, iteration))
    damage: list[str] = []
    for path in candidates:
        if has_no_manifest(path):  # GPT-NeoX writes none
            return path
        share = verify_share(path, collective.rank(), collective.world_size())
        problems = sorted({problem for part in collective.gather(share) for problem in part})
        if not problems:
            if damage and collective.rank() == 0:
                logger.warning("falling back to %s, because files are damaged:\n  %s", path, "\n  ".join(damage))
            return path
        damage += problems
    if damage:
        later = "" if iteration is not None else _later_steps(load_dir)
        raise CheckpointError("there is no intact checkpoint to load:\n  " + "\n  ".join(damage) + later)
    return None


def _candidates(load_dir: Path, iteration: int | None) -> list[Path]:
    """Step directories in the order in which to try them."""
    steps = step_directories(load_dir)
    if iteration is not None:
        if iteration not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"{load_dir} holds no checkpoint of step {iteration} (available steps: {there})")
        return [steps[iteration]]
    latest = read_latest(load_dir)
    names_step = (load_dir / LATEST).exists()
    if not steps:
        named = load_dir if load_dir.is_dir() and is_neox(load_dir) else _named_by_latest(load_dir)
        if named is not None:
            return [named]
        if names_step:
            raise CheckpointError(
                f"{load_dir / LATEST} exists, but there is no checkpoint: restore one, or delete the file"
            )
        return []
    if latest not in steps:
        state = "does not name an existing checkpoint" if names_step else "is missing"
        where = "" if latest is None else f" before step {latest}"
        logger.warning("%s %s: loading the newest intact step%s", load_dir / LATEST, state, where)
    order = [step for step in sorted(steps, reverse=True) if latest is None or step <= latest]
    if not order:
        raise CheckpointError(f"{load_dir} holds no checkpoint up to step {latest}{_later_steps(load_dir)}")
    return [steps[step] for step in order]


def _named_by_latest(load_dir: Path) -> Path | None:
    """The checkpoint of GPT-NeoX under another name than global_step{N}, as its converters write it."""
    try:
        name = (load_dir / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = load_dir / name
    return path if name and path.parent == load_dir and is_neox(path) else None


def has_no_manifest(path: Path) -> bool:
    """Whether `path` is a checkpoint of GPT-NeoX, which lists no sizes and hashes to verify."""
    return not (path / MANIFEST).exists() and is_neox(path)


def _later_steps(load_dir: Path) -> str:
    """For a message: the steps after `latest`, which only `iteration` loads; empty where there are none."""
    latest = read_latest(load_dir)
    later = [step for step in step_directories(load_dir) if latest is not None and step > latest]
    if not later:
        return ""
    steps = ", ".join(map(str, later))
    return f"\nnot tried, because {load_dir / LATEST} names step {latest}: {steps}. Set iteration to load one of them"


def load_checkpoint(
    engine: Any,
    load_dir: str | Path,
    *,
    iteration: int | None = None,
    load_optimizer: bool = True,
    load_rng: bool = True,
    finetune: bool = False,
    mup: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    optimizer: Mapping[str, Any] | None = None,
    target: Target | None = None,
) -> LoadedCheckpoint | None:
    """Restore a DeepSpeed engine from `load_dir`. Returns None if it holds no checkpoint.

    Collective: every rank must call it.
    load_optimizer: with False, the optimizer and the schedule start from scratch with the saved weights.
    finetune: load only the weights and start at iteration 0.
    mup, data, optimizer: compared with the sections of the saved `client_state` before anything is changed, unless
    finetuning. A checkpoint that does not record its data or its optimizer is not compared with it, and neither is one
    whose optimizer is not loaded. A checkpoint of GPT-NeoX gives its weights, which needs `finetune` and `target`.
    target: the layout to reshard to if the checkpoint was saved under another layout of processes. After
    resharding, the random generators start from fresh seeds.

    Raises CheckpointError if there is no intact checkpoint, if one of these changed (with a table
    of the differences), or if the checkpoint does not fit the model or the number of processes.
    """
    path = find_intact(load_dir, iteration)
    if path is None:
        return None
    if collective.from_rank_0(lambda: is_neox(path)):
        return _load_from_neox(engine, path, finetune, target)
    weights_only = finetune or not load_optimizer
    header = collective.on_all_ranks(lambda: read_header(path))
    client_state = header["client_state"]
    if not weights_only and header.get(WITHOUT_OPTIMIZER):
        raise CheckpointError(
            f"{path} holds no optimizer state, because it was saved with no_save_optim: set no_load_optim: true to "
            f"continue at step {header['iteration']} with a fresh optimizer and schedule, or finetune: true to start a "
            "new run from its weights"
        )
    if not finetune:
        _check_sections(client_state, mup, data, optimizer if load_optimizer else None)
    moved = target is not None and _is_of_another_layout(client_state, target)
    if moved and target is not None:
        _load_resharded(engine, path, header, target, weights_only)
    else:
        _check_layout(engine, path, header, weights_only)
        collective.on_all_ranks(lambda: _load_engine(engine, path, weights_only))
    if finetune:
        return LoadedCheckpoint(0, path, client_state)
    engine.global_steps, engine.global_samples = header["global_steps"], header["global_samples"]
    engine.skipped_steps = header["skipped_steps"]
    if moved:
        return LoadedCheckpoint(header["iteration"], path, client_state)
    own = collective.on_all_ranks(lambda: _read_own(path))
    if load_rng and own["rng"] is not None:
        restore_rng_state(own["rng"])
    return LoadedCheckpoint(header["iteration"], path, client_state, own["rank_state"])


def _load_from_neox(engine: Any, path: Path, finetune: bool, target: Target | None) -> LoadedCheckpoint:
    if not finetune or target is None or target.assembly is None:
        raise CheckpointError(
            f"{path} was saved by GPT-NeoX. Its weights can be loaded, but not its optimizer state and its position in "
            "the data: set finetune: true to start a new run from its weights"
        )
    assembly = target.assembly
    collective.on_all_ranks(lambda: load_neox(engine, target, NeoxCheckpoint(path, assembly)))
    return LoadedCheckpoint(0, path, {})


def _check_sections(
    client_state: Mapping[str, Any],
    mup: Mapping[str, Any] | None,
    data: Mapping[str, Any] | None,
    optimizer: Mapping[str, Any] | None,
) -> None:
    def compared(name: str, now: Mapping[str, Any] | None) -> Compared | None:
        saved = client_state.get(name)
        return None if now is None or saved is None else Compared(saved, now)

    saved_mup = {} if mup is None else client_state.get("mup", {})
    check_unchanged(saved_mup, mup or {}, compared("data", data), compared("optimizer", optimizer))


def load_weights(load_dir: str | Path, iteration: int | None = None, assembly: Assembly | None = None) -> LoadedWeights:
    """Load model weights on the CPU without an engine, for sampling, conversion and inspection.

    load_dir: a save directory or one of its `global_step{N}`, saved under any layout of processes. Verification and
    fallback are those of `load_checkpoint`.
    assembly: how the model's parameters are made of GPT-NeoX's shards. Without it, the tensors of a checkpoint of
    GPT-NeoX are returned as stored, under its names. Raises CheckpointError.
    """
    path = find_intact(load_dir, iteration)
    if path is None:
        raise CheckpointError(f"{load_dir} holds no checkpoint")
    if is_neox(path):
        return LoadedWeights(_neox_weights(path, assembly), saved_iteration(path), path, {}, _configs(path))
    header = read_header(path)
    whole = header["client_state"].get("layout") is not None
    if not whole and len(list(path.glob("*model_states.pt"))) > 1:
        raise CheckpointError(
            f"{path} contains sharded weights but does not record their layout, so they cannot be assembled. Load it "
            "with the trainer that saved it"
        )
    weights = WholeCheckpoint(path, header).weights if whole else dict(header.get("module") or {})
    if not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise CheckpointError(f"{path} was not saved by this trainer: its weights are not all tensors")
    if not any(weight.numel() for weight in weights.values()):
        raise CheckpointError(f"{path} holds no parameters: its model files are empty")
    return LoadedWeights(weights, header["iteration"], path, header["client_state"], _configs(path))


def _neox_weights(path: Path, assembly: Assembly | None) -> dict[str, torch.Tensor]:
    if assembly is None:
        return dict(raw_tensors(path))
    checkpoint = NeoxCheckpoint(path, assembly)
    checkpoint.check_fit()
    return {name: checkpoint.weight(name) for name in assembly.shapes}


def _configs(path: Path) -> dict[str, str]:
    try:
        return {file.name: read_bytes(file, 1 << 26).decode() for file in sorted((path / CONFIGS).glob("*"))}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path / CONFIGS} cannot be read: {error}") from error


def read_header(path: Path) -> dict[str, Any]:
    """Load the first model file, memory-mapped: tensors are read when they are used. Raises CheckpointError."""
    files = sorted(path.glob("mp_rank_*_model_states.pt")) or sorted(path.glob("*_model_states.pt"))
    if not files:
        raise CheckpointError(f"{path} holds no model states")
    header: dict[str, Any] = load_safely(files[0], mmap=True)
    if not isinstance(header, dict) or not isinstance(header.get("client_state"), dict):
        raise CheckpointError(f"{files[0]} was not saved by this trainer: it has no client_state")
    counts = {"iteration": header.get("iteration"), **{name: header.get(name, 0) for name in _COUNTS}}
    wrong = next((name for name, value in counts.items() if not _is_count(value)), None)
    sections = {"module": header.get("module"), **{name: header["client_state"].get(name) for name in _SECTIONS}}
    wrong = wrong or next((name for name, value in sections.items() if not isinstance(value, dict | None)), None)
    if wrong is not None:
        raise CheckpointError(f"{files[0]} was not saved by this trainer: its {wrong} is missing or wrong")
    return header


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 63


def _read_own(path: Path) -> dict[str, Any]:
    """Random generators and state of this rank; empty if fewer processes saved the checkpoint."""
    file = path / rng_file(collective.rank())
    if file.exists():
        own: dict[str, Any] = load_safely(file)
        return own
    logger.warning("%s is missing: rank %d continues with fresh random generators", file, collective.rank())
    return {"rng": None, "rank_state": {}}


def _check_layout(engine: Any, path: Path, header: Mapping[str, Any], weights_only: bool) -> None:
    """Raise before anything is changed if DeepSpeed would fail in the middle of loading."""
    if weights_only:
        return
    saved_zero, zero = header["optimizer"] is None, bool(engine.zero_optimization())
    saved, now = header["dp_world_size"], engine.seq_dp_world_size
    problem = None
    if saved_zero != zero:
        on_off = ("off", "on")
        problem = f"it was saved with ZeRO {on_off[saved_zero]}, but ZeRO is {on_off[zero]} now"
    elif zero and saved != now:
        problem = f"its optimizer state is sharded over {saved} data-parallel processes, but there are {now} now"
    if problem:
        raise CheckpointError(f"{path}: {problem}. Resume with the saved layout, or load without the optimizer")


def _is_of_another_layout(client_state: Mapping[str, Any], target: Target) -> bool:
    section = client_state.get("layout")
    return section is not None and Layout.from_section(section).same_files != target.layout.same_files


def _load_resharded(engine: Any, path: Path, header: Mapping[str, Any], target: Target, weights_only: bool) -> None:
    whole = WholeCheckpoint(path, header)
    if collective.rank() == 0:
        saved, now = whole.layout, target.layout
        logger.warning("%s was saved under %s; resharding it for %s", path, saved.describe(), now.describe())
    collective.on_all_ranks(lambda: load_whole(engine, target, whole, optimizer=not weights_only))
    if not weights_only and engine.lr_scheduler is not None:
        collective.on_all_ranks(lambda: engine.lr_scheduler.load_state_dict(header["lr_scheduler"]))


def _load_engine(engine: Any, path: Path, weights_only: bool) -> None:
    from megatron.checkpointing.deepspeed_io import install

    install(engine)
    try:
        engine.load_checkpoint(
            str(path.parent),
            tag=path.name,
            load_optimizer_states=not weights_only,
            load_lr_scheduler_states=not weights_only,
            # Otherwise the fp32 master weights of bf16 or fp16 would keep the values of the fresh model.
            load_module_only=weights_only,
        )
    except CheckpointError:  # such as the refusal of another schedule, with its table
        raise
    except Exception as error:  # DeepSpeed and torch raise many types if the model does not fit
        raise CheckpointError(f"{path} does not fit this model: {' '.join(str(error).split())}") from error

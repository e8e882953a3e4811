"""Reading a checkpoint: verified first, never running code, falling back where a step is damaged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing import collective
from megatron.checkpointing.integrity import load_safely, verify_share
from megatron.checkpointing.layout import CONFIGS, LATEST, locate, read_latest, step_directories
from megatron.checkpointing.reshard import Target, load_whole
from megatron.checkpointing.rng import restore_rng_state
from megatron.checkpointing.save import rng_file
from megatron.checkpointing.unchanged import check_unchanged
from megatron.checkpointing.whole import Layout, WholeCheckpoint
from megatron.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What `load_checkpoint` restored. `iteration` is 0 when finetuning; `rank_state` is this rank's own."""

    iteration: int
    path: Path
    client_state: dict[str, Any]
    rank_state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedWeights:
    """Model weights on the CPU by name, memory-mapped from the checkpoint, and what was saved with them.

    Weights are whole and without vocabulary padding. A checkpoint that does not record its layout, such as a converted
    one, may hold padding: its weights are as its file has them.
    """

    weights: dict[str, torch.Tensor]
    iteration: int
    path: Path
    client_state: dict[str, Any]
    configs: dict[str, str]


def find_intact(load_dir: str | Path, iteration: int | None = None) -> Path | None:
    """The verified checkpoint directory to read; None where `load_dir` holds no checkpoint at all.

    Collective if torch.distributed runs. Without `iteration`: the step in `latest`, else, with a warning that
    names the damaged files, the newest intact step. Raises CheckpointError where none is intact, or where
    the `iteration` asked for is missing or damaged.
    """
    load_dir, iteration = locate(Path(load_dir), iteration)
    candidates: list[Path] = collective.from_rank_0(lambda: _candidates(load_dir, iteration))
    damage: list[str] = []
    for path in candidates:
        share = verify_share(path, collective.rank(), collective.world_size())
        problems = sorted({problem for part in collective.gather(share) for problem in part})
        if not problems:
            if damage and collective.rank() == 0:
                logger.warning("falling back to %s, because of damage:\n  %s", path, "\n  ".join(damage))
            return path
        damage += problems
    if damage:
        raise CheckpointError("no intact checkpoint to load:\n  " + "\n  ".join(damage))
    return None


def _candidates(load_dir: Path, iteration: int | None) -> list[Path]:
    """Step directories in the order to try them."""
    steps = step_directories(load_dir)
    if iteration is not None:
        if iteration not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"{load_dir} holds no checkpoint of step {iteration} (steps there: {there})")
        return [steps[iteration]]
    latest = read_latest(load_dir)
    names_step = (load_dir / LATEST).exists()
    if not steps:
        if names_step:
            raise CheckpointError(
                f"{load_dir / LATEST} is there, but no checkpoint is: restore one, or delete the file"
            )
        return []
    if latest not in steps:
        state = "names no checkpoint that is there" if names_step else "is missing"
        logger.warning("%s %s: taking the newest intact step", load_dir / LATEST, state)
    order = sorted(steps, key=lambda step: (step != latest, -step))
    return [steps[step] for step in order]


def load_checkpoint(
    engine: Any,
    load_dir: str | Path,
    *,
    iteration: int | None = None,
    load_optimizer: bool = True,
    load_rng: bool = True,
    finetune: bool = False,
    mup: Mapping[str, Any] | None = None,
    target: Target | None = None,
) -> LoadedCheckpoint | None:
    """Restore a DeepSpeed engine from `load_dir`; None where it holds no checkpoint at all.

    Collective: every rank calls it. `finetune` takes the weights alone and starts at iteration 0. Without
    `load_optimizer`, the optimizer and the schedule start anew from the saved weights. `mup`, if given, is
    compared with the saved `client_state["mup"]` before anything is touched, unless finetuning. With `target`, a
    checkpoint that another layout of processes saved is taken apart and put together anew; its random generators
    then start afresh.

    Raises CheckpointError where nothing intact is found, the parametrization changed (with a table of the
    differences), or the checkpoint does not fit the model or the number of processes.
    """
    path = find_intact(load_dir, iteration)
    if path is None:
        return None
    weights_only = finetune or not load_optimizer
    header = collective.on_all_ranks(lambda: _read_header(path))
    client_state = header["client_state"]
    if mup is not None and not finetune:
        check_unchanged(client_state.get("mup", {}), mup)
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


def load_weights(load_dir: str | Path, iteration: int | None = None) -> LoadedWeights:
    """Model weights on the CPU without an engine, for sampling, conversion and inspection.

    `load_dir` is a save directory or one of its `global_step{N}`. The same verification and fallback as
    `load_checkpoint`, and any layout of processes may have saved it. Raises CheckpointError.
    """
    path = find_intact(load_dir, iteration)
    if path is None:
        raise CheckpointError(f"{load_dir} holds no checkpoint")
    header = _read_header(path)
    whole = header["client_state"].get("layout") is not None
    if not whole and len(list(path.glob("*model_states.pt"))) > 1:
        raise CheckpointError(f"{path} holds sharded weights and does not say how: it cannot be put together")
    weights = WholeCheckpoint(path, header).weights if whole else dict(header["module"])
    if not any(weight.numel() for weight in weights.values()):
        raise CheckpointError(f"{path} holds no parameters: its model files are empty")
    configs = {file.name: file.read_text(encoding="utf-8") for file in sorted((path / CONFIGS).glob("*"))}
    return LoadedWeights(weights, header["iteration"], path, header["client_state"], configs)


def _read_header(path: Path) -> dict[str, Any]:
    """The first model file, memory-mapped: its tensors cost nothing until they are used."""
    files = sorted(path.glob("mp_rank_*_model_states.pt")) or sorted(path.glob("*_model_states.pt"))
    if not files:
        raise CheckpointError(f"{path} holds no model states")
    header: dict[str, Any] = load_safely(files[0], mmap=True)
    if "client_state" not in header:
        raise CheckpointError(f"{files[0]} was not saved by this trainer: it has no client_state")
    return header


def _read_own(path: Path) -> dict[str, Any]:
    """This rank's generators and state; empty where fewer processes saved the checkpoint."""
    file = path / rng_file(collective.rank())
    if file.exists():
        own: dict[str, Any] = load_safely(file)
        return own
    logger.warning("%s is missing: rank %d goes on with fresh random generators", file, collective.rank())
    return {"rng": None, "rank_state": {}}


def _check_layout(engine: Any, path: Path, header: Mapping[str, Any], weights_only: bool) -> None:
    """Refuse, before anything is touched, what DeepSpeed would fail on half-way."""
    if weights_only:
        return
    saved_zero, zero = header["optimizer"] is None, bool(engine.zero_optimization())
    saved, now = header["dp_world_size"], engine.seq_dp_world_size
    problem = None
    if saved_zero != zero:
        on_off = ("off", "on")
        problem = f"it was saved with ZeRO {on_off[saved_zero]}, and ZeRO is {on_off[zero]} now"
    elif zero and saved != now:
        problem = f"its optimizer state is sharded over {saved} data-parallel processes, and there are {now} now"
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
            # Otherwise the fp32 master weights under bf16 or fp16 would stay those of the fresh model.
            load_module_only=weights_only,
        )
    except Exception as error:  # DeepSpeed and torch raise many types for a model that does not fit
        raise CheckpointError(f"{path} does not fit this model: {' '.join(str(error).split())}") from error

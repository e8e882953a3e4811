"""The checkpoints of a run: load one to continue, save, and return to the last one after a bad step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing import (
    Layout,
    LoadedCheckpoint,
    PendingSave,
    Target,
    begin_save,
    step_directories,
)
from megatron.checkpointing.collective import from_rank_0
from megatron.checkpointing.load import load_checkpoint
from megatron.errors import CheckpointError, TrainingError
from megatron.initialize import Runtime
from megatron.neox_arguments.run_config import LoadConfig, RunConfig, SaveConfig
from megatron.training.console import shown_path
from megatron.training.model_from_config import neox_assembly
from megatron.training.report import checkpoint_layout, mup_section
from megatron.training.resume import optimizer_section
from megatron.training.train_module import TrainModule

_SETTINGS = ("betas", "eps", "weight_decay", "independent_weight_decay", "peak_lr", "momentum", "nesterov")


class Checkpoints:
    """Loads and saves checkpoints of one run. Every method is collective, except `close`.

    data: the section that describes the run's data. Sections of the parametrization, the data and the optimizer are
    saved with each checkpoint and compared when one is loaded.
    """

    def __init__(self, config: RunConfig, module: TrainModule, runtime: Runtime, data: Mapping[str, Any]) -> None:
        self._config, self._module, self._runtime, self._data = config, module, runtime, data
        self._settings = [
            {key: group[key] for key in _SETTINGS if key in group} for group in module.engine.optimizer.param_groups
        ]
        background = config.save is not None and config.save.background
        self._executor: Executor | None = ThreadPoolExecutor(1, "save") if background else None
        self._pending: PendingSave | None = None
        self._continued: Path | None = None

    @cached_property
    def layout(self) -> Layout:
        """Layout of the checkpoints. It is computed only by runs that load or save one."""
        return checkpoint_layout(self._config.engine, self._module)

    def load(self, config: LoadConfig) -> LoadedCheckpoint | None:
        """Load the configured checkpoint, or return None if there is none."""
        loaded = self._load(
            config.directory,
            iteration=config.iteration,
            data=None if config.override_data else self._data,
            optimizer=None if config.override_optimizer else optimizer_section(self._config.engine.optimizer),
            load_optimizer=config.optimizer,
            load_rng=config.rng,
            finetune=config.finetune,
        )
        if loaded is not None and config.optimizer and not config.finetune:
            self._continued = loaded.path
        return loaded

    def reload(self, why: str) -> LoadedCheckpoint:
        """Load the last intact checkpoint of this run. Raises TrainingError, which starts with `why`, without one."""
        folder = from_rank_0(self.last)
        save = self._config.save
        if folder is None:
            raise TrainingError(
                f"{why}, and there is no checkpoint to rewind to: start again with a smaller checkpoint_factor, or "
                "with a step before this one in extra_save_iters"
            )
        own = save is not None and folder.parent == save.directory.absolute()
        loaded = self._load(folder.parent if own else folder)  # of its own ones, the newest intact one
        assert loaded is not None
        return loaded

    def _load(self, directory: Path, **options: Any) -> LoadedCheckpoint | None:
        module = self._module
        parameters = list(module.model.global_named_parameters())
        target = Target(self.layout, parameters, self._runtime.groups.tensor, neox_assembly(module.plan))
        loaded = load_checkpoint(module.engine, directory, mup=mup_section(module), target=target, **options)
        # a load replaces the groups' settings by the checkpoint's, which differ after override_optimizer
        for group, settings in zip(module.engine.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        module.scheduler.apply()  # DeepSpeed restores ZeRO's groups after the schedule
        if loaded is not None and self._config.load is not None and self._config.load.forward_pass:
            self._compare_forward_pass(loaded)
        return loaded

    def _forward_pass(self) -> dict[str, Any]:
        """The loss on a fixed text, and what it depends on besides the weights. Collective."""
        config, vocab_size = self._config, self._module.plan.config.vocab_size
        text = (torch.arange(config.model.seq_length + 1) * 7919 % vocab_size).expand(config.batch.micro, -1)
        loss = self._module.evaluate(iter([{"text": text}]), 1)
        return {"loss": loss, "seq_length": config.model.seq_length, "precision": config.engine.precision}

    def _compare_forward_pass(self, loaded: LoadedCheckpoint) -> None:
        """Raise CheckpointError if the loaded weights have another loss on the fixed text than the saved ones."""
        saved = loaded.client_state.get("forward_pass")
        if saved is None:  # saved without the key
            return
        now = self._forward_pass()
        if saved["seq_length"] != now["seq_length"]:
            return
        tolerance = 1e-4 if {saved["precision"], now["precision"]} == {"fp32"} else 2e-2
        if not abs(now["loss"] - saved["loss"]) <= tolerance * max(1.0, abs(saved["loss"])):
            raise CheckpointError(
                f"{loaded.path}: the loss of the loaded weights on fixed tokens is {now['loss']:.6f}, but it was "
                f"{saved['loss']:.6f} when they were saved. Load another step with iteration, or set "
                "checkpoint_validation_with_forward_pass: false to load it in spite of this"
            )

    def save(self, config: SaveConfig, step: int, state: Mapping[str, Any]) -> list[str]:
        """Begin to save a checkpoint, after an earlier save is complete. Returns lines on complete saves."""
        said = self.finish()
        provenance = self._config.provenance
        self._pending = begin_save(
            self._module.engine,
            config.directory,
            step,
            client_state={
                **state,
                "data": self._data,
                "optimizer": optimizer_section(self._config.engine.optimizer),
                "mup": mup_section(self._module),
                "layout": self.layout.section(),
                **({"forward_pass": self._forward_pass()} if config.forward_pass else {}),
            },
            config_files={**provenance.files, "resolved.json": json.dumps(provenance.keys, indent=1)},
            keep_last_n=config.keep_last,
            save_rng=config.rng,
            save_optimizer=config.optimizer,
            executor=self._executor,
        )
        return said if config.background else [*said, *self.finish()]

    def poll(self) -> list[str]:
        """Lines on a save that has become complete since the last call."""
        return [] if self._pending is None else self._done(self._pending.poll())

    def finish(self) -> list[str]:
        """Wait for a save that is under way. Returns lines on it."""
        return [] if self._pending is None else self._done(self._pending.finish())

    def _done(self, path: Path | None) -> list[str]:
        if path is None:
            return []
        self._pending = None
        return [f"saved {shown_path(path)}"]

    def last(self) -> Path | None:
        """The newest checkpoint of this run, or the one that it continues."""
        save = self._config.save
        steps = {} if save is None else step_directories(save.directory.absolute())
        return steps[max(steps)] if steps else self._continued

    def close(self) -> None:
        """Wait for this process's files of a save that is under way."""
        if self._executor is not None:
            self._executor.shutdown()

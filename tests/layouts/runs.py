"""Runs of the real trainer under a layout, inside the processes of `tests.mpu.distributed.run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from muneox.development.layouts import Layout, configuration

STEPS = 6


def train(
    layout: Layout,
    folder: str,
    steps: int,
    load: str | None = None,
    save: str | None = None,
    inspect: Callable[[Any], None] | None = None,
    **changes: Any,
) -> tuple[list[float], list[float | None]]:
    """Train `steps` steps after the loaded checkpoint, then save. Returns losses and gradient norms."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.neox_arguments.resolve import run_config
    from megatron.training.trainer import Trainer

    keys = {**configuration(layout, Path(folder) / "corpus", STEPS), "save": save, "load": load, **changes}
    config = run_config(NeoXArgs.from_dict(keys, world_size=layout.world_size))
    trainer = Trainer(config, initialize_megatron("gloo", config.seed, layout.tensor, layout.pipe))
    batches = trainer.data.train_batches(trainer.progress.consumed_samples)
    losses, norms = [], []
    for _ in range(steps):
        losses.append(trainer.train_module.train_step(batches)[0])
        norms.append(trainer.train_module.grad_norm())
        trainer.progress = trainer.progress.after_step(config.batch.size, config.model.seq_length)
    if config.save is not None:
        trainer.save(config.save)
    if inspect is not None:
        inspect(trainer)
    return losses, norms

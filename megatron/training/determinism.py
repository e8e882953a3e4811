"""The check that a run gives the same bits twice: losses and weights of its first steps, from the same state."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron.initialize import Runtime, seed_all
from megatron.neox_arguments.job_configs import DeterminismCheckConfig
from megatron.neox_arguments.run_config import RunConfig
from megatron.training.full_state import weight_digests
from megatron.training.trainer import Trainer


@dataclass(frozen=True)
class Trace:
    """State after a number of steps: the loss of the last one in hexadecimal, and the SHA-256 of each parameter."""

    step: int
    loss: str
    digests: Mapping[str, str]


@dataclass(frozen=True)
class DeterminismResult:
    """The last common step, and what differs after it: the two losses, and the names of parameters."""

    steps: int
    start: int
    different_step: int | None = None
    losses: tuple[str, str] | None = None
    parameters: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.different_step is None

    def describe(self) -> str:
        """The verdict in a few lines."""
        if self.passed:
            return f"PASS: {self.steps} steps from step {self.start} gave the same losses and weights twice, bit by bit"
        lines = [f"FAIL: the two runs differ for the first time at step {self.different_step}"]
        if self.losses is not None:
            first, second = map(float.fromhex, self.losses)
            lines.append(f"loss: {first!r} and {second!r}")
        if self.parameters:
            more = f" and {len(self.parameters) - 1} more" if len(self.parameters) > 1 else ""
            lines.append(f"parameters: {self.parameters[0]}{more}")
        lines.append("deterministic: true selects deterministic algorithms")
        return "\n".join(lines)


def check_determinism(config: DeterminismCheckConfig, runtime: Runtime) -> DeterminismResult:
    """Run the first steps twice, each time on a fresh engine with fresh data loaders, and compare. Collective.

    The state at the start is that of the run: its checkpoint in `load`, or its initial weights.
    """
    first, second = (_trace(config.run, config.steps, runtime) for _ in range(2))
    return compare(first, second)


def compare(first: Sequence[Trace], second: Sequence[Trace]) -> DeterminismResult:
    """Compare two traces of the same steps. The first entry of each is the state before the first step."""
    steps, start = len(first) - 1, first[0].step
    for one, other in zip(first, second, strict=True):
        names = tuple(name for name in one.digests if one.digests[name] != other.digests[name])
        losses = None if one.loss == other.loss else (one.loss, other.loss)
        if names or losses:
            return DeterminismResult(steps, start, one.step, losses, names)
    return DeterminismResult(steps, start)


def _trace(config: RunConfig, steps: int, runtime: Runtime) -> list[Trace]:
    seed_all(config.seed, runtime.groups)
    trainer = Trainer(config, runtime)
    module = trainer.train_module
    batches = trainer.data.train_batches(trainer.progress.consumed_samples)
    traces = [Trace(trainer.step, "", weight_digests(module))]
    for number in range(1, steps + 1):
        loss = module.train_step(batches).loss
        traces.append(Trace(trainer.step + number, loss.hex(), weight_digests(module)))
    module.engine.destroy()
    del trainer, module, batches
    gc.collect()  # the engine contains reference cycles
    return traces

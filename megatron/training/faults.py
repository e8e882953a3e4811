"""Bad steps: what a run does after a loss or gradient that is not finite, or a loss spike, and what it records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.data.gpt_dataset import Located
from megatron.errors import CheckpointError
from megatron.neox_arguments.run_config import FaultConfig, Policy
from megatron.training.spikes import LossSpikes
from megatron.training.train_module import Fault, StepOutcome

_MAX_DOCUMENTS = 20
_WAYS_OUT = {
    Fault.LOSS: "Lower lr, lengthen warmup, or clip gradients; with fp16 prefer bfloat16. {key}: skip or rewind leaves "
    "out single bad batches",
    Fault.GRADIENT: "Lower lr, lengthen warmup, or look at the data of this batch; with fp16 prefer bfloat16. {key}: "
    "skip or rewind leaves out single bad batches",
    Fault.SPIKE: "Lower lr, lengthen warmup, or raise loss_spike_threshold. {key}: skip or rewind leaves out single "
    "bad batches",
}


@dataclass(frozen=True)
class BadStep:
    """A bad step. policy: what the run does now. exhausted: whether that is `raise` because of the limit.

    deviation: of the loss from the last losses, in robust standard deviations; None before there are enough.
    """

    step: int
    fault: Fault
    policy: Policy
    loss: float
    deviation: float | None
    exhausted: bool = False

    @property
    def what(self) -> str:
        """The fault with its figures, as the start of a message."""
        value = f"the loss is {self.loss:.6g}" if self.fault is Fault.LOSS else self.fault.value
        figures = [f"loss {self.loss:.6g}"] if self.fault is not Fault.LOSS else []
        if self.fault is Fault.SPIKE:
            figures.append(f"{self.deviation:.1f} robust standard deviations above the median")
        return f"{value} at step {self.step}" + (f" ({', '.join(figures)})" if figures else "")


class Faults:
    """The policies of a run, and the history that they need. The state is in the checkpoint."""

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self.spikes = LossSpikes(config.spike_window, config.spike_threshold)
        self.skipped = 0
        self.rewinds: list[dict[str, int]] = []
        self._in_a_row = 0
        self._last_step = 0

    def refuse(self, loss: float) -> bool:
        """Whether no update must be made with a finite loss, because it is a spike."""
        return self.config.spike not in ("off", "warn") and self.spikes.is_spike(loss)

    def note(self, outcome: StepOutcome, step: int) -> BadStep | None:
        """Note the outcome of a step. Returns what to do if it is bad, else None."""
        deviation = self.spikes.deviation(outcome.loss)
        fault, policy = outcome.fault, self.config.nonfinite
        if fault is None and self.config.spike == "warn" and self.spikes.is_spike(outcome.loss):
            fault = Fault.SPIKE
        if fault is Fault.SPIKE:
            policy = self.config.spike
        self.spikes.add(outcome.loss)
        if outcome.fault is None and step > self._last_step:  # a rewind repeats steps before it gets further
            self._in_a_row = 0
        if fault is None:
            return None
        exhausted = False
        if policy in ("skip", "rewind"):
            self._in_a_row, self._last_step = self._in_a_row + 1, max(step, self._last_step)
            exhausted = self._in_a_row > self.config.limit
        if policy == "skip" and not exhausted:
            self.skipped += 1
        return BadStep(step, fault, "raise" if exhausted else policy, outcome.loss, deviation, exhausted)

    def error(self, bad: BadStep, batch: Sequence[Located], last_checkpoint: Path | None) -> str:
        """Message of the error that ends the run."""
        key = "loss_spike_policy" if bad.fault is Fault.SPIKE else "nonfinite_policy"
        kept = f"The last checkpoint is {last_checkpoint}" if last_checkpoint else "No checkpoint was saved"
        if bad.exhausted:
            set_to = self.config.spike if bad.fault is Fault.SPIKE else self.config.nonfinite
            done = f"after {self.config.limit} bad steps in a row (nonfinite_limit) {key}: {set_to} gives up"
            way_out = "Lower lr, lengthen warmup, or raise nonfinite_limit"
        else:
            done, way_out = "the update was not made", _WAYS_OUT[bad.fault].format(key=key)
        return f"{bad.what}; {done}. {describe_batch(batch)}. {kept}. {way_out}"

    def describe(self, bad: BadStep, batch: Sequence[Located]) -> str:
        """Line for a bad step after which the run continues."""
        done = {
            "warn": "the update is made",
            "skip": f"the update is skipped ({self._in_a_row} in a row of at most {self.config.limit})",
            "rewind": "the run rewinds",
        }[bad.policy]
        return f"warning: {bad.what}; {done}. {describe_batch(batch)}"

    def rewound(self, saved: Mapping[str, Any] | None, rewind: Mapping[str, int]) -> None:
        """Continue from a checkpoint's section after a rewind. The count of bad steps in a row stays."""
        in_a_row, last_step, rewinds = self._in_a_row, self._last_step, self.rewinds
        self.restore(saved)
        self._in_a_row, self._last_step, self.rewinds = in_a_row, last_step, [*rewinds, dict(rewind)]

    def section(self) -> dict[str, Any]:
        """The state as plain values, for the checkpoint."""
        return {
            "skipped": self.skipped,
            "rewinds": [dict(rewind) for rewind in self.rewinds],
            "in_a_row": self._in_a_row,
            "last_step": self._last_step,
            "losses": self.spikes.losses,
        }

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Continue from a checkpoint's section; a checkpoint without one starts a new history."""
        saved = saved or {}
        try:
            self.skipped = int(saved.get("skipped", 0))
            self.rewinds = [
                {str(key): int(value) for key, value in entry.items()} for entry in saved.get("rewinds", [])
            ]
            self._in_a_row, self._last_step = int(saved.get("in_a_row", 0)), int(saved.get("last_step", 0))
            self.spikes.restore([float(loss) for loss in saved.get("losses", [])])
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the faults section of the checkpoint is incomplete: {error!r}") from None


def describe_batch(batch: Sequence[Located]) -> str:
    """The samples of a batch, for a message: indices and documents, corpus by corpus."""
    return "The batch is " + "; ".join(
        f"samples {part.first} to {part.first + part.count - 1} of {part.prefix} (documents {_listed(part.documents)})"
        for part in batch
    )


def _listed(documents: Sequence[int]) -> str:
    shown = ", ".join(map(str, documents[:_MAX_DOCUMENTS]))
    return shown + (f" and {len(documents) - _MAX_DOCUMENTS} more" if len(documents) > _MAX_DOCUMENTS else "")


def fault_record(bad: BadStep, batch: Sequence[Located], skipped: int) -> dict[str, float | int | None]:
    """Metrics of a bad step. In a blend, the samples of corpus i have the suffix /i."""
    record: dict[str, float | int | None] = {"fault/skipped_steps": skipped}
    if bad.fault is Fault.SPIKE:
        record["fault/loss_spike"] = bad.deviation
    for part in batch:
        suffix = "" if part.number is None else f"/{part.number}"
        record |= {f"fault/first_sample{suffix}": part.first, f"fault/samples{suffix}": part.count}
    return record

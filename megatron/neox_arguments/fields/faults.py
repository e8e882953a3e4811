"""Keys of faults during training and of reproducibility. GPT-NeoX has none of them."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import supported
from megatron.neox_arguments.limits import above, at_least
from megatron.neox_arguments.transfer import FREE


@dataclass(kw_only=True)
class NeoXArgsFaults:
    """Bad losses and gradients, loss spikes, determinism, and saving in the background."""

    nonfinite_policy: Literal["raise", "skip", "rewind"] = supported(
        "raise",
        "At a loss or gradient that is not finite, no update is made. raise: the run ends. skip: it continues with the"
        " next batch. rewind: it loads its last intact checkpoint and continues with the samples after the bad batch.",
        transfer=FREE,
    )
    nonfinite_limit: int = supported(
        5,
        "Number of updates in a row that may be skipped, or of rewinds without progress, before the run ends with an"
        " error. Also limits loss_spike_policy.",
        limit=at_least(1),
        transfer=FREE,
    )
    loss_spike_policy: Literal["off", "warn", "raise", "skip", "rewind"] = supported(
        "warn",
        "What happens at a loss spike. warn: the run prints a line, records the spike and makes the update. The other"
        " values are those of nonfinite_policy.",
        transfer=FREE,
    )
    loss_spike_threshold: float = supported(
        10.0,
        "A loss is a spike if it is this many robust standard deviations above the median of the last"
        " loss_spike_window losses.",
        limit=above(0),
        transfer=FREE,
    )
    loss_spike_window: int = supported(
        100,
        "Number of steps with which a loss is compared. Spikes are recognised after so many steps.",
        limit=at_least(3),
        transfer=FREE,
    )
    deterministic: bool = supported(
        False,
        "Use only algorithms that give the same bits in every run (torch.use_deterministic_algorithms, cuDNN, cuBLAS)."
        " Slower on GPUs. An operation without such an algorithm is an error.",
        transfer=FREE,
    )
    check_determinism: int | None = supported(
        None,
        "Instead of training, run this many steps twice from the same state and compare losses and weights bit by bit."
        " The exit code is 1 if they differ.",
        limit=at_least(1),
        transfer=FREE,
    )
    override_optimizer: bool = supported(
        False,
        "On resume, use the betas, eps, momentum, weight decay and gradient clipping of this configuration if the"
        " checkpoint has others.",
        transfer=FREE,
    )
    async_save: bool = supported(
        False,
        "Copy the state to CPU memory and write checkpoints in the background while training continues.",
        transfer=FREE,
    )

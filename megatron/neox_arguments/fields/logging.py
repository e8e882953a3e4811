"""Keys of logging and experiment tracking."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from megatron.neox_arguments.keys import refused, satisfied
from megatron.neox_arguments.keys import supported as declare
from megatron.neox_arguments.limits import above, at_least
from megatron.neox_arguments.transfer import FREE

_NO_COMET = "Comet is not supported; use use_wandb or tensorboard_dir (metrics.jsonl is always written)"
_NO_NOISE = "logging the gradient noise scale is not supported; remove the key"

supported = partial(declare, transfer=FREE)  # none of these keys affects training


@dataclass(kw_only=True)
class NeoXArgsLogging:
    """Logging to the console, metrics.jsonl, Weights & Biases and TensorBoard."""

    use_wandb: bool | None = supported(None, "Track the run with Weights & Biases.")
    wandb_group: str | None = supported(None, "Weights & Biases group of the run.")
    wandb_run_name: str | None = supported(None, "Weights & Biases name of the run.")
    wandb_team: str | None = supported(None, "Weights & Biases team (entity) of the run.")
    wandb_project: str = supported("neox", "Weights & Biases project of the run.")
    wandb_host: str = supported("https://api.wandb.ai", "Address of the Weights & Biases server.")
    wandb_mode: Literal["online", "offline", "disabled"] | None = supported(
        None, "Weights & Biases mode. If unset, online when logged in, else offline."
    )
    wandb_init_all_ranks: bool = refused(
        False, "Start wandb on every rank.", "rank 0 logs for all ranks; remove the key"
    )
    git_hash: str | None = refused(None, "Commit of the code.", "each run records the commit; remove the key")
    log_dir: str | None = supported(
        None, "Folder of metrics.jsonl and logs. If unset, runs/<configuration name>-<time>/."
    )
    tensorboard_dir: str | None = supported(None, "Folder of TensorBoard event files.")
    use_comet: bool | None = refused(None, "Track the run with Comet.", _NO_COMET, neutral=(False,))
    comet_workspace: str | None = refused(None, "Comet workspace.", _NO_COMET)
    comet_project: str | None = refused(None, "Comet project.", _NO_COMET)
    comet_experiment_name: str | None = refused(None, "Comet experiment.", _NO_COMET)
    comet_tags: list[Any] | None = refused(None, "Comet tags.", _NO_COMET)
    comet_others: dict[str, Any] | None = refused(None, "Comet metadata.", _NO_COMET)
    comet_experiment: Any = refused(None, "Comet object.", _NO_COMET)
    peak_theoretical_tflops: float | None = supported(
        None, "Peak TFLOP/s of one device, used to compute the model-FLOPs utilisation in the log.", limit=above(0)
    )
    log_interval: int = supported(100, "Number of steps between log lines.", limit=at_least(1))
    log_grad_pct_zeros: bool = refused(False, "Log the share of zero gradients.", "this is not logged; remove the key")
    log_param_norm: bool = supported(False, "Log the norm of each parameter group.")
    log_grad_norm: bool = satisfied(
        False, "Log the norm of the gradient.", "the norm of the whole gradient is always logged"
    )
    log_optimizer_states: bool = refused(
        False, "Log norms of the optimizer state.", "this is not logged; remove the key"
    )
    log_gradient_noise_scale: bool = refused(False, "Log the gradient noise scale.", _NO_NOISE)
    gradient_noise_scale_n_batches: int = refused(5, "Batches used for the gradient noise scale.", _NO_NOISE)
    gradient_noise_scale_cpu_offload: bool = refused(
        False, "Keep the buffers of the gradient noise scale on the CPU.", _NO_NOISE
    )
    memory_profiling: bool = supported(
        False,
        "Record the allocations on the GPU of the first process, and write them after step profile_step_stop to"
        " mem_snapshot.pickle in memory_profiling_path, for pytorch.org/memory_viz.",
    )
    memory_profiling_path: str | None = supported(None, "Folder of the memory snapshot of memory_profiling.")
    profile: bool = supported(
        False,
        "Trace the steps after profile_step_start, up to profile_step_stop, with torch's profiler. Each process writes"
        " its trace to tensorboard_dir, or else to log_dir. It also marks these steps for nsys.",
    )
    profile_step_start: int = supported(10, "Step after which the trace of profile begins.", limit=at_least(1))
    profile_step_stop: int = supported(
        12, "Last step of the trace of profile, after which the memory snapshot is written too.", limit=at_least(2)
    )

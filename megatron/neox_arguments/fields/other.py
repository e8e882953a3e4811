"""Keys of the parallel layout, the tokenizer, distributed execution and everything else."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import refused, supported
from megatron.neox_arguments.limits import Pattern, above, at_least
from megatron.neox_arguments.transfer import FAMILY, FREE, LADDER, SEARCH, TOKENS

_LAUNCHER_SETS = "the launcher sets RANK and LOCAL_RANK for each process; remove the key"
_OBSOLETE = "it is obsolete in GPT-NeoX; remove the key"


@dataclass(kw_only=True)
class NeoXArgsParallelism:
    """Parallel layout."""

    pipe_parallel_size: int = supported(
        0,
        "Number of pipeline stages (with ZeRO 0 or 1). 0 and 1 mean no pipeline: the model is a plain module.",
        limit=at_least(0),
        transfer=FREE,
    )
    model_parallel_size: int = supported(
        1,
        "Tensor-parallel size. Must divide the heads, the key-value heads and the inner width of the MLP.",
        limit=at_least(1),
        transfer=FREE,
    )
    pipe_partition_method: str = supported(
        "type:transformer|mlp",
        "How layers are assigned to stages: uniform, parameters, or type:<regex> over GPT-NeoX's layer names.",
        limit=Pattern("uniform|parameters|type:.+", "uniform, parameters or type:<regular expression>"),
        transfer=FREE,
    )
    world_size: int | None = supported(
        None, "Number of processes. Read from WORLD_SIZE if the launcher sets it.", limit=at_least(1), transfer=FREE
    )
    is_pipe_parallel: bool = supported(False, "Derived: whether pipe_parallel_size is at least 2.", transfer=FREE)
    sequence_parallel: bool = supported(
        False,
        "Split the sequence over tensor-parallel ranks in norms, dropout and residuals.",
        transfer=FREE,
    )


@dataclass(kw_only=True)
class NeoXArgsTokenizer:
    """Tokenizer. See also `vocab_file` and `merge_file`."""

    tokenizer_type: Literal[
        "GPT2BPETokenizer",
        "HFTokenizer",
        "HFGPT2Tokenizer",
        "SPMTokenizer",
        "CharLevelTokenizer",
        "TiktokenTokenizer",
    ] = supported(
        "GPT2BPETokenizer",
        "Tokenizer with which the data was tokenized. CharLevelTokenizer has one token per byte.",
        transfer=TOKENS,
        recipe=(FAMILY, LADDER),
    )
    padded_vocab_size: int | None = supported(
        None,
        "Rows of the embedding. If unset, the vocabulary size, padded (make_vocab_size_divisible_by).",
        limit=at_least(1),
        transfer=FREE,
        recipe=(SEARCH,),
    )


@dataclass(kw_only=True)
class NeoXArgsOther:
    """Distributed execution and everything else."""

    dry_run: bool = supported(
        False,
        "Instead of training, build the model of every rank without weights, check its multipliers, and print"
        " parameters, memory, communication and the predicted step time. Set world_size to the number of processes.",
    )
    dry_run_gpu: str = supported("H100", "Name of the GPU for which dry_run predicts the time.")
    distributed_backend: str = supported(
        "nccl", "Backend of torch.distributed. Without a GPU, gloo replaces nccl.", transfer=FREE
    )
    distributed_timeout_minutes: float = supported(
        10.0,
        "With several processes: end the job if one hangs for this long, and name it. Long work on one rank, such as"
        " a save, is no hang.",
        limit=above(0),
        transfer=FREE,
    )
    local_rank: int | None = refused(None, "Rank of the process on its host.", _LAUNCHER_SETS)
    rank: int | None = refused(None, "Global rank of the process.", _LAUNCHER_SETS)
    lazy_mpu_init: bool = refused(False, "Initialise distributed execution later.", _OBSOLETE)
    short_seq_prob: float = refused(
        0.1, "Share of short sequences in BERT training.", "BERT is not supported; remove the key"
    )
    eod_mask_loss: bool = supported(False, "Ignore end-of-document tokens in the loss.")
    adlr_autoresume: bool = refused(False, "Resume on NVIDIA's ADLR cluster.", _OBSOLETE)
    adlr_autoresume_interval: int = refused(1000, "Steps between checks of adlr_autoresume.", _OBSOLETE)
    seed: int = supported(
        1234,
        "Random seed of initial weights, data order and dropout.",
        limit=at_least(0),
        transfer=FREE,
        recipe=(SEARCH,),
    )
    onnx_safe: bool = refused(
        False, "Avoid operations that ONNX cannot export.", "ONNX export is not supported; remove the key"
    )
    deepscale: bool = refused(False, "Former name of DeepSpeed.", _OBSOLETE)
    deepscale_config: str | None = refused(None, "Former name of DeepSpeed.", _OBSOLETE)
    deepspeed_mpi: bool = supported(
        False, "Read rank and world size from the environment of MPI, which starts the processes.", transfer=FREE
    )
    deepspeed_slurm: bool = supported(
        False,
        "Launch with srun, and read rank and world size from the environment of SLURM.",
        transfer=FREE,
    )
    user_script: str | None = supported(None, "Script that deepy.py launches.", transfer=FREE)
    iteration: int | None = supported(
        None, "Step of the checkpoint to load. If unset, the latest.", limit=at_least(0), transfer=FREE
    )
    do_train: bool | None = supported(None, "Train the model. If unset, true if train_iters is above 0.", transfer=FREE)
    do_valid: bool | None = supported(
        None, "Evaluate on validation data. If unset, true if eval_iters is above 0.", transfer=FREE, recipe=(SEARCH,)
    )
    do_test: bool | None = supported(
        None, "Evaluate on test data after training. If unset, true if eval_iters is above 0.", transfer=FREE
    )
    global_num_gpus: int | None = supported(
        None,
        "Number of processes over all hosts, if no launcher sets it. If unset, num_nodes x num_gpus.",
        limit=at_least(1),
        transfer=FREE,
    )

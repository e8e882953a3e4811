"""Parallel layout, tokenizer, distribution, and the odds and ends."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import refused, supported
from megatron.neox_arguments.limits import Pattern, at_least
from megatron.neox_arguments.transfer import FAMILY, FREE, LADDER, SEARCH, TOKENS

_LAUNCHER_SETS = "the launcher sets it for each process (RANK, LOCAL_RANK); remove the key"
_OBSOLETE = "obsolete in GPT-NeoX itself; remove the key"


@dataclass(frozen=True, kw_only=True)
class NeoXArgsParallelism:
    """Parallel layout."""

    pipe_parallel_size: int = supported(
        0,
        "Pipeline stages (with ZeRO 0 or 1). 0 and 1: none; the model is a plain module.",
        limit=at_least(0),
        transfer=FREE,
    )
    model_parallel_size: int = supported(
        1,
        "Tensor-parallel size; divides heads, key-value heads and the MLP's inner width.",
        limit=at_least(1),
        transfer=FREE,
    )
    pipe_partition_method: str = supported(
        "type:transformer|mlp",
        "How layers are dealt to stages: uniform, parameters, or type:<regex> of GPT-NeoX's layer names.",
        limit=Pattern("uniform|parameters|type:.+", "uniform, parameters or type:<regular expression>"),
        transfer=FREE,
    )
    world_size: int | None = supported(
        None, "Number of processes; taken from WORLD_SIZE where the launcher sets it.", limit=at_least(1), transfer=FREE
    )
    is_pipe_parallel: bool = supported(False, "Derived: pipe_parallel_size is 2 or more.", transfer=FREE)
    sequence_parallel: bool = supported(
        False,
        "Between tensor-parallel regions each rank keeps a slice of the sequence (norms, dropout, residuals).",
        transfer=FREE,
    )


@dataclass(frozen=True, kw_only=True)
class NeoXArgsTokenizer:
    """Tokenizer; see also `vocab_file` and `merge_file`."""

    tokenizer_type: Literal[
        "GPT2BPETokenizer",
        "HFTokenizer",
        "HFGPT2Tokenizer",
        "SPMTokenizer",
        "CharLevelTokenizer",
        "TiktokenTokenizer",
    ] = supported(
        "GPT2BPETokenizer",
        "Tokenizer that the data was made with. CharLevelTokenizer: one token a byte.",
        transfer=TOKENS,
        recipe=(FAMILY, LADDER),
    )
    padded_vocab_size: int | None = supported(
        None,
        "Rows of the embedding; unset: the tokenizer's size, padded (make_vocab_size_divisible_by).",
        limit=at_least(1),
        transfer=FREE,
        recipe=(SEARCH,),
    )


@dataclass(frozen=True, kw_only=True)
class NeoXArgsOther:
    """Distribution and miscellany."""

    dry_run: bool = supported(
        False,
        "Do not train: build every rank's part without weights, check its multipliers, and print parameters, memory,"
        " communication and the predicted time of a step. Set world_size for the number of processes.",
    )
    dry_run_gpu: str = supported("H100", "GPU that dry_run predicts the time for, by its name.")
    distributed_backend: str = supported(
        "nccl", "torch.distributed backend; without a GPU, gloo takes nccl's place.", transfer=FREE
    )
    local_rank: int | None = refused(None, "Process on this host.", _LAUNCHER_SETS)
    rank: int | None = refused(None, "Process among all.", _LAUNCHER_SETS)
    lazy_mpu_init: bool = refused(False, "Start distribution later.", _OBSOLETE)
    short_seq_prob: float = refused(0.1, "BERT's short sequences.", "there is no BERT here; remove the key")
    eod_mask_loss: bool = supported(False, "No loss on end-of-document tokens.")
    adlr_autoresume: bool = refused(False, "Resume on NVIDIA's ADLR cluster.", _OBSOLETE)
    adlr_autoresume_interval: int = refused(1000, "Steps between its checks.", _OBSOLETE)
    seed: int = supported(
        1234, "Seed of weights, data order and dropout.", limit=at_least(0), transfer=FREE, recipe=(SEARCH,)
    )
    onnx_safe: bool = refused(False, "Avoid what ONNX export cannot do.", "ONNX export is not supported")
    deepscale: bool = refused(False, "DeepSpeed's former name.", _OBSOLETE)
    deepscale_config: str | None = refused(None, "DeepSpeed's former name.", _OBSOLETE)
    deepspeed_mpi: bool = supported(
        False, "Processes are started by MPI: take rank and world size from its environment.", transfer=FREE
    )
    deepspeed_slurm: bool = supported(
        False,
        "Processes are started by SLURM: launch through srun, take rank and world size from its environment.",
        transfer=FREE,
    )
    user_script: str | None = supported(None, "Script that deepy.py starts.", transfer=FREE)
    iteration: int | None = supported(
        None, "Checkpoint step to load; unset: the latest.", limit=at_least(0), transfer=FREE
    )
    do_train: bool | None = supported(None, "Train; unset: where train_iters is above 0.", transfer=FREE)
    do_valid: bool | None = supported(
        None, "Evaluate on validation data; unset: where eval_iters is above 0.", transfer=FREE, recipe=(SEARCH,)
    )
    do_test: bool | None = supported(
        None, "Evaluate on test data at the end; unset: where eval_iters is above 0.", transfer=FREE
    )
    global_num_gpus: int | None = supported(
        None,
        "Processes over all hosts, where no launcher says; unset: num_nodes x num_gpus.",
        limit=at_least(1),
        transfer=FREE,
    )

"""Keys of data, training steps, evaluation, checkpoints and regularisation."""

from dataclasses import dataclass
from typing import Any, Literal

from megatron.neox_arguments.keys import refused, satisfied, supported
from megatron.neox_arguments.limits import PROBABILITY_BELOW_ONE, Items, above, at_least
from megatron.neox_arguments.transfer import (
    DATA,
    FAMILY,
    FREE,
    LADDER,
    REGULARISATION,
    SEARCH,
    SIZE_LADDER,
    TOKENS,
    shifts,
)

_NO_S3 = "checkpoints on S3 are not supported; save to a local path"
_NO_OFFLOAD = "DeepSpeed's activation offload is not supported; use only checkpoint_activations"


@dataclass(kw_only=True)
class NeoXArgsTraining:
    """Data, training steps, evaluation, checkpoints and regularisation."""

    data_path: str | None = supported(
        None,
        "Prefix of one .bin/.idx pair, divided into training, validation and test data by `split`.",
        transfer=DATA,
        recipe=(FAMILY, LADDER),
    )
    use_shared_fs: bool = refused(
        True,
        "All hosts see the same files.",
        "separate file systems are not supported yet; use a file system that all hosts share",
    )
    train_data_paths: list[Any] | None = supported(
        None, "Prefixes of the training data (instead of data_path).", limit=Items(str), transfer=DATA, recipe=(FAMILY,)
    )
    test_data_paths: list[Any] | None = supported(None, "Prefixes of the test data.", limit=Items(str), transfer=DATA)
    valid_data_paths: list[Any] | None = supported(
        None, "Prefixes of the validation data.", limit=Items(str), transfer=DATA, recipe=(FAMILY,)
    )
    train_data_weights: list[Any] | None = supported(
        None, "Weights of train_data_paths. If unset, equal weights.", limit=Items(float, at_least(0)), transfer=DATA
    )
    valid_data_weights: list[Any] | None = supported(
        None, "Weights of valid_data_paths. If unset, equal weights.", limit=Items(float, at_least(0)), transfer=DATA
    )
    test_data_weights: list[Any] | None = supported(
        None, "Weights of test_data_paths. If unset, equal weights.", limit=Items(float, at_least(0)), transfer=DATA
    )
    weight_by_num_documents: bool = supported(
        False, "Derive the weights from the number of documents, smoothed by weighted_sampler_alpha.", transfer=DATA
    )
    weighted_sampler_alpha: float = supported(
        1.0,
        "With weight_by_num_documents: 1 gives proportional weights, values near 0 give equal weights.",
        limit=above(0),
        transfer=DATA,
    )
    data_impl: Literal["infer", "mmap", "cached"] = satisfied(
        "infer", "How .bin files are read.", "data is always memory-mapped"
    )
    mmap_warmup: bool = refused(
        False,
        "Read data files once before training.",
        "not supported, because the operating system's page cache has this effect; remove the key",
    )
    z_loss: float = supported(
        0.0,
        "Weight of the squared log-partition function in the loss.",
        limit=at_least(0),
        transfer=shifts("an auxiliary loss changes the objective", "no published source; measure it"),
    )
    save: str | None = supported(
        None, "Folder to which checkpoints are written. If unset, no checkpoints are written.", transfer=FREE
    )
    s3_path: str | None = refused(None, "S3 path of checkpoints.", _NO_S3)
    s3_chunk_size: int = refused(104857600, "Bytes per S3 upload.", _NO_S3)
    config_files: dict[str, Any] | None = supported(
        None, "Derived: the text of every configuration file, stored in checkpoints.", compare=False, transfer=FREE
    )
    load: str | None = supported(None, "Folder from which a checkpoint is loaded.", transfer=FREE)
    checkpoint_validation_with_forward_pass: bool = supported(
        False,
        "Save the loss on fixed tokens with each checkpoint, and compare it after loading. Checksums verify the files "
        "in any case.",
        transfer=FREE,
    )
    checkpoint_scale: Literal["linear", "log"] = supported(
        "linear", "Save every checkpoint_factor steps (linear) or at powers of checkpoint_factor (log).", transfer=FREE
    )
    checkpoint_factor: int | float | None = supported(
        None,
        "Number of steps between checkpoints, or base of the powers.",
        limit=above(0),
        aliases=("save_interval",),
        transfer=FREE,
    )
    extra_save_iters: list[Any] | None = supported(
        None, "Additional steps at which to save a checkpoint.", limit=Items(int, at_least(0)), transfer=FREE
    )
    no_save_optim: bool = supported(
        False,
        "Omit the optimizer state from checkpoints. They then only load with finetune or no_load_optim.",
        transfer=FREE,
    )
    no_save_rng: bool = supported(False, "Omit the random state from checkpoints.", transfer=FREE)
    no_load_optim: bool = supported(False, "Do not load the optimizer state.", transfer=FREE)
    no_load_rng: bool = supported(False, "Do not load the random state.", transfer=FREE)
    finetune: bool = supported(False, "Load only the weights and start at step 0.")
    override_data: bool = supported(
        False,
        "On resume, use the data, seed, sequence length and tokenizer of this configuration if the checkpoint has"
        " others, and read the new data from its first sample.",
        transfer=FREE,
    )
    batch_size: int | None = supported(
        None,
        "Former name of train_micro_batch_size_per_gpu in GPT-NeoX.",
        limit=at_least(1),
        same_as="train_micro_batch_size_per_gpu",
        transfer=FREE,
    )
    train_iters: int | None = supported(
        None,
        "Number of training steps. Required for training.",
        limit=at_least(0),
        transfer=shifts(
            "longer training needs a lower learning rate, also in muP", "Bjorck et al. 2024, arXiv:2409.19913"
        ),
        recipe=(FAMILY, SIZE_LADDER),
    )
    train_epochs: int | None = supported(
        None,
        "Number of passes over the training data, instead of train_iters. The run ends with the last whole batch.",
        limit=at_least(1),
        transfer=shifts(
            "longer training needs a lower learning rate, also in muP", "Bjorck et al. 2024, arXiv:2409.19913"
        ),
        recipe=(FAMILY, SIZE_LADDER),
    )
    eval_iters: int = supported(
        100, "Number of batches per evaluation.", limit=at_least(0), transfer=FREE, recipe=(SEARCH,)
    )
    keep_last_n_checkpoints: int | None = supported(
        None, "Number of latest checkpoints to keep.", limit=at_least(1), transfer=FREE
    )
    eval_interval: int = supported(
        1000, "Number of steps between evaluations.", limit=at_least(1), transfer=FREE, recipe=(SEARCH,)
    )
    split: str = supported(
        "969, 30, 1", "Shares of data_path for training, validation and test.", transfer=DATA, recipe=(FAMILY,)
    )
    vocab_file: str | None = supported(
        None, "Vocabulary file of the tokenizer (HFTokenizer: tokenizer.json).", transfer=TOKENS, recipe=(LADDER,)
    )
    merge_file: str | None = supported(None, "Merges file of GPT2BPETokenizer.", transfer=TOKENS)
    num_workers: int = supported(2, "Number of data-loading processes.", limit=at_least(0), transfer=FREE)
    exit_interval: int | None = supported(
        None, "Save and stop at multiples of this step.", limit=at_least(1), transfer=FREE
    )
    attention_dropout: float = supported(
        0.0, "Dropout of attention probabilities.", limit=PROBABILITY_BELOW_ONE, transfer=REGULARISATION
    )
    hidden_dropout: float = supported(
        0.0, "Dropout of embeddings and residual branches.", limit=PROBABILITY_BELOW_ONE, transfer=REGULARISATION
    )
    weight_decay: float = supported(
        0.1,
        "Weight decay. Same as optimizer.params.weight_decay.",
        limit=at_least(0),
        same_as="optimizer.params.weight_decay",
        transfer=shifts(
            "the best weight decay depends on model and data size, and transfer of lr needs it to be scaled",
            "Wang and Aitchison 2024, arXiv:2405.13698",
        ),
        recipe=(FAMILY, LADDER),
    )
    checkpoint_activations: bool = supported(
        False, "Recompute activations in the backward pass to save memory.", transfer=FREE
    )
    checkpoint_num_layers: int = supported(
        1, "Number of blocks that are recomputed together.", limit=at_least(1), transfer=FREE
    )
    deepspeed_activation_checkpointing: bool = satisfied(
        True,
        "Recompute with DeepSpeed's code.",
        "PyTorch recomputes the activations and gives the same gradients",
    )
    contiguous_checkpointing: bool = refused(False, "Keep checkpointed activations in one buffer.", _NO_OFFLOAD)
    checkpoint_in_cpu: bool = refused(False, "Keep checkpointed activations on the host.", _NO_OFFLOAD)
    synchronize_each_layer: bool = satisfied(
        False,
        "Wait for the device after each recomputed layer.",
        "results do not depend on synchronisation after each layer",
    )
    profile_backward: bool = refused(False, "Measure the time of the recomputation.", "not supported; remove the key")
    partition_activations: bool = satisfied(
        False,
        "Partition checkpointed activations over tensor-parallel ranks.",
        "with one tensor-parallel rank there is nothing to partition",
    )
    clip_grad: float = supported(
        1.0, "Same as gradient_clipping.", limit=at_least(0), same_as="gradient_clipping", transfer=FREE
    )
    hysteresis: int = supported(
        2,
        "Number of overflows before the loss scale decreases. Same as fp16.hysteresis.",
        limit=at_least(1),
        same_as="fp16.hysteresis",
        transfer=FREE,
    )
    dynamic_loss_scale: bool | None = supported(
        None, "Adapt the loss scale in fp16. If unset, true if loss_scale is unset or 0.", transfer=FREE
    )
    loss_scale: float | None = supported(
        None,
        "Fixed loss scale. If unset or 0, the loss scale is dynamic. Same as fp16.loss_scale.",
        limit=at_least(0),
        same_as="fp16.loss_scale",
        transfer=FREE,
    )
    loss_scale_window: float = supported(
        1000.0,
        "Number of steps before the loss scale increases. Same as fp16.loss_scale_window.",
        limit=above(0),
        same_as="fp16.loss_scale_window",
        transfer=FREE,
    )
    min_scale: float = supported(
        1.0,
        "Minimum loss scale. Same as fp16.min_loss_scale.",
        limit=above(0),
        same_as="fp16.min_loss_scale",
        transfer=FREE,
    )
    torch_compile: bool = supported(
        False,
        "Compile each block with torch.compile, and also the loss if one rank holds the whole vocabulary. The first"
        " steps take longer. Losses differ by rounding from those without torch.compile.",
        transfer=FREE,
    )
    char_level_ppl: bool = refused(
        False,
        "Also report the perplexity per character in evaluations.",
        "training does not report it; remove the key and run eval.py, which reports the perplexity per character",
    )

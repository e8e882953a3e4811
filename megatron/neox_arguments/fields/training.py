"""Data, steps, evaluation, checkpoints, regularisation."""

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
_NO_OFFLOAD = "DeepSpeed's activation offload is not supported; use checkpoint_activations alone"


@dataclass(frozen=True, kw_only=True)
class NeoXArgsTraining:
    """Data, steps, evaluation, checkpoints, regularisation."""

    data_path: str | None = supported(
        None,
        "Prefix of one .bin/.idx pair, split into train, validation and test by `split`.",
        transfer=DATA,
        recipe=(FAMILY, LADDER),
    )
    use_shared_fs: bool = refused(
        True,
        "All hosts see the same files.",
        "not supported yet: keep data on a file system that all hosts share",
    )
    train_data_paths: list[Any] | None = supported(
        None, "Prefixes of the training data (instead of data_path).", limit=Items(str), transfer=DATA, recipe=(FAMILY,)
    )
    test_data_paths: list[Any] | None = supported(None, "Prefixes of the test data.", limit=Items(str), transfer=DATA)
    valid_data_paths: list[Any] | None = supported(
        None, "Prefixes of the validation data.", limit=Items(str), transfer=DATA, recipe=(FAMILY,)
    )
    train_data_weights: list[Any] | None = supported(
        None, "Weights of train_data_paths; unset: equal.", limit=Items(float, at_least(0)), transfer=DATA
    )
    valid_data_weights: list[Any] | None = supported(
        None, "Weights of valid_data_paths; unset: equal.", limit=Items(float, at_least(0)), transfer=DATA
    )
    test_data_weights: list[Any] | None = supported(
        None, "Weights of test_data_paths; unset: equal.", limit=Items(float, at_least(0)), transfer=DATA
    )
    weight_by_num_documents: bool = supported(
        False, "Weights from the number of documents, flattened by weighted_sampler_alpha.", transfer=DATA
    )
    weighted_sampler_alpha: float = supported(
        1.0, "With weight_by_num_documents: 1 in proportion, towards 0 even.", limit=above(0), transfer=DATA
    )
    data_impl: Literal["infer", "mmap", "cached"] = satisfied(
        "infer", "How .bin files are read.", "data is always memory-mapped"
    )
    mmap_warmup: bool = refused(
        False,
        "Read data files once before training.",
        "not supported: the system's page cache does it; remove the key",
    )
    z_loss: float = supported(
        0.0,
        "Weight of the squared log-partition added to the loss.",
        limit=at_least(0),
        transfer=shifts("an auxiliary loss changes what is optimised", "no paper; measure it"),
    )
    save: str | None = supported(None, "Folder that checkpoints are written to; unset: none are.", transfer=FREE)
    s3_path: str | None = refused(None, "S3 address of checkpoints.", _NO_S3)
    s3_chunk_size: int = refused(104857600, "Bytes of one S3 upload.", _NO_S3)
    config_files: dict[str, Any] | None = supported(
        None, "Derived: the text of every configuration file, kept with the checkpoint.", compare=False, transfer=FREE
    )
    load: str | None = supported(None, "Folder that a checkpoint is loaded from.", transfer=FREE)
    checkpoint_validation_with_forward_pass: bool = refused(
        False,
        "Compare a forward pass before and after saving.",
        "checkpoints are verified by checksum; remove the key",
    )
    checkpoint_scale: Literal["linear", "log"] = supported(
        "linear", "Checkpoints every checkpoint_factor steps (linear) or at its powers (log).", transfer=FREE
    )
    checkpoint_factor: int | float | None = supported(
        None,
        "Steps between checkpoints, or base of the powers.",
        limit=above(0),
        aliases=("save_interval",),
        transfer=FREE,
    )
    extra_save_iters: list[Any] | None = supported(
        None, "Further steps at which to save.", limit=Items(int, at_least(0)), transfer=FREE
    )
    no_save_optim: bool = refused(
        False,
        "Leave the optimizer's state out of checkpoints.",
        "not supported: DeepSpeed saves both; weights alone are read by generate.py and with finetune or no_load_optim",
    )
    no_save_rng: bool = supported(False, "Leave the random state out of checkpoints.", transfer=FREE)
    no_load_optim: bool = supported(False, "Do not load the optimizer's state.", transfer=FREE)
    no_load_rng: bool = supported(False, "Do not load the random state.", transfer=FREE)
    finetune: bool = supported(False, "Load the weights only and start at step 0.")
    batch_size: int | None = supported(
        None,
        "GPT-NeoX's former name of train_micro_batch_size_per_gpu.",
        limit=at_least(1),
        same_as="train_micro_batch_size_per_gpu",
        transfer=FREE,
    )
    train_iters: int | None = supported(
        None,
        "Training steps. Training needs it.",
        limit=at_least(0),
        transfer=shifts(
            "longer training wants a lower learning rate, in muP too", "Bjorck et al. 2024, arXiv:2409.19913"
        ),
        recipe=(FAMILY, SIZE_LADDER),
    )
    train_epochs: int | None = refused(None, "Passes over the data.", "not supported yet; give train_iters")
    eval_iters: int = supported(100, "Batches of an evaluation.", limit=at_least(0), transfer=FREE, recipe=(SEARCH,))
    keep_last_n_checkpoints: int | None = supported(
        None, "Keep only this many latest checkpoints.", limit=at_least(1), transfer=FREE
    )
    eval_interval: int = supported(
        1000, "Steps between evaluations.", limit=at_least(1), transfer=FREE, recipe=(SEARCH,)
    )
    split: str = supported(
        "969, 30, 1", "Shares of data_path for train, validation and test.", transfer=DATA, recipe=(FAMILY,)
    )
    vocab_file: str | None = supported(
        None, "The tokenizer's vocabulary (HFTokenizer: tokenizer.json).", transfer=TOKENS, recipe=(LADDER,)
    )
    merge_file: str | None = supported(None, "Merges of GPT2BPETokenizer.", transfer=TOKENS)
    num_workers: int = supported(2, "Processes that load data.", limit=at_least(0), transfer=FREE)
    exit_interval: int | None = supported(
        None, "Stop (and save) at multiples of this step.", limit=at_least(1), transfer=FREE
    )
    attention_dropout: float = supported(
        0.0, "Dropout of attention probabilities.", limit=PROBABILITY_BELOW_ONE, transfer=REGULARISATION
    )
    hidden_dropout: float = supported(
        0.0, "Dropout of embeddings and residual branches.", limit=PROBABILITY_BELOW_ONE, transfer=REGULARISATION
    )
    weight_decay: float = supported(
        0.1,
        "Weight decay; same as optimizer.params.weight_decay.",
        limit=at_least(0),
        same_as="optimizer.params.weight_decay",
        transfer=shifts(
            "the best weight decay follows model and data size, and the transfer of lr needs it in step",
            "Wang and Aitchison 2024, arXiv:2405.13698",
        ),
        recipe=(FAMILY, LADDER),
    )
    checkpoint_activations: bool = supported(
        False, "Recompute activations in the backward pass to save memory.", transfer=FREE
    )
    checkpoint_num_layers: int = supported(1, "Blocks recomputed together.", limit=at_least(1), transfer=FREE)
    deepspeed_activation_checkpointing: bool = satisfied(
        True,
        "Recompute with DeepSpeed's code.",
        "activations are recomputed with PyTorch's code, to the same gradients",
    )
    contiguous_checkpointing: bool = refused(False, "Keep checkpoints in one buffer.", _NO_OFFLOAD)
    checkpoint_in_cpu: bool = refused(False, "Keep checkpoints on the host.", _NO_OFFLOAD)
    synchronize_each_layer: bool = satisfied(
        False,
        "Wait for the device after each recomputed layer.",
        "layers are not synchronised one by one; results do not depend on it",
    )
    profile_backward: bool = refused(False, "Time the recomputation.", "not supported; remove the key")
    partition_activations: bool = satisfied(
        False,
        "Share out checkpointed activations over tensor-parallel ranks.",
        "with one tensor-parallel rank there is nothing to share out",
    )
    clip_grad: float = supported(
        1.0, "Same as gradient_clipping.", limit=at_least(0), same_as="gradient_clipping", transfer=FREE
    )
    hysteresis: int = supported(
        2,
        "Same as fp16.hysteresis: overflows before the loss scale falls.",
        limit=at_least(1),
        same_as="fp16.hysteresis",
        transfer=FREE,
    )
    dynamic_loss_scale: bool | None = supported(
        None, "fp16: adapt the loss scale; unset: where loss_scale is.", transfer=FREE
    )
    loss_scale: float | None = supported(
        None,
        "Same as fp16.loss_scale: a fixed loss scale; unset or 0: dynamic.",
        limit=at_least(0),
        same_as="fp16.loss_scale",
        transfer=FREE,
    )
    loss_scale_window: float = supported(
        1000.0,
        "Same as fp16.loss_scale_window: steps before the scale rises.",
        limit=above(0),
        same_as="fp16.loss_scale_window",
        transfer=FREE,
    )
    min_scale: float = supported(
        1.0, "Same as fp16.min_loss_scale.", limit=above(0), same_as="fp16.min_loss_scale", transfer=FREE
    )
    torch_compile: bool = supported(
        False,
        "Compile each block, and the loss where one rank holds the vocabulary, with torch.compile. The first steps"
        " take longer. Losses differ from those without it by rounding.",
        transfer=FREE,
    )
    char_level_ppl: bool = refused(
        False,
        "Also report the perplexity of a character in evaluations.",
        "not supported: divide the loss by the corpus' bytes a token (corpus.json)",
    )

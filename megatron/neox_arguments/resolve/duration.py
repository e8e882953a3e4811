"""Resolve the number of training steps."""

from __future__ import annotations

from megatron.errors import ConfigError
from megatron.neox_arguments.arguments import NeoXArgs
from megatron.neox_arguments.resolve.known import known


def training_steps(args: NeoXArgs) -> int:
    """Steps of the run: train_iters, or the whole batches in train_epochs epochs, which needs the data's .idx files."""
    if args.train_epochs is None:
        args.require("train_iters")
        return known(args.train_iters)
    args.require("train_batch_size")
    batch, samples = known(args.train_batch_size), sum(epoch_samples(args)) * args.train_epochs
    if samples < batch:
        raise ConfigError(
            f"train_epochs: {args.train_epochs} epochs of the data are {samples} samples of seq_length"
            f" {args.seq_length}, fewer than train_batch_size {batch}; increase train_epochs"
        )
    return samples // batch


def epoch_samples(args: NeoXArgs) -> list[int]:
    """Samples in one epoch of each training corpus."""
    from megatron.data.data_utils import samples_per_epoch  # imports numpy

    args.require("seq_length")
    paths = [args.data_path] if args.data_path else args.train_data_paths or []
    split = args.split if args.data_path else None
    return [samples_per_epoch(path, split, known(args.seq_length)) for path in paths]

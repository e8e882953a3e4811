"""Resolve the inputs and outputs of a run: data, checkpoints and logs."""

from __future__ import annotations

from pathlib import Path

from megatron.errors import ConfigError
from megatron.neox_arguments.arguments import NeoXArgs
from megatron.neox_arguments.resolve.duration import epoch_samples
from megatron.neox_arguments.resolve.known import known
from megatron.neox_arguments.run_config import (
    CorporaConfig,
    DataConfig,
    EvaluationConfig,
    LoadConfig,
    LoggingConfig,
    ProfilingConfig,
    SaveConfig,
    WandbConfig,
)


def data_is_given(args: NeoXArgs) -> bool:
    return args.data_path is not None or args.train_data_paths is not None


def data_config(args: NeoXArgs) -> DataConfig:
    args.require("seq_length")
    if not data_is_given(args):
        raise ConfigError("data_path: missing, and train_data_paths too; create a corpus with `python prepare_data.py`")
    return DataConfig(
        path=args.data_path,
        split=args.split,
        train=_corpora(args.train_data_paths, _training_weights(args), args.train_label_data_paths),
        valid=_corpora(args.valid_data_paths, args.valid_data_weights, args.valid_label_data_paths),
        test=_corpora(args.test_data_paths, args.test_data_weights, args.test_label_data_paths),
        weight_by_num_documents=args.weight_by_num_documents,
        weighted_sampler_alpha=args.weighted_sampler_alpha,
        seq_length=known(args.seq_length),
        seed=args.seed,
        num_workers=args.num_workers,
        packing=args.pack_impl,
        allow_chopped=args.allow_chopped,
    )


def _training_weights(args: NeoXArgs) -> list[float] | None:
    """With train_epochs, corpora are weighted by their size, so that the epochs of all of them end together."""
    if args.train_epochs is None or not args.train_data_paths:
        return args.train_data_weights
    return [float(samples) for samples in epoch_samples(args)]


def _corpora(paths: list[str] | None, weights: list[float] | None, labels: list[str] | None) -> CorporaConfig:
    return CorporaConfig(paths=tuple(paths or ()), weights=tuple(weights or ()), labels=tuple(labels or ()))


def input_files(args: NeoXArgs) -> tuple[list[str], list[str]]:
    """What a run reads: prefixes of its data, and the files of its tokenizer."""
    files = [file for file in (args.vocab_file, args.merge_file) if file]
    return [] if args.save_base_shapes else data_prefixes(args), files


def data_prefixes(args: NeoXArgs) -> list[str]:
    """All data prefixes of a run: its data-path, its train-, valid- and test-data-paths, and those of their labels."""
    lists = (
        *(args.train_data_paths, args.valid_data_paths, args.test_data_paths),
        *(args.train_label_data_paths, args.valid_label_data_paths, args.test_label_data_paths),
    )
    return [*([args.data_path] if args.data_path else []), *(path for paths in lists for path in paths or ())]


def evaluation_config(args: NeoXArgs) -> EvaluationConfig:
    return EvaluationConfig(
        iters=args.eval_iters, interval=args.eval_interval, valid=bool(args.do_valid), test=bool(args.do_test)
    )


def save_config(args: NeoXArgs) -> SaveConfig | None:
    if not args.save:
        return None
    return SaveConfig(
        directory=Path(args.save),
        scale=args.checkpoint_scale,
        factor=args.checkpoint_factor,
        extra_steps=tuple(args.extra_save_iters or ()),
        keep_last=args.keep_last_n_checkpoints,
        rng=not args.no_save_rng,
        optimizer=not args.no_save_optim,
        background=args.async_save,
        forward_pass=args.checkpoint_validation_with_forward_pass,
    )


def load_config(args: NeoXArgs) -> LoadConfig | None:
    if not args.load:
        return None
    return LoadConfig(
        directory=Path(args.load),
        iteration=args.iteration,
        optimizer=not args.no_load_optim,
        rng=not args.no_load_rng,
        finetune=args.finetune,
        override_data=args.override_data,
        override_optimizer=args.override_optimizer,
        forward_pass=args.checkpoint_validation_with_forward_pass,
    )


def _profiling(args: NeoXArgs) -> ProfilingConfig | None:
    if not args.profile and not args.memory_profiling:
        return None
    return ProfilingConfig(
        first=args.profile_step_start,
        last=args.profile_step_stop,
        traces=Path(known(args.tensorboard_dir or args.log_dir)) if args.profile else None,
        memory=Path(known(args.memory_profiling_path)) if args.memory_profiling else None,
    )


def logging_config(args: NeoXArgs) -> LoggingConfig:
    wandb = WandbConfig(
        project=args.wandb_project,
        group=args.wandb_group,
        team=args.wandb_team,
        run_name=args.wandb_run_name,
        host=args.wandb_host,
        mode=args.wandb_mode,
    )
    return LoggingConfig(
        log_dir=Path(args.log_dir) if args.log_dir else None,
        interval=args.log_interval,
        param_norms=args.log_param_norm,
        peak_tflops=args.peak_theoretical_tflops,
        wandb=wandb if args.use_wandb else None,
        tensorboard_dir=None if args.tensorboard_dir is None else Path(args.tensorboard_dir),
        profiling=_profiling(args),
    )

"""Resolve the configuration of each job of a process."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from megatron.errors import ConfigError
from megatron.neox_arguments.arguments import NeoXArgs
from megatron.neox_arguments.job_configs import (
    AuditConfig,
    ConversionConfig,
    CoordinateCheckConfig,
    CostConfig,
    DeterminismCheckConfig,
    DryRunConfig,
    GenerationConfig,
    GenerationKind,
    LauncherConfig,
    SaveBaseShapesConfig,
    TaskEvaluationConfig,
    WorkerConfig,
)
from megatron.neox_arguments.launcher import launcher_hosts, missing_hostfile, runner_arguments
from megatron.neox_arguments.ranks import require_one_launcher
from megatron.neox_arguments.resolve.duration import training_steps
from megatron.neox_arguments.resolve.files import (
    data_config,
    data_is_given,
    evaluation_config,
    input_files,
    load_config,
    logging_config,
    save_config,
)
from megatron.neox_arguments.resolve.known import known
from megatron.neox_arguments.resolve.model import model_config, tokenizer_config
from megatron.neox_arguments.resolve.training import (
    batch_config,
    engine_config,
    fault_config,
    launch_config,
    layout_config,
    schedule_config,
)
from megatron.neox_arguments.run_config import EngineConfig, LossConfig, Provenance, RunConfig, ScheduleConfig

logger = logging.getLogger(__name__)


def run_config(args: NeoXArgs) -> RunConfig:
    """Resolve a training run."""
    args.require("train_batch_size", "lr")
    steps, interval = training_steps(args), args.exit_interval
    return RunConfig(
        launch=launch_config(args),
        tokenizer=tokenizer_config(args),
        model=model_config(args),
        engine=engine_config(args),
        schedule=schedule_config(args),
        batch=batch_config(args),
        data=data_config(args),
        evaluation=evaluation_config(args),
        faults=fault_config(args),
        save=save_config(args),
        load=load_config(args),
        logging=logging_config(args),
        provenance=Provenance(keys={**args.to_dict(), "train_iters": steps}, files=args.config_files or {}),
        seed=args.seed,
        steps=steps,
        exit_steps=range(interval, steps, interval) if interval else range(0),
        train=bool(args.do_train),
    )


def _eager(config: EngineConfig) -> EngineConfig:
    """The same engine without torch.compile, for a job that watches modules through hooks over a few steps."""
    return dataclasses.replace(config, compile=False)


def coordinate_check_config(args: NeoXArgs) -> CoordinateCheckConfig:
    lr = args.coord_check_lr or args.lr
    if lr is None:
        raise ConfigError("coord_check: needs a learning rate; set lr (optimizer.params.lr) or coord_check_lr")
    if lr == 0:
        raise ConfigError("coord_check: at lr 0 nothing changes, so there is no evidence; set coord_check_lr")
    return CoordinateCheckConfig(
        launch=launch_config(args),
        tokenizer=tokenizer_config(args),
        model=model_config(args),
        engine=_eager(engine_config(args)),
        schedule=_schedule_of_check(args, lr),
        batch_size=args.train_batch_size or 1,
        data=data_config(args) if data_is_given(args) else None,
        hidden_sizes=tuple(sorted(args.coord_check_widths or ())),
        width_scale=args.mup_width_scale,
        seeds=tuple(args.seed + i for i in range(args.coord_check_seeds)),
        output=Path(args.log_dir or "."),
    )


def _schedule_of_check(args: NeoXArgs, lr: float) -> ScheduleConfig:
    """The schedule of the run with peak `lr`, or a constant rate if the run's length is not known."""
    if (args.train_iters is None and args.train_epochs is None) or args.lr is None:
        return ScheduleConfig(lr=lr, decay_iters=1)
    schedule = schedule_config(args)
    return dataclasses.replace(schedule, lr=lr, min_lr=schedule.min_lr * lr / schedule.lr if schedule.lr else 0.0)


def save_base_shapes_config(args: NeoXArgs) -> SaveBaseShapesConfig:
    """Resolve the base-shape files to write."""
    args.require("base_shapes_file")
    return SaveBaseShapesConfig(
        launch=launch_config(args),
        tokenizer=tokenizer_config(args),
        model=model_config(args),
        layout=layout_config(args),
        prefix=Path(known(args.base_shapes_file)),
        width_scale=args.mup_width_scale,
    )


def launcher_config(args: NeoXArgs) -> LauncherConfig | DryRunConfig:
    """Resolve the launcher's job: start the workers, or describe them in a dry run."""
    if args.dry_run:
        return dry_run_config(args)
    require_one_launcher()
    hosts = launcher_hosts(args)
    if missing_hostfile(args):
        logger.warning("hostfile: %s: file not found; the processes start on this host", args.hostfile)
    return LauncherConfig(
        command=tuple(args.worker_command()),
        hosts=hosts,
        num_processes=args.num_gpus,
        include=args.include,
        exclude=args.exclude,
        master_addr=args.master_addr,
        master_port=args.master_port if "master_port" in args.given else None,
        launcher="slurm" if args.deepspeed_slurm else args.launcher,
        force_multi=args.force_multi,
        ssh_check=not args.no_ssh_check,
        fixed_hashes=args.deterministic,
        runner_arguments=tuple(runner_arguments(args)),
        export_variables=tuple(args.export_variables or ()),
        inputs=input_files(args) if Path(known(args.user_script)).name == "train.py" else ([], []),
        wandb_host=args.wandb_host if args.use_wandb and args.wandb_mode in (None, "online") else None,
    )


def worker_config(args: NeoXArgs) -> WorkerConfig:
    """Resolve a worker's job: write base shapes, check coordinates or determinism, or train."""
    if args.save_base_shapes:
        return save_base_shapes_config(args)
    if args.coord_check:
        return coordinate_check_config(args)
    run = run_config(args)
    if args.check_determinism is None:
        return run
    # the check reads the run's data and checkpoint, and writes nothing
    return DeterminismCheckConfig(
        run=dataclasses.replace(run, save=None, steps=max(run.steps, args.check_determinism)),
        steps=args.check_determinism,
    )


def audit_config(args: NeoXArgs) -> AuditConfig:
    return AuditConfig(
        launch=launch_config(args),
        tokenizer=tokenizer_config(args),
        model=model_config(args),
        engine=_eager(engine_config(args)),
        schedule=schedule_config(args),
        seed=args.seed,
        keys={**args.to_dict(), "train_iters": training_steps(args)},
    )


def cost_config(args: NeoXArgs) -> CostConfig:
    args.require("train_batch_size")
    model = model_config(args)
    return CostConfig(
        tokenizer=tokenizer_config(args),
        model=model,
        tokens=training_steps(args) * known(args.train_batch_size) * model.seq_length,
    )


def dry_run_config(args: NeoXArgs) -> DryRunConfig:
    args.require("train_micro_batch_size_per_gpu")
    return DryRunConfig(
        tokenizer=tokenizer_config(args),
        model=model_config(args),
        engine=engine_config(args),
        batch=batch_config(args),
        world_size=known(args.world_size),
        gpu=args.dry_run_gpu,
        peak_tflops=args.peak_theoretical_tflops,
    )


def _checkpoint_folder(args: NeoXArgs, purpose: str) -> Path:
    """The folder in `load`, or in `save` if `load` is not set."""
    directory = args.load or args.save
    if directory is None:
        raise ConfigError(
            f"load: missing; set it to the checkpoint folder to {purpose}, for example --load checkpoints"
        )
    return Path(directory)


def task_evaluation_config(args: NeoXArgs) -> TaskEvaluationConfig:
    """Resolve the evaluation of the checkpoint in `load`, or in `save` if `load` is not set."""
    return TaskEvaluationConfig(
        launch=launch_config(args, any_number=True),
        tokenizer=tokenizer_config(args),
        model=model_config(args),
        precision=known(args.precision),
        checkpoint=_checkpoint_folder(args, "evaluate"),
        iteration=args.iteration,
        seed=args.seed,
        loss=LossConfig(z_loss=0.0, mask_eod=args.eod_mask_loss),
        data=data_config(args) if data_is_given(args) else None,
        samples=args.eval_iters * (args.train_batch_size or 1),
        tasks=tuple(args.eval_tasks or ()),
        num_fewshot=args.eval_num_fewshot,
        limit=args.eval_limit,
        batch_size=args.train_micro_batch_size_per_gpu or 1,
        maximum_tokens=args.maximum_tokens,
        results_prefix=args.eval_results_prefix,
        logging=logging_config(args),
    )


def conversion_config(args: NeoXArgs) -> ConversionConfig:
    """Resolve what a conversion needs of the run's configuration."""
    return ConversionConfig(tokenizer=tokenizer_config(args), model=model_config(args), precision=known(args.precision))


def generation_config(args: NeoXArgs) -> GenerationConfig:
    """Resolve text generation from the checkpoint in `load`, or in `save` if `load` is not set."""
    kind = _generation_kind(args)
    if kind == "input-file":
        args.require("sample_input_file")
    return GenerationConfig(
        tokenizer=tokenizer_config(args),
        model=model_config(args),
        precision=known(args.precision),
        checkpoint=_checkpoint_folder(args, "sample from"),
        iteration=args.iteration,
        seed=args.seed,
        maximum_tokens=args.maximum_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        use_cache=not args.recompute,
        kind=kind,
        num_samples=args.num_samples,
        input_file=args.sample_input_file or "",
        output_file=args.sample_output_file,
        prompt_end=args.prompt_end,
    )


def _generation_kind(args: NeoXArgs) -> GenerationKind:
    kinds: dict[str | None, GenerationKind] = {
        "unconditional": "unconditional",
        "input-file": "input-file",
        "interactive": "interactive",
    }
    return kinds[args.text_gen_type]

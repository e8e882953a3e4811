"""Evaluate a checkpoint: perplexity of the validation data, and tasks of the lm-evaluation-harness.

    python eval.py configs/mup/base.yml configs/local_setup.yml --eval-tasks lambada_openai hellaswag
    python deepy.py eval.py configs/mup/base.yml configs/local_setup.yml --eval-tasks my_task.yaml

Without --load, the checkpoint is in the folder `save` of the configuration. Checkpoints of every parallel layout work.
Started by deepy.py or torchrun, each process holds the whole model and answers its share of the requests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.neox_arguments import NeoXArgs, UsageRequested
from megatron.neox_arguments.resolve import task_evaluation_config
from megatron.optional import import_optional

if TYPE_CHECKING:
    from megatron.checkpointing.load import LoadedWeights
    from megatron.initialize import Runtime
    from megatron.model.gpt import GPT
    from megatron.neox_arguments.job_configs import TaskEvaluationConfig
    from megatron.tokenizer import Tokenizer

USAGE = """\
usage: {program} [config.yml ...] [--load DIR] [--eval-tasks TASK ...] [--key value ...]

Evaluate a checkpoint: perplexity of the validation data, and tasks of the lm-evaluation-harness.

  {program} --load checkpoints
  {program} --load checkpoints --eval-tasks lambada_openai hellaswag

  --eval-tasks TASK ...     tasks of the lm-evaluation-harness by name, or YAML files with a task
  --load DIR                checkpoint to evaluate, which holds its configuration (default: `save` of config.yml)
  --iteration N             step of the checkpoint (default: the latest)
  --eval-iters N            batches of validation data (0: none)
  --eval-num-fewshot N      examples in the prompt of a task (default: the task's own number)
  --eval-limit N            use the first N examples of each task, to try it out
  --eval-results-prefix P   results go to P_eval_results_<time>.json

All keys: configs/neox_arguments.md
Next: `muneox generate --load DIR` samples from the checkpoint, and `muneox convert-neox-to-hf` converts it."""


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Evaluate as configured. Returns exit code 0. Raises UserError."""
    arguments = sys.argv[1:] if input_args is None else input_args
    if "-h" in arguments or "--help" in arguments:
        raise UsageRequested(USAGE.format(program=os.path.basename(sys.argv[0])))
    config = task_evaluation_config(NeoXArgs.consume_neox_args(overwrite_values, input_args, own_layout=False))
    if config.tasks:
        import_optional("lm_eval", "eval", "eval_tasks", otherwise="remove eval_tasks")
    evaluate(config)
    return 0


def evaluate(config: TaskEvaluationConfig) -> dict[str, Any]:
    """Evaluate, print and write the results, and return them. Collective. Raises UserError."""
    from megatron.checkpointing import load_weights
    from megatron.initialize import start_worker
    from megatron.text_generation_utils import model_with_weights
    from megatron.tokenizer import build_tokenizer
    from megatron.training.model_from_config import model_plan, neox_assembly
    from muneox.evaluation.results import record_of, results_path, table, write_results

    runtime = start_worker(config.launch, None, config.seed)
    tokenizer = build_tokenizer(*config.tokenizer)
    plan = model_plan(config.model, tokenizer.vocab_size)
    loaded = load_weights(config.checkpoint, config.iteration, neox_assembly(plan))
    model = model_with_weights(loaded, plan, config.precision, runtime.device)
    results: dict[str, Any] = {"checkpoint": str(loaded.path), "step": loaded.iteration}
    if found := _validation(config, runtime, model, tokenizer):
        results["valid"] = found
    if config.tasks:
        results["tasks"] = _tasks(config, model, tokenizer)
    if runtime.is_first:
        record = record_of(results)
        path = results_path(config.results_prefix, datetime.now())
        write_results(path, results)
        print(table(record))
        print(f"results of step {loaded.iteration} written to {path}")
        _log(config, loaded, record)
    return results


def _validation(
    config: TaskEvaluationConfig, runtime: Runtime, model: GPT, tokenizer: Tokenizer
) -> dict[str, float] | None:
    """Results on the validation data, or None if there is none."""
    from megatron.text_generation_utils import eod_or_none
    from megatron.training.data import build_datasets
    from megatron.training.objective import masked_token
    from muneox.evaluation.perplexity import perplexity

    if config.data is None or not config.samples:
        return None
    _, valid, _ = build_datasets(config.data, runtime, tokenizer.vocab_size, (0, config.samples, 0))
    if valid is None:
        return None
    masked = masked_token(config.loss, tokenizer)
    eod = eod_or_none(tokenizer)
    return perplexity(model, valid, config.samples, tokenizer, eod, masked, config.batch_size).results()


def _tasks(config: TaskEvaluationConfig, model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    from muneox.evaluation.harness import HarnessModel, run_tasks

    harness = HarnessModel(model, tokenizer, tokenizer.eod, config.batch_size, config.maximum_tokens)
    return run_tasks(harness, config.tasks, config.num_fewshot, config.limit, config.seed)


def _log(config: TaskEvaluationConfig, loaded: LoadedWeights, record: Mapping[str, float]) -> None:
    """Add the results to the run's metrics.jsonl, where `log-dir` names it, and to its wandb run."""
    from megatron.monitoring.jsonl import append_record
    from megatron.monitoring.trackers import WandbMonitor
    from megatron.training.trainer import wandb_arguments

    entry = {"step": loaded.iteration, "tokens": loaded.client_state.get("tokens"), **record}
    log_dir = config.logging.log_dir
    if log_dir is not None and (metrics := log_dir / "metrics.jsonl").exists():
        append_record(metrics, entry)
        print(f"added to {metrics}")
    if config.logging.wandb is not None:
        run_id = loaded.client_state.get("run", {}).get("id")
        monitor = WandbMonitor(log_dir=log_dir or Path("."), **wandb_arguments(config.logging.wandb, run_id))
        monitor.start({})
        monitor.log_later({"eval/step": loaded.iteration, **record})
        monitor.close()

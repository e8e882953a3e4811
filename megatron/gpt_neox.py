"""GPT-NeoX's functions for training loops of one's own, with its parameters, as thin adapters.

    from megatron.gpt_neox import initialize_megatron, load_checkpoint, save_checkpoint, setup_model_and_optimizer

`docs/gpt-neox.md` lists the differences.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing import Target
from megatron.checkpointing.load import load_checkpoint as load_engine
from megatron.checkpointing.save import save_checkpoint as save_engine
from megatron.errors import ConfigError, DataError
from megatron.files import replacing
from megatron.initialize import Runtime, start_worker
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import batch_config, model_config, tokenizer_config
from megatron.neox_arguments.resolve.files import load_config, save_config
from megatron.neox_arguments.resolve.training import engine_config, launch_config, layout_config, schedule_config
from megatron.text_generation_utils import Sampler, Sampling, eod_or_none, generate_interactively, typed_lines
from megatron.tokenizer import build_tokenizer
from megatron.training.engine import build_train_module
from megatron.training.model_from_config import model_plan, neox_assembly
from megatron.training.objective import masked_token
from megatron.training.report import checkpoint_layout, mup_section
from megatron.training.train_module import TrainModule

_MODULES: weakref.WeakKeyDictionary[Any, TrainModule] = weakref.WeakKeyDictionary()


def print_rank_0(*message: object) -> None:
    """Print `message` on the first rank only."""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(*message, flush=True)


def initialize_megatron(neox_args: NeoXArgs, allow_no_cuda: bool = False) -> Runtime:
    """Join the process group, and seed the generators. allow_no_cuda: ignored, because CPU hosts always work."""
    return start_worker(launch_config(neox_args), layout_config(neox_args), neox_args.seed)


def setup_model_and_optimizer(
    neox_args: NeoXArgs, use_cache: bool = False, iteration: int | None = None
) -> tuple[Any, Any, Any, None]:
    """Build DeepSpeed's engine, its optimizer and its schedule, and load the checkpoint in `load`, if it is set.

    Returns (model, optimizer, lr_scheduler, None), as GPT-NeoX without a reference model. use_cache: ignored, because
    sampling decides it. Sets the key `iteration` of `neox_args`. Raises UserError.
    """
    tokenizer = build_tokenizer(*tokenizer_config(neox_args))
    engine = engine_config(neox_args)
    module = build_train_module(
        engine,
        initialize_megatron(neox_args),
        model_plan(model_config(neox_args), tokenizer.vocab_size),
        schedule_config(neox_args),
        batch_config(neox_args),
        neox_args.seed,
        masked_token(engine.loss, tokenizer),
    )
    _MODULES[module.engine] = module
    model, optimizer, scheduler = module.engine, module.engine.optimizer, module.scheduler
    step = 0
    if neox_args.load:
        step = load_checkpoint(neox_args, model, optimizer, scheduler, iteration=iteration)
    neox_args.update_value("iteration", step)
    return model, optimizer, scheduler, None


def _module_of(model: Any) -> TrainModule:
    if model not in _MODULES:
        raise ConfigError("model: expected the engine that setup_model_and_optimizer returned")
    return _MODULES[model]


def save_checkpoint(neox_args: NeoXArgs, iteration: int, model: Any, optimizer: Any, lr_scheduler: Any) -> None:
    """Save `model` with its optimizer and schedule as step `iteration` in `save`. Collective. Raises UserError."""
    NeoXArgs.require(neox_args, "save", "train_batch_size", "seq_length")
    module, config = _module_of(model), save_config(neox_args)
    assert config is not None
    samples = iteration * batch_config(neox_args).size
    save_engine(
        model,
        config.directory,
        iteration,
        client_state={
            "consumed_samples": samples,
            "tokens": samples * module.plan.config.seq_length,
            "mup": mup_section(module),
            "layout": checkpoint_layout(engine_config(neox_args), module).section(),
        },
        config_files=neox_args.config_files or {},
        keep_last_n=config.keep_last,
        save_rng=config.rng,
        save_optimizer=config.optimizer,
    )


def load_checkpoint(
    neox_args: NeoXArgs,
    model: Any,
    optimizer: Any,
    lr_scheduler: Any,
    inference: bool = False,
    iteration: int | None = None,
) -> int:
    """Load the checkpoint in `load` into `model`, its optimizer and its schedule. Collective.

    inference: load only the weights. iteration: None for the latest. Returns the step of the checkpoint, or 0 if there
    is none and with `finetune`. Raises UserError.
    """
    NeoXArgs.require(neox_args, "load")
    module, config = _module_of(model), load_config(neox_args)
    assert config is not None
    loaded = load_engine(
        model,
        config.directory,
        iteration=iteration,
        mup=mup_section(module),
        load_optimizer=config.optimizer and not inference,
        load_rng=config.rng and not inference,
        finetune=config.finetune,
        target=Target(
            checkpoint_layout(engine_config(neox_args), module),
            list(module.model.global_named_parameters()),
            module.runtime.groups.tensor,
            neox_assembly(module.plan),
        ),
    )
    module.scheduler.apply()
    return 0 if loaded is None or config.finetune else loaded.iteration


def setup_for_inference_or_eval(
    use_cache: bool = True, overwrite_values: Mapping[str, Any] | None = None, input_args: Sequence[str] | None = None
) -> tuple[Any, NeoXArgs]:
    """Build the model of a command line and load its weights, without the state of the optimizer.

    use_cache: ignored, because sampling decides it. Returns (model, neox_args). Raises UserError.
    """
    neox_args = NeoXArgs.consume_neox_args({"no_load_optim": True, **(overwrite_values or {})}, input_args)
    NeoXArgs.require(neox_args, "load")
    model, *_ = setup_model_and_optimizer(neox_args, iteration=neox_args.iteration)
    model.eval()
    return model, neox_args


@contextlib.contextmanager
def _sampling(neox_args: NeoXArgs, model: Any, eos_token_id: int | None, **options: Any) -> Iterator[Sampler]:
    """A sampler of the model, without dropout meanwhile. Raises ConfigError for a model in several parts."""
    module = _module_of(model)
    if module.runtime.groups.model.size > 1:
        raise ConfigError("generate_samples: needs a whole model, without tensor or pipeline ranks")
    tokenizer = build_tokenizer(*tokenizer_config(neox_args))
    end = eod_or_none(tokenizer) if eos_token_id is None else eos_token_id
    was_training = model.module.training  # the engine of DeepSpeed does not follow
    model.eval()
    try:
        yield Sampler(model.module, tokenizer, Sampling(eod=end, **options), neox_args.seed)
    finally:
        model.train(was_training)


def generate_samples_from_prompt(
    neox_args: NeoXArgs,
    model: Any,
    text: str | Sequence[str],
    eos_token_id: int | None = None,
    maximum_tokens: int = 64,
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> list[dict[str, Any]]:
    """Continue each prompt with the model in this process.

    eos_token_id: the token that ends a text; None for the tokenizer's. Returns one dictionary per prompt with the keys
    context, text, length, finished and duration_seconds. Raises ConfigError for a model in several parts.
    """
    options = {"maximum_tokens": maximum_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    results = []
    with _sampling(neox_args, model, eos_token_id, use_cache=not recompute, **options) as sampler:
        for index, prompt in enumerate([text] if isinstance(text, str) else text):
            start = time.time()
            sample = next(iter(sampler.samples(prompt, 1, index)))
            results.append({**dataclasses.asdict(sample), "duration_seconds": time.time() - start})
    return results


def generate_samples_input_from_file(
    neox_args: NeoXArgs,
    model: Any,
    input_file: str,
    output_file: str | None = None,
    eos_token_id: int | None = None,
    maximum_tokens: int = 64,
    prompt_end: str = "\n",
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> list[dict[str, Any]]:
    """Continue each prompt of a file, and write one JSON object per line to `output_file`.

    Prompts end with `prompt_end`. White space around them and empty ones are ignored. Without `output_file`, it is
    `input_file` with .output.jsonl appended. Returns and raises what `generate_samples_from_prompt` does, and DataError
    for the files.
    """
    try:
        content = Path(input_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"input_file: {input_file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    prompts = [stripped for prompt in content.split(prompt_end) if (stripped := prompt.strip())]
    results = generate_samples_from_prompt(
        neox_args, model, prompts, eos_token_id, maximum_tokens, recompute, temperature, top_k, top_p
    )
    _write_lines(output_file or f"{input_file}.output.jsonl", results)
    return results


def generate_samples_unconditional(
    neox_args: NeoXArgs,
    model: Any,
    number_of_samples: int = 10,
    output_file: str | None = None,
    eos_token_id: int | None = None,
    maximum_tokens: int = 64,
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> list[dict[str, Any]]:
    """Sample documents, and write one JSON object per line to `output_file` if given. See the functions above."""
    results = generate_samples_from_prompt(
        neox_args, model, [""] * number_of_samples, eos_token_id, maximum_tokens, recompute, temperature, top_k, top_p
    )
    if output_file is not None:
        _write_lines(output_file, results)
    return results


def generate_samples_interactive(
    neox_args: NeoXArgs,
    model: Any,
    maximum_tokens: int = 64,
    prompt_end: str = "\n",
    eos_token_id: int | None = None,
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> None:
    """Continue typed prompts, which end with `prompt_end`, until the end of the input."""
    options = {"maximum_tokens": maximum_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    with _sampling(neox_args, model, eos_token_id, use_cache=not recompute, **options) as sampler:
        generate_interactively(sampler, typed_lines("Context prompt >>> "), prompt_end, 1, sys.stdout)


def _write_lines(path: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, on the first rank. Raises DataError."""
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    try:
        with replacing(Path(path).absolute()) as temporary:
            lines = (json.dumps(result, ensure_ascii=False) + "\n" for result in results)
            temporary.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"output_file: {path}: cannot be written: {error.strerror}") from error

"""Keys of text generation."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron.neox_arguments.keys import refused
from megatron.neox_arguments.keys import supported as declare
from megatron.neox_arguments.limits import SHARE, Items, at_least, one_of
from megatron.neox_arguments.transfer import FREE

supported = partial(declare, transfer=FREE)  # none of these keys affects training


@dataclass(kw_only=True)
class NeoXArgsTextgen:
    """Text generation and evaluation."""

    text_gen_type: str | None = supported(
        None,
        "unconditional, input-file or interactive. If unset, input-file if sample_input_file is set,"
        " else unconditional.",
        refuse={"precompute": "precomputing log-probabilities is not supported; use input-file"},
        limit=one_of("unconditional", "input-file", "interactive"),
    )
    precompute_model_name: str | None = refused(
        None,
        "Name of the model in stored log-probabilities.",
        "precomputing log-probabilities is not supported; remove the key",
    )
    temperature: float = supported(
        0.8, "Softmax temperature of sampling. 0 always selects the most likely token.", limit=at_least(0)
    )
    top_p: float = supported(
        0.0,
        "Sample from the smallest set of tokens whose total probability reaches this value. 0 disables the limit.",
        limit=SHARE,
    )
    top_k: int = supported(
        50, "Sample from this number of most likely tokens. 0 disables the limit.", limit=at_least(0)
    )
    return_logits: bool = refused(False, "Return the logits of generated tokens.", "not supported yet; remove the key")
    maximum_tokens: int = supported(64, "Maximum number of tokens to generate.", limit=at_least(1))
    prompt_end: str = supported("\n", "String that ends a prompt in interactive mode.")
    sample_input_file: str | None = supported(None, "File with one prompt per line.")
    sample_output_file: str | None = supported("samples.txt", "File to which samples are written.")
    num_samples: int = supported(1, "Number of samples per prompt.", limit=at_least(1))
    recompute: bool = supported(False, "Recompute all positions for each token instead of using a key-value cache.")
    eval_results_prefix: str = supported(
        "", "eval.py writes its results to `<prefix>_eval_results_<time>.json`. The prefix can contain folders."
    )
    eval_tasks: list[Any] | None = supported(
        None,
        "Tasks on which eval.py evaluates a checkpoint: names of the lm-evaluation-harness, or YAML files with a task.",
        limit=Items(str),
    )
    eval_num_fewshot: int | None = supported(
        None, "Number of examples in the prompt of a task. If unset, the task's own number.", limit=at_least(0)
    )
    eval_limit: int | None = supported(
        None, "Number of examples per task that eval.py uses. If unset, all of them.", limit=at_least(1)
    )

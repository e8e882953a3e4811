"""Sampling."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron.neox_arguments.keys import refused
from megatron.neox_arguments.keys import supported as declare
from megatron.neox_arguments.limits import SHARE, at_least, one_of
from megatron.neox_arguments.transfer import FREE

supported = partial(declare, transfer=FREE)  # nothing here changes what is trained


@dataclass(frozen=True, kw_only=True)
class NeoXArgsTextgen:
    """Text generation and evaluation."""

    text_gen_type: str | None = supported(
        None,
        "unconditional, input-file or interactive; unset: input-file where sample_input_file is set,"
        " else unconditional.",
        refuse={"precompute": "precomputing log-probabilities is not supported; use input-file"},
        limit=one_of("unconditional", "input-file", "interactive"),
    )
    precompute_model_name: str | None = refused(
        None,
        "Name under which log-probabilities are stored.",
        "precomputing log-probabilities is not supported",
    )
    temperature: float = supported(
        0.0, "Softmax temperature of sampling; 0 takes the likeliest token.", limit=at_least(0)
    )
    top_p: float = supported(
        0.0, "Sample from the smallest set of tokens with this probability; 0: from all.", limit=SHARE
    )
    top_k: int = supported(0, "Sample from this many likeliest tokens; 0: from all.", limit=at_least(0))
    return_logits: bool = refused(False, "Return the logits of generated tokens.", "not supported yet; remove the key")
    maximum_tokens: int = supported(64, "Largest number of tokens to generate.", limit=at_least(1))
    prompt_end: str = supported("\n", "String that ends a prompt typed in interactive mode.")
    sample_input_file: str | None = supported(None, "File with one prompt a line.")
    sample_output_file: str | None = supported("samples.txt", "File that samples are written to.")
    num_samples: int = supported(1, "Samples for each prompt.", limit=at_least(1))
    recompute: bool = supported(False, "Recompute all positions for each token instead of keeping a KV cache.")
    eval_results_prefix: str = refused(
        "", "Prefix of evaluation results.", "task evaluation is not supported yet; remove the key"
    )
    eval_tasks: list[Any] | None = refused(
        None, "Evaluation tasks.", "task evaluation is not supported yet; remove the key", neutral=([],)
    )

"""A model for EleutherAI's lm-evaluation-harness. Importing this module needs the package lm_eval.

Every process runs the harness on the same tasks with a copy of the model, and answers its share of the requests. The
answers are then exchanged, so all processes report the same results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from megatron.checkpointing.collective import gather, rank, world_size
from megatron.errors import ConfigError, DataError
from megatron.model.gpt import GPT
from megatron.sampling import Sampling, context_length, stream_tokens
from megatron.tokenizer import Tokenizer

T = TypeVar("T")
R = TypeVar("R")
_BOOTSTRAPS = 1000  # resamplings for the standard error of a metric
Scored = tuple[tuple[str, str], list[int], list[int]]  # the texts, and the tokens of context and continuation


def shared(items: Sequence[T], answer: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """Answer this process's share of the items; the answers of all processes, in the order of the items."""
    results: list[Any] = [None] * len(items)
    for owner, part in enumerate(gather(answer(items[rank() :: world_size()]))):
        results[owner :: world_size()] = part
    return results


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Answers the harness's requests with a GPT. batch_size: texts per forward pass."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, eod: int, batch_size: int, maximum_tokens: int) -> None:
        super().__init__()
        self.model, self.text, self.eod = model, tokenizer, eod
        self.batch_size, self.maximum_tokens = batch_size, maximum_tokens
        self.max_length = context_length(model)
        self._device = next(model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        """The token before the first one of a text."""
        return self.eod

    @property
    def tokenizer_name(self) -> str:
        return type(self.text).__name__

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text. This tokenizer adds no special tokens."""
        return self.text.tokenize(string)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of max_length tokens of which each predicts new ones."""
        windows: list[Scored] = []
        counts = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            pairs = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows += (scored := [(("", ""), *make_disjoint_window(pair)) for pair in pairs])
            counts.append(len(scored))
        found = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return shared(requests, lambda own: self._score(own, disable_tqdm))

    def _score(self, requests: Sequence[Scored], quiet: bool) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding gives it. Long texts come first."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        results: list[Any] = [None] * len(requests)
        for batch in _batches(order, self.batch_size, "scoring", quiet):
            rows = [(requests[i][1] + requests[i][2])[-self.max_length - 1 :] for i in batch]
            inputs = torch.full((len(rows), max(map(len, rows)) - 1), self.eod)  # padding at the end changes nothing
            for row, tokens in enumerate(rows):
                inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            with torch.inference_mode():
                logits = self.model(inputs.to(self._device))
            for row, index in enumerate(batch):
                end = len(rows[row]) - 1
                kept = min(len(requests[index][2]), end)
                results[index] = _likelihood(logits[row, end - kept : end], requests[index][2][-kept:])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations of the prompts up to the first stop text."""
        return shared(requests, lambda own: list(self._continue(own, disable_tqdm)))

    def _continue(self, requests: Sequence[Any], quiet: bool) -> Iterator[str]:
        for (request,) in _batches(requests, 1, "generating", quiet):
            prompt, options = request.args
            stops = options.get("until") or []
            sampled = options.get("do_sample", float(options.get("temperature", 0.0)) > 0)
            sampling = Sampling(
                maximum_tokens=int(options.get("max_gen_toks", self.maximum_tokens)),
                temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
                top_k=int(options.get("top_k", 0)) if sampled else 0,
                top_p=float(options.get("top_p", 0.0)) if sampled else 0.0,
                eod=self.eod,
            )
            yield self._generate(prompt, [stops] if isinstance(stops, str) else stops, sampling)

    def _generate(self, prompt: str, stops: Sequence[str], sampling: Sampling) -> str:
        room = max(self.max_length - sampling.maximum_tokens, 1)
        context = self.tok_encode(prompt)[-room:] or [self.eod]
        new: list[int] = []
        text = ""
        for token in stream_tokens(self.model, torch.tensor([context]), sampling):
            if int(token) == self.eod:
                break
            new.append(int(token))
            text = self._continuation(context, new)
            if any(stop in text for stop in stops if stop):
                break
        ends = [text.index(stop) for stop in stops if stop and stop in text]
        return text[: min(ends, default=len(text))]

    def _continuation(self, context: list[int], new: list[int]) -> str:
        """Text of the new tokens. Some tokenizers write a space only after other tokens."""
        whole, before = self.text.detokenize(context + new), self.text.detokenize(context)
        return whole[len(before) :] if whole.startswith(before) else self.text.detokenize(new)


def _likelihood(logits: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """logits: [n, v], predictions of the n tokens of the continuation."""
    target = torch.tensor(continuation, device=logits.device)
    chosen = torch.log_softmax(logits.float(), dim=-1).gather(-1, target[:, None])
    return float(chosen.double().sum()), bool((logits.argmax(-1) == target).all())


def _batches(items: Sequence[T], size: int, what: str, quiet: bool) -> Iterator[Sequence[T]]:
    with tqdm(total=len(items), desc=what, disable=quiet or rank() > 0) as bar:
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            yield batch
            bar.update(len(batch))


def run_tasks(
    model: HarnessModel, tasks: Sequence[str], num_fewshot: int | None, limit: int | None, seed: int
) -> dict[str, Any]:
    """Results of the harness's tasks. Collective.

    tasks: names of the harness's tasks or groups, or paths of YAML files with a task. num_fewshot: None for each task's
    own number; a task that sets 0 keeps it, as in the harness. seed: of the choice of examples for prompts.

    Raises ConfigError for an unknown task or a file that is not a task, and DataError if the harness fails, for example
    because it cannot load a data set.
    """
    names, folders = _names(tasks)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    manager = TaskManager(include_path=folders or None)
    for name in names:
        if not manager.match_tasks([name]):
            raise ConfigError(
                f"eval_tasks: {name!r} is not a task of the lm-evaluation-harness (list them with `lm-eval ls tasks`) "
                "and not a YAML file of a task"
            )
    try:
        loaded = manager.load(manager.match_tasks(names))
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if own is None or (num_fewshot is not None and own != 0):
                task.set_config(key="num_fewshot", value=num_fewshot or 0)
            task.set_fewshot_seed(seed=seed)
        results = evaluate(model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAPS, log_samples=False)
    except (OSError, ConnectionError, ValueError, RuntimeError) as error:
        raise DataError(f"eval_tasks: {', '.join(tasks)}: the harness failed: {error}") from error
    assert results is not None  # every process is the harness's first process
    kept = ("results", "groups", "versions", "n-shot", "higher_is_better", "n-samples")
    return {name: results[name] for name in kept if name in results}


def _names(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the tasks, and the folders of those that are files. Raises ConfigError."""
    names, folders = [], []
    for task in tasks:
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
            continue
        try:
            found = yaml.load(Path(task).read_text(encoding="utf-8"), _TaskLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"eval_tasks: {task}: {getattr(error, 'strerror', None) or error}") from error
        if not isinstance(found, dict) or not isinstance(found.get("task"), str):
            raise ConfigError(f"eval_tasks: {task}: expected a task of the harness with the key `task`")
        names.append(found["task"])
        folders.append(str(Path(task).resolve().parent))
    return names, folders


class _TaskLoader(yaml.SafeLoader):
    """Reads the harness's YAML files. Runs nothing: the value of `!function` is ignored."""


_TaskLoader.add_constructor("!function", lambda loader, node: None)

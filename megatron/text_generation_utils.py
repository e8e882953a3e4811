"""Generate text from a checkpoint: load the configured model, and sample from prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from megatron.checkpointing import check_unchanged, load_weights
from megatron.checkpointing.load import LoadedWeights
from megatron.errors import CheckpointError, DataError
from megatron.files import replacing
from megatron.forwarding import forward_names
from megatron.mappings import ABSENT, differences
from megatron.model.build import ModelPlan, forward_section, meta_model, shapes_of
from megatron.model.gpt import GPT
from megatron.neox_arguments.job_configs import GenerationConfig
from megatron.neox_arguments.run_config import Precision
from megatron.parametrization.plan import Shape
from megatron.precisions import DTYPES
from megatron.sampling import Sampling, context_length, generate_tokens, stream_tokens
from megatron.tokenizer import StreamDetokenizer, Tokenizer, build_tokenizer
from megatron.training.model_from_config import model_plan, neox_assembly

logger = logging.getLogger(__name__)

# GPT-NeoX's functions, which take its arguments
__getattr__ = forward_names(
    __name__,
    dict.fromkeys(
        (
            "generate_samples_from_prompt",
            "generate_samples_input_from_file",
            "generate_samples_interactive",
            "generate_samples_unconditional",
        ),
        "megatron.gpt_neox",
    ),
)

_BATCH = 16  # samples of one prompt per batch
_SHOWN = 10  # parameters listed in an error

__all__ = [
    "Sample",
    "Sampler",
    "Sampling",
    "eod_or_none",
    "generate_from_file",
    "generate_interactively",
    "generate_tokens",
    "generate_unconditional",
    "load_model",
    "model_with_weights",
    "stream_tokens",
    "typed_lines",
]

# --- the model ---


def load_model(config: GenerationConfig, vocab_size: int, device: torch.device | str = "cpu") -> tuple[GPT, int]:
    """Load the checkpoint into a model of the configured precision, and return the model and its step.

    The embedding has one row per token of the vocabulary, without padding.

    Raises CheckpointError, with the differences, if the checkpoint has another parametrization or if names or shapes of
    its parameters differ.
    """
    plan = model_plan(config.model, vocab_size)
    loaded = load_weights(config.checkpoint, config.iteration, neox_assembly(plan))
    return model_with_weights(loaded, plan, config.precision, device), loaded.iteration


def model_with_weights(loaded: LoadedWeights, plan: ModelPlan, precision: Precision, device: torch.device | str) -> GPT:
    """The planned model with the weights of a checkpoint. See `load_model`."""
    _check_parametrization(loaded, plan)
    model = meta_model(plan.config.without_padding(), plan.factors)
    expected = shapes_of(model)
    weights = loaded.weights if loaded.client_state.get("layout") else _without_padding(loaded.weights, plan, expected)
    _check_shapes(loaded.path, weights, expected)
    model.load_state_dict(weights, assign=True)
    model = model.to(device=device, dtype=DTYPES[precision])
    return model.eval().requires_grad_(False)


def _check_parametrization(loaded: LoadedWeights, plan: ModelPlan) -> None:
    """Compare the factors of the forward pass. A converted checkpoint does not record them."""
    saved = loaded.client_state.get("mup")
    if not saved:
        return
    now = forward_section(plan)
    check_unchanged({part: saved.get(part, {}) for part in now}, now)


def _without_padding(
    weights: Mapping[str, torch.Tensor], plan: ModelPlan, expected: Mapping[str, Shape]
) -> dict[str, torch.Tensor]:
    """Remove the padding of the vocabulary from weights. A converted checkpoint can contain it."""
    padded = shapes_of(meta_model(plan.config, plan.factors))
    return {
        name: weight[: expected[name][0]] if name in expected and weight.shape == padded[name] else weight
        for name, weight in weights.items()
    }


def _check_shapes(path: Path, weights: Mapping[str, torch.Tensor], expected: Mapping[str, Shape]) -> None:
    wrong = differences({name: tuple(weight.shape) for name, weight in weights.items()}, expected)
    if not wrong:
        return

    def describe(shape: list[int]) -> str:
        return "absent" if shape is ABSENT else str(shape)

    lines = [
        f"  {name}: {describe(found)} in the checkpoint, {describe(here)} in the configuration"
        for name, found, here in wrong[:_SHOWN]
    ]
    if len(wrong) > _SHOWN:
        lines.append(f"  ... and {len(wrong) - _SHOWN} more")
    raise CheckpointError(
        f"{path}: the checkpoint does not match the configured model:\n" + "\n".join(lines) + "\n"
        f"Use the configuration of its training run ({path / 'configs'})."
    )


# --- text ---


@dataclass(frozen=True)
class Sample:
    """One sampled text. length: number of new tokens. finished: whether the model ended the text."""

    context: str
    text: str
    length: int
    finished: bool


class Sampler:
    """Sample text from a model. Sample i of prompt p depends only on the seed, p and i."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, sampling: Sampling, seed: int) -> None:
        self.model, self.tokenizer, self.sampling, self.seed = model, tokenizer, sampling, seed

    @classmethod
    def from_config(cls, config: GenerationConfig) -> Sampler:
        """Create the configured tokenizer, model and sampling options. Uses a GPU if available."""
        tokenizer = build_tokenizer(*config.tokenizer)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, _ = load_model(config, tokenizer.vocab_size, device)
        sampling = Sampling(
            config.maximum_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            eod_or_none(tokenizer),
            config.use_cache,
        )
        return cls(model, tokenizer, sampling, config.seed)

    def stream(self, prompt: str, prompt_index: int = 0, sample_index: int = 0) -> Iterator[str]:
        """Yield one sample in pieces of whole characters as soon as they are complete."""
        tokens = self._encode(prompt)
        generator = [self._generator(prompt_index, sample_index)]
        text = _Text(self.tokenizer, tokens)
        for chosen in stream_tokens(self.model, torch.tensor([tokens]), self.sampling, generator):
            if chosen.item() != self.sampling.eod:
                yield text.push(int(chosen))
        yield text.flush()

    def samples(self, prompt: str, count: int = 1, prompt_index: int = 0) -> Iterator[Sample]:
        """Yield `count` samples, drawn in batches. An empty prompt starts a new document."""
        tokens = self._encode(prompt)
        for start in range(0, count, _BATCH):
            indices = range(start, min(start + _BATCH, count))
            rows = generate_tokens(
                self.model,
                torch.tensor([tokens]).repeat(len(indices), 1),
                generator=[self._generator(prompt_index, index) for index in indices],
                **dataclasses.asdict(self.sampling),
            )
            for row in rows:
                finished = bool(row) and row[-1] == self.sampling.eod
                new = row[:-1] if finished else row
                yield Sample(prompt, _Text(self.tokenizer, tokens).all(new), len(new), finished)

    def _encode(self, prompt: str) -> list[int]:
        tokens = self.tokenizer.tokenize(prompt)
        limit = context_length(self.model)
        if len(tokens) > limit:
            logger.warning(
                "the prompt has %d tokens; using the last %d, the seq_length of the model", len(tokens), limit
            )
        return tokens or [self.tokenizer.eod]

    def _generator(self, prompt_index: int, sample_index: int) -> torch.Generator:
        state = np.random.SeedSequence((self.seed, prompt_index, sample_index)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]) >> 1)


class _Text:
    """Decode tokens that continue a prompt. The last prompt token decides whether a space follows it."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._stream = StreamDetokenizer(tokenizer)
        self._stream.push(prompt[-1])

    def push(self, token: int) -> str:
        return self._stream.push(token)

    def flush(self) -> str:
        return self._stream.flush()

    def all(self, tokens: Iterable[int]) -> str:
        return "".join([*map(self.push, tokens), self.flush()])


def eod_or_none(tokenizer: Tokenizer) -> int | None:
    """The end-of-document token, or None if the tokenizer has none."""
    try:
        return tokenizer.eod
    except DataError:
        return None


# --- modes of generation ---


def generate_unconditional(sampler: Sampler, count: int, output_file: str | None) -> Iterator[Sample]:
    """Sample documents without a prompt. Yields each one and writes it as a JSON line."""
    with _json_lines(output_file) as write:
        for sample in sampler.samples("", count):
            write(sample)
            yield sample


def generate_from_file(sampler: Sampler, input_file: str, count: int, output_file: str | None) -> Iterator[Sample]:
    """Sample `count` continuations of each line of `input_file`. Yields each one and writes it as a JSON line.

    An empty line starts a new document. Raises DataError if the file cannot be read.
    """
    try:
        lines = Path(input_file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "expected UTF-8 text"
        raise DataError(f"sample_input_file: {input_file}: {reason}") from error
    prompts = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    with _json_lines(output_file) as write:
        for index, prompt in enumerate(prompts):
            for sample in sampler.samples(prompt, count, index):
                write(sample)
                yield sample


def generate_interactively(
    sampler: Sampler, lines: Iterable[str], prompt_end: str, count: int, output: IO[str]
) -> None:
    """Continue each prompt in `lines` (without line ends), and write the text while it is sampled.

    A prompt ends with `prompt_end`. Ctrl-C stops the current text, or the program while it waits for a prompt.
    """
    for index, prompt in enumerate(_prompts(lines, prompt_end)):
        with contextlib.suppress(KeyboardInterrupt):
            for sample_index in range(count):
                for piece in sampler.stream(prompt, index, sample_index):
                    output.write(piece)
                    output.flush()
                output.write("\n")
        output.write("\n")
        output.flush()


def _prompts(lines: Iterable[str], prompt_end: str) -> Iterator[str]:
    """Group lines into prompts. Remaining lines at the end of the input form the last prompt."""
    text = ""
    for line in lines:
        text += line + "\n"
        ended = next((end for end in (prompt_end, f"{prompt_end}\n") if text.endswith(end)), None)
        if ended is not None:
            yield text.removesuffix(ended)
            text = ""
    if text:
        yield text.removesuffix("\n")


@contextlib.contextmanager
def _json_lines(path: str | None) -> Iterator[Callable[[Sample], None]]:
    """Yield a function that writes a sample. The file replaces `path` when it is complete."""
    if path is None:
        yield lambda sample: None
        return
    target = Path(path).absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:

            def write(sample: Sample) -> None:
                file.write(json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n")

            yield write
    except OSError as error:
        raise DataError(f"sample_output_file: {path}: cannot be written: {error.strerror}") from error


def typed_lines(prompt: str) -> Iterator[str]:
    """Yield lines from the terminal, after `prompt`, or from a pipe until the end of the input."""
    shown = prompt if sys.stdin.isatty() else ""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input(shown)

"""What a run continues: its place in the data, and what it says where a resume changes something."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpointing import LoadedCheckpoint
from megatron.errors import CheckpointError
from megatron.mappings import difference_table, differences
from megatron.neox_arguments.run_config import DataConfig, LoadConfig, OptimizerConfig, RunConfig, TokenizerConfig


@dataclass(frozen=True)
class Progress:
    """How far a run is: updates, samples of the data's order, and tokens trained on, which outlive a change of data."""

    step: int = 0
    consumed_samples: int = 0
    tokens: int = 0

    @property
    def position(self) -> dict[str, int]:
        """For the checkpoint, whose step is its iteration."""
        return {"consumed_samples": self.consumed_samples, "tokens": self.tokens}

    def after_step(self, batch_size: int, seq_length: int) -> Progress:
        return Progress(self.step + 1, self.consumed_samples + batch_size, self.tokens + batch_size * seq_length)

    @classmethod
    def of(cls, loaded: LoadedCheckpoint) -> Progress:
        """As the checkpoint records it. CheckpointError where it does not."""
        try:
            samples, tokens = (int(loaded.client_state[key]) for key in ("consumed_samples", "tokens"))
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{loaded.path} does not say how many samples and tokens it was trained on: "
                "set finetune: true to start a new run from its weights"
            ) from None
        return cls(loaded.iteration, samples, tokens)


def data_section(config: RunConfig, corpus: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides which tokens a sample holds and when it comes; a resume must not change it in silence."""
    data = config.data
    section: dict[str, Any] = {
        "corpus": dict(corpus),
        "seed": config.seed,
        "seq_length": data.seq_length,
        "tokenizer": _tokenizer_section(config.tokenizer),
    }
    if data.packing != "packed":
        section |= {"pack_impl": data.packing, "allow_chopped": data.allow_chopped}
    if data.path is not None:
        return {**section, "split": data.split}
    section["weight_by_num_documents"] = data.weight_by_num_documents
    if data.weight_by_num_documents:
        section["weighted_sampler_alpha"] = data.weighted_sampler_alpha
    for part in ("train", "valid", "test"):
        corpora = getattr(data, part)
        section[f"{part}_data_weights"] = list(corpora.weights or (1.0 for _ in corpora.paths))
        if corpora.labels:
            section[f"{part}_labels"] = True
    return section


def optimizer_section(config: OptimizerConfig) -> dict[str, Any]:
    """Settings of the optimizer that a resume must not change in silence.

    The parametrization's section holds its type and the mode of its weight decay, and the schedule the rates.
    """
    own = ("betas", "eps") if config.kind == "adam" else ("momentum", "nesterov")
    section = {key: getattr(config, key) for key in (*own, "weight_decay")}
    return {**section, "gradient_clipping": config.clip_grad}


def _tokenizer_section(config: TokenizerConfig) -> dict[str, Any]:
    """The kind of tokenizer and the SHA-256 of its files, which may be somewhere else by now."""
    kind, *files = config
    digests = [hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None for file in files]
    return {"tokenizer_type": kind, **dict(zip(("vocab_file", "merge_file"), digests, strict=True))}


def free_section(config: RunConfig) -> dict[str, Any]:
    """What a resume may change, and then says so."""
    return {"train_batch_size": config.batch.size, "train_iters": config.steps, "data_paths": _paths(config.data)}


def _paths(config: DataConfig) -> list[str]:
    return config.prefixes


def describe_resume(loaded: LoadedCheckpoint, progress: Progress, config: RunConfig) -> str:
    """What was resumed, and a table of what differs from then."""
    line = f"resumed from {loaded.path} at step {progress.step}, {progress.tokens:,} tokens"
    saved = loaded.client_state.get("run")
    found = differences(saved["free"], free_section(config)) if saved else []
    if not saved:
        line += " (it does not record its data, which is not compared)"
    if not found:
        return line
    return (
        f"{line}; the data continues after sample {progress.consumed_samples:,}. Changed since then:\n"
        + difference_table(found, ("name", "saved", "now"))
    )


def describe_new_data(loaded: LoadedCheckpoint, data: Mapping[str, Any]) -> str | None:
    """With override_data: what differs from the checkpoint's data; None where nothing does."""
    found = differences(loaded.client_state.get("data") or data, data)
    if not found:
        return None
    return "override_data: the new data is read from its first sample:\n" + difference_table(
        found, ("name", "saved", "now")
    )


def describe_new_optimizer(loaded: LoadedCheckpoint, config: OptimizerConfig) -> str | None:
    """With override_optimizer: what differs from the checkpoint's settings; None where nothing does."""
    now = optimizer_section(config)
    found = differences(loaded.client_state.get("optimizer") or now, now)
    if not found:
        return None
    return "override_optimizer: the optimizer continues with new settings:\n" + difference_table(
        found, ("name", "saved", "now")
    )


def nothing_to_load(config: LoadConfig, train: bool) -> str:
    """The notice of a run that found no checkpoint; CheckpointError where it needs one."""
    needs = {
        "finetune": config.finetune,
        "no_load_optim": not config.optimizer,
        "do_train: false": not train,
    }
    needed = [key for key, is_set in needs.items() if is_set]
    if needed:
        raise CheckpointError(f"load: {config.directory} holds no checkpoint, and {needed[0]} needs one")
    return f"no checkpoint in {config.directory}: starting at step 0"

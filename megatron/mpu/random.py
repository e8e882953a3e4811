"""Random streams for dropout: one that the tensor-parallel ranks share, and one of each rank's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed from any numbers and names; other parts give another, unrelated seed."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class DropoutStreams:
    """The shared stream is torch's default generators; `inside` forks this rank's own stream from them.

    Inside tensor-parallel regions (attention heads, columns of the MLP) and on sequence slices the ranks hold
    different activations and must draw different masks: wrap that dropout in `with streams.inside()`. Outside
    they hold the same activations and must draw the same masks: use dropout as it is.

    The own stream is seeded from a number drawn from the shared one and from the rank, so the state of the
    default generators is the whole state. Whoever restores them restores both: a checkpoint on disk, and
    torch.utils.checkpoint, which replays the masks when it recomputes a block. All tensor-parallel ranks must
    enter `inside` equally often, or their shared streams part.
    """

    def __init__(self, seed: int, tp_rank: int = 0, dp_rank: int = 0, *, tp_size: int, pp_rank: int = 0) -> None:
        self.tp_rank = tp_rank
        self.tp_size = tp_size
        self.seed = stream_seed("dropout", seed, dp_rank, pp_rank)

    def start(self) -> None:
        """Seed the shared stream: equal on the tensor-parallel ranks, different by replica and stage."""
        torch.manual_seed(self.seed)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Draw from this rank's own stream on the CPU and the current GPU. Nothing changes with one rank."""
        if self.tp_size == 1:
            yield
            return
        draw = int(torch.randint(2**62, ()))  # from the CPU generator, so that no GPU is waited for
        on_gpu = torch.cuda.is_available()
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
            seed = stream_seed("inside", draw, self.tp_rank)
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                torch.cuda.manual_seed(seed)
            yield

    def state_dict(self) -> dict[str, Any]:
        """State of the default generators, as tensors."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. A CUDA state is left aside where there is no CUDA device."""
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])

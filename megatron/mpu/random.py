"""Random streams for dropout: one shared by the tensor-parallel ranks, and a separate one per rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def stream_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from any numbers and names. Different parts give unrelated seeds."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class DropoutStreams:
    """Dropout streams: torch's default generators are the shared stream; `inside` forks this rank's stream from them.

    Inside tensor-parallel regions (attention heads, columns of the MLP) and on sequence slices, the ranks hold
    different activations and must draw different masks: wrap that dropout in `with streams.inside()`. Outside, they
    hold the same activations and must draw the same masks: use dropout without the context.

    The rank's stream is seeded from its rank and from a number drawn from the shared stream, so the state of the
    default generators is the whole state. Restoring them restores both streams. A checkpoint on disk does this, and
    so does torch.utils.checkpoint, which replays the masks when it recomputes a block. All tensor-parallel ranks
    must enter `inside` equally often, or their shared streams diverge.
    """

    def __init__(self, seed: int, tp_rank: int = 0, dp_rank: int = 0, *, tp_size: int, pp_rank: int = 0) -> None:
        self.tp_rank = tp_rank
        self.tp_size = tp_size
        self.seed = stream_seed("dropout", seed, dp_rank, pp_rank)

    def start(self) -> None:
        """Seed the shared stream: equal on all tensor-parallel ranks, different for each replica and stage."""
        torch.manual_seed(self.seed)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Draw from this rank's stream on the CPU and the current GPU. With one rank this does nothing."""
        if self.tp_size == 1:
            yield
            return
        draw = int(torch.randint(2**62, ()))  # from the CPU generator: no synchronization with a GPU
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
        """Continue from a state returned by `state_dict`. A CUDA state is ignored if there is no CUDA device."""
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])

"""Compares the vectorised sample index with Megatron-LM's loop: same rows, in about 10 ms for a million documents.

The baseline is that loop in plain Python; Megatron-LM and GPT-NeoX run it in C++. Prints both times and their ratio,
measured in one run on the same documents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron.data.sample_order import build_sample_idx


def sample_idx_by_loop(lengths: np.ndarray, seq_length: int) -> list[tuple[int, int]]:
    """The baseline: walk the documents and fill one sequence of seq_length + 1 tokens at a time."""
    documents = lengths.tolist()
    num_samples = (sum(documents) - 1) // seq_length
    rows, document, offset = [(0, 0)], 0, 0
    while len(rows) <= num_samples:
        wanted = seq_length + 1
        while wanted > documents[document] - offset:
            wanted -= documents[document] - offset
            document, offset = document + 1, 0
        offset += wanted - 1
        rows.append((document, offset))
    return rows


def process_seconds(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median processor time of `repeats` calls in seconds, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return float(np.median(times)), result


def main(input_args: Sequence[str] | None = None) -> float:
    """Print the comparison. Returns the time of the loop divided by that of the vectorised index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--mean-length", type=int, default=600, help="mean tokens per document (log-normal)")
    parser.add_argument("--seq-length", type=int, default=2048)
    args = parser.parse_args(input_args)
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(args.mean_length) - 0.5, 1.0, args.documents).astype(np.int32) + 1
    fast, rows = process_seconds(lambda: build_sample_idx(lengths, args.seq_length), 7)
    slow, expected = process_seconds(lambda: sample_idx_by_loop(lengths, args.seq_length), 1)
    assert np.array_equal(rows, np.array(expected)), "the rows differ"
    print(f"{args.documents:,} documents, {lengths.sum(dtype=np.int64):,} tokens, {len(rows) - 1:,} samples")
    print(f"vectorised {fast * 1e3:.1f} ms, loop {slow * 1e3:.0f} ms: {slow / fast:.0f} times faster, same rows")
    return slow / fast


if __name__ == "__main__":
    main()

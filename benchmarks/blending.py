"""Compares the blend of many datasets with Megatron-LM's loop: same order, in about a minute for 5e8 samples of 1,000.

The baseline is that loop in plain Python; Megatron-LM and GPT-NeoX run it in C++. Prints the rates of the compiled loop
and of NumPy, and their ratios to the baseline, measured in one run on the same weights, and the largest memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence

import numpy as np

from megatron.data.blend_order import blend_order, order_by_parts
from megatron.data.blending import normalize_weights


def order_by_loop(shares: Sequence[float], chosen: np.ndarray, within: np.ndarray) -> None:
    """The baseline: find the dataset furthest behind for one sample after another."""
    counts = [0] * len(shares)
    for i in range(len(chosen)):
        deficits = [share * max(i, 1) - count for share, count in zip(shares, counts, strict=True)]
        chosen[i] = furthest = deficits.index(max(deficits))
        within[i] = counts[furthest]
        counts[furthest] += 1


def measure(fill: Callable[..., None], shares: Sequence[float], samples: int) -> tuple[float, np.ndarray]:
    """Samples per second of processor time, and the datasets in order."""
    chosen, within = np.empty(samples, np.int16), np.empty(samples, np.int64)
    start = time.process_time()
    fill(shares, chosen, within)
    return samples / (time.process_time() - start), chosen


def main(input_args: Sequence[str] | None = None) -> float:
    """Print the comparison. Returns the rate of the compiled order divided by that of the loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=50_000_000)
    parser.add_argument("--numpy-samples", type=int, default=5_000_000)
    parser.add_argument("--loop-samples", type=int, default=20_000)
    args = parser.parse_args(input_args)
    shares = normalize_weights(np.random.default_rng(0).lognormal(0, 1, args.datasets).tolist())
    fast, order = measure(blend_order, shares, args.samples)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parts, by_parts = measure(order_by_parts, shares, min(args.samples, args.numpy_samples))
    slow, expected = measure(order_by_loop, shares, min(args.samples, args.loop_samples))
    assert np.array_equal(order[: len(by_parts)], by_parts), "the orders differ"
    assert np.array_equal(order[: len(expected)], expected), "the orders differ"
    print(f"{args.datasets:,} datasets, {args.samples:,} samples in {args.samples / fast:.1f} s of processor time")
    print(f"the process used {memory / 1e9:.2f} GB for an index of {10 * args.samples / 1e9:.2f} GB")
    print(f"compiled {fast:,.0f}, NumPy {parts:,.0f}, loop {slow:,.0f} samples/s: ", end="")
    print(f"{fast / slow:,.0f} and {parts / slow:,.0f} times faster, same order")
    return fast / slow


if __name__ == "__main__":
    main()

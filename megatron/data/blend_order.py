"""The order of a blend: Megatron-LM's rule, fast.

Sample i comes from the dataset that is furthest behind: the one with the largest share * max(i, 1) - (samples taken so
far), and the first one of equals. Each choice depends on all choices before it, so it takes a loop: a compiled one if
this machine has a C compiler, otherwise one in NumPy over many parts of the order at once. Both give the same bits.

The deficits of this rule stay in a small region whatever they start from, and two runs of the rule that start from
different counts soon have the same counts (Adler et al. 2005, "Convex dynamics and applications", prove it for error
diffusion, which is the same rule). So the order is cut into parts. Each part starts a little early from counts that are
close to the true ones. The counts at the start of a part are then compared with those at the end of the part before it,
and a part that differs is computed again from there. The result is always that of the rule: only the time depends on
how soon the counts agree.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_FEW = 16  # datasets up to which NumPy takes one after another, for all parts at once
_WORTH_COMPILING = 1 << 22  # samples; NumPy takes about as long for them as the compiler
_CHUNK = 1 << 22  # samples between two reports of progress
_COMPILE = "-O3 -march=native -ffp-contract=off -ffinite-math-only -fno-signed-zeros -shared -fPIC".split()


def blend_order(
    shares: Sequence[float],
    chosen: np.ndarray,
    within: np.ndarray,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Fill in the dataset `chosen` [n] i16 of each sample and its index `within` [n] i64 in that dataset.

    shares: positive, with the sum 1. on_progress: called with the number of samples so far.
    """
    compiled = compiled_order() if len(chosen) >= _WORTH_COMPILING else None
    if compiled is None:
        order_by_parts(shares, chosen, within, on_progress=on_progress)
        return
    weights, counts = np.array(shares, np.float64), np.zeros(len(shares))
    scratch, names = np.empty(4 * len(shares)), np.empty(len(shares), np.int16)
    for first in range(0, len(chosen), _CHUNK):
        part = chosen[first : first + _CHUNK], within[first : first + _CHUNK]
        compiled(weights, counts, scratch, names, len(weights), first, len(part[0]), *part)
        on_progress(first + len(part[0]))


@functools.cache
def compiled_order() -> Callable[..., None] | None:
    """Compile `blend_order.c`. Returns None without a C compiler, which `CC` names (default: cc)."""
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "blend_order.so")
        command = [os.environ.get("CC") or "cc", *_COMPILE, "-o", library, os.fspath(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            function = ctypes.CDLL(library).blend_order
        except (OSError, subprocess.SubprocessError):
            return None
    reals, integers, numbers = (_array_of(kind) for kind in (np.float64, np.int16, np.int64))
    function.restype = None
    function.argtypes = [reals, reals, reals, integers, *[ctypes.c_int64] * 3, integers, numbers]
    return function  # the library stays mapped without its file


def _array_of(dtype: Any) -> Any:
    return np.ctypeslib.ndpointer(dtype, ndim=1, flags="C_CONTIGUOUS")


def order_by_parts(
    shares: Sequence[float],
    chosen: np.ndarray,
    within: np.ndarray,
    parts: int | None = None,
    length: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """`blend_order` in NumPy. parts, length: how many parts of how many samples are computed at once; None: chosen."""
    weights = np.asarray(shares, np.float64)
    parts = parts or (4096 if len(weights) <= _FEW else 64)
    length = length or max(512, 32 * len(weights))
    counts = np.zeros(len(weights))
    first = 0
    while first < len(chosen):
        part_length = min(length, -(-(len(chosen) - first) // parts))
        picked, index, counts = _together(weights, first, counts, parts, part_length)
        end = min(first + parts * part_length, len(chosen))
        chosen[first:end] = picked.reshape(-1)[: end - first]
        within[first:end] = index.reshape(-1)[: end - first]
        first = end
        on_progress(end)


def _together(
    shares: np.ndarray, first: int, counts: np.ndarray, parts: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples [first, first + parts * length): dataset and index in it [parts, length], and the counts after them."""
    step = _step_few if len(shares) <= _FEW else _step_many
    warm_up = min(length, 4 * len(shares))
    starts = first + length * np.arange(parts)
    begins = np.empty((parts, len(shares)))
    begins[0] = counts
    if parts > 1:
        early = np.maximum(starts[1:] - warm_up, 0)
        begins[1:] = step(shares, early, _close_counts(shares, early), warm_up)[2]
    chosen, within, ends = step(shares, starts, begins, length)
    while (wrong := 1 + np.flatnonzero((begins[1:] != ends[:-1]).any(axis=1))).size:
        begins[wrong] = ends[wrong - 1]
        chosen[wrong], within[wrong], ends[wrong] = step(shares, starts[wrong], begins[wrong], length)
    return chosen, within, ends[-1]


def _close_counts(shares: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Whole numbers [parts, datasets] close to share * position, whose sum is the position."""
    exact = shares * positions[:, None]
    counts = np.floor(exact)
    missing = positions - counts.sum(axis=1)
    order = np.argsort(counts - exact, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(shares))[None], axis=1)
    return np.asarray(counts + (rank < missing[:, None]))


def _step_few(
    shares: np.ndarray, starts: np.ndarray, begins: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take `length` samples in every part. Goes through the datasets at each step."""
    parts = len(starts)
    counts = np.ascontiguousarray(begins.T).reshape(-1)  # [datasets * parts]
    chosen, within = np.empty((length, parts), np.int16), np.empty((length, parts), np.int64)
    deficit, best, column = np.empty(parts), np.empty(parts), np.arange(parts)
    better, pick, place = np.empty(parts, bool), np.empty(parts, np.int64), np.empty(parts, np.int64)
    for sample in range(length):
        position = np.maximum(starts + sample, 1).astype(np.float64)
        np.multiply(position, shares[0], out=best)
        best -= counts[:parts]
        pick.fill(0)
        for dataset in range(1, len(shares)):
            np.multiply(position, shares[dataset], out=deficit)
            deficit -= counts[dataset * parts : (dataset + 1) * parts]
            np.greater(deficit, best, out=better)
            np.maximum(best, deficit, out=best)
            np.copyto(pick, dataset, where=better)
        np.multiply(pick, parts, out=place)
        place += column
        taken = counts.take(place)
        chosen[sample], within[sample] = pick, taken
        taken += 1
        counts[place] = taken
    return np.ascontiguousarray(chosen.T), np.ascontiguousarray(within.T), counts.reshape(len(shares), parts).T.copy()


def _step_many(
    shares: np.ndarray, starts: np.ndarray, begins: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take `length` samples in every part. Compares the datasets of one part after another at each step."""
    counts = begins.copy()
    chosen, within = np.empty((length, len(starts)), np.int16), np.empty((length, len(starts)), np.int64)
    deficits, offsets = np.empty_like(counts), np.arange(len(starts)) * len(shares)
    for sample in range(length):
        np.multiply(shares, np.maximum(starts + sample, 1.0)[:, None], out=deficits)
        deficits -= counts
        chosen[sample] = furthest = deficits.argmax(axis=1)
        place = furthest + offsets
        within[sample] = taken = counts.take(place)
        counts.reshape(-1)[place] = taken + 1
    return np.ascontiguousarray(chosen.T), np.ascontiguousarray(within.T), counts

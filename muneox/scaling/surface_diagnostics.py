"""Checks that runs agree with L(N, D): outliers, inversions, bending and scatter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron.errors import DataError
from muneox.output import short
from muneox.scaling.diagnostics import NOISE, SIGNIFICANCE, Outlier, added_terms_p_value, deleted_p_value
from muneox.scaling.prior import Array
from muneox.scaling.surface import Surface, fit_surface

SCATTERED = 0.03  # relative noise from which the surface does not describe the runs
MOST_NAMED = 3  # inversions that are listed


def describe_surface(params: Array, tokens: Array, y: Array, names: Sequence[str]) -> list[str]:
    """Warnings about runs fitted with L(N, D). params, tokens, y: [n]. Empty for runs too few for a plain fit."""
    try:
        surface = fit_surface(params, tokens, y)
    except DataError:
        return []
    noise = _noise(surface, params, tokens, y)
    warnings = [
        f"{names[o.index]} {'seems to have diverged' if o.diverged else 'is an outlier'}: {o.excess:+.1%} from the "
        f"surface of the others (p = {o.p_value:.1g})"
        for o in surface_outliers(params, tokens, y)
    ]
    if noise > SCATTERED:
        warnings.append(f"the runs scatter by {noise:.0%} around the surface, so it does not describe them")
    if (p := surface_bend(params, tokens, y, surface)) < SIGNIFICANCE:
        warnings.append(f"the residuals bend (p = {p:.1g}): one surface does not hold over all these runs")
    pairs = surface_inversions(params, tokens, y)
    for better, worse in pairs[:MOST_NAMED]:
        rise = y[worse] / y[better] - 1
        sizes = [f"{short(params[i])} parameters on {short(tokens[i])} tokens" for i in (worse, better)]
        warnings.append(f"broken scaling: {sizes[0]} is {rise:.1%} worse than {sizes[1]}")
    if len(pairs) > MOST_NAMED:
        warnings.append(f"broken scaling: {len(pairs) - MOST_NAMED} more pairs of runs like these")
    return warnings


def surface_outliers(params: Array, tokens: Array, y: Array) -> list[Outlier]:
    """Runs whose deleted residual is significant at 1 % after Bonferroni's correction, worst first.

    Each run is compared with the surface of the others, one after the other. Returns an empty list for fewer than
    eight runs.
    """
    left, found = np.arange(len(y)), list[Outlier]()
    while len(left) >= 8:
        candidates = [_deleted(params[left], tokens[left], y[left], i) for i in _farthest(params, tokens, y, left)]
        worst = min(candidates, key=lambda o: o.p_value)
        if worst.p_value * len(left) >= SIGNIFICANCE:
            break
        found.append(Outlier(int(left[worst.index]), worst.excess, worst.p_value * len(left)))
        left = np.delete(left, worst.index)
    return sorted(found, key=lambda o: -abs(o.excess))


def _farthest(params: Array, tokens: Array, y: Array, left: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions in `left` of the three runs with the largest residuals."""
    n, d, loss = params[left], tokens[left], y[left]
    return np.argsort(-np.abs(loss / fit_surface(n, d, loss)(n, d) - 1))[:3]


def _deleted(params: Array, tokens: Array, y: Array, index: int) -> Outlier:
    """The run `index` compared with the surface of the others, by a t-test with the run's leverage."""
    others = np.arange(len(y)) != index
    try:
        surface = fit_surface(params[others], tokens[others], y[others])
    except DataError:
        return Outlier(index, 0.0, 1.0)
    relative = y / surface(params, tokens) - 1
    p_value = deleted_p_value(relative, _tangent(surface, params, tokens), others, index)
    return Outlier(index, float(relative[index]), p_value)


def _tangent(surface: Surface, params: Array, tokens: Array) -> Array:
    """Derivatives of the surface by its five parameters, relative to the surface: [n, 5]."""
    n, d = surface.a * params**-surface.alpha, surface.b * tokens**-surface.beta
    columns = [np.ones_like(n), n, n * np.log(params), d, d * np.log(tokens)]
    return np.stack(columns, -1) / surface(params, tokens)[:, None]


def surface_bend(params: Array, tokens: Array, y: Array, surface: Surface) -> float:
    """p-value of an F-test for additional terms in (log N)^2 and (log D)^2. Returns 1 for fewer than ten runs."""
    if len(y) < 10:
        return 1.0
    target = y / surface(params, tokens) - 1
    base = _tangent(surface, params, tokens)
    curves = [np.log(v / np.exp(np.log(v).mean())) ** 2 for v in (params, tokens)]
    return added_terms_p_value(target, base, np.column_stack([base, *curves]))


def surface_inversions(params: Array, tokens: Array, y: Array) -> list[tuple[int, int]]:
    """Pairs (better, worse) where more parameters on more tokens are worse, largest first.

    A rise counts if it exceeds two standard errors of the noise of all other runs, so that a pair cannot hide in a
    noise estimate that it inflates. Each worse run is named once, with the better run that exposes it most.
    """
    larger = (params[None] >= params[:, None]) & (tokens[None] >= tokens[:, None])
    rise = np.where(larger, np.log(y)[None] - np.log(y)[:, None], 0.0)
    found = []
    for worse in np.argsort(-rise.max(0)):
        better = int(np.argmax(rise[:, worse]))
        if rise[better, worse] <= 2 * np.sqrt(2) * NOISE:
            break
        others = np.setdiff1d(np.arange(len(y)), [better, worse])
        if rise[better, worse] > 2 * np.sqrt(2) * max(_noise_of_fit(params[others], tokens[others], y[others]), NOISE):
            found.append((better, int(worse)))
    return found


def _noise_of_fit(params: Array, tokens: Array, y: Array) -> float:
    try:
        return _noise(fit_surface(params, tokens, y), params, tokens, y)
    except DataError:  # too few runs to judge
        return np.inf


def _noise(surface: Surface, params: Array, tokens: Array, y: Array) -> float:
    """Relative RMS of the residuals, with n - 5 degrees of freedom."""
    relative = y / surface(params, tokens) - 1
    return float(np.sqrt((relative**2).sum() / max(len(y) - 5, 1)))

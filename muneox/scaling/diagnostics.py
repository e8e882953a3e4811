"""Checks that a ladder scales as the law assumes: outliers, divergence, inversions, bending and curve collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtrc, stdtr

from megatron.errors import DataError
from muneox.scaling.power_law import EXPONENTS, PowerLawFit, checked, fit_power_law
from muneox.scaling.prior import Array
from muneox.scaling.separable import project

SIGNIFICANCE = 0.01
NOISE = 5e-4  # relative; smaller deviations never count against a run
DIVERGED = 0.10  # relative excess over the law of the other runs
MOST_PAIRS = 40  # with more runs than this, outliers are searched one by one and not in pairs


@dataclass(frozen=True)
class Outlier:
    """A run that deviates from the law of the other runs. excess: loss / law - 1."""

    index: int
    excess: float
    p_value: float

    @property
    def diverged(self) -> bool:
        return self.excess > DIVERGED


def find_outliers(x: ArrayLike, y: ArrayLike) -> list[Outlier]:
    """Runs whose deleted residual is significant at 1 % after Bonferroni's correction, worst first.

    Each run is compared with the law fitted to the others, given their scatter and the run's leverage. Pairs are tested
    too, because two outliers can hide each other. Returns an empty list for fewer than six runs.
    """
    size, loss = checked(x, y)
    left, found = np.arange(len(size)), []
    while len(left) >= 6:
        step = _worst(size[left], loss[left], 1)
        if not step and len(left) <= MOST_PAIRS and len(left) >= 7:
            step = _worst(size[left], loss[left], 2)
        if not step:
            break
        found += [Outlier(int(left[o.index]), o.excess, o.p_value) for o in step]
        left = np.delete(left, [o.index for o in step])
    return sorted(found, key=lambda o: -abs(o.excess))


def _worst(x: Array, y: Array, count: int) -> list[Outlier]:
    """The `count` runs whose removal improves the fit most, if each is significant; else an empty list."""
    sets = list(combinations(range(len(x)), count))
    weights = np.ones((len(sets), len(x)))
    for index, members in enumerate(sets):
        weights[index, list(members)] = 0
    ratio = x / np.exp(np.log(x).mean())
    theta = EXPONENTS.grid(120)
    power = ratio[None] ** -theta
    columns = np.stack([np.ones_like(power), power], -1)
    coefficients, rss = project(columns, y, weights)
    row, cell = divmod(int(np.argmin(rss)), rss.shape[1])
    chosen = list(sets[row])
    floor, height = coefficients[row, cell]
    z = columns[cell, :, 1]
    fit = floor + height * z
    tangent = np.stack([np.ones_like(z), z, z * np.log(ratio)], -1) / fit[:, None]
    keep = weights[row] > 0
    outliers = []
    for index in chosen:
        p = min(deleted_p_value(y / fit - 1, tangent, keep, index) * len(sets), 1.0)
        if p >= SIGNIFICANCE:
            return []
        outliers.append(Outlier(index, float(y[index] / fit[index] - 1), p))
    return outliers


def deleted_p_value(relative: Array, tangent: Array, keep: NDArray[np.bool_], index: int) -> float:
    """p-value of a t-test of run `index` against the fit of the runs `keep`, given their scatter and its leverage.

    relative: [n], residuals of that fit. tangent: [n, k], derivatives of the fit by its parameters.
    """
    freedom = max(int(keep.sum()) - tangent.shape[1], 1)
    spread = ((relative[keep] ** 2).sum() + NOISE**2) / (freedom + 1)
    cover = np.linalg.pinv(tangent[keep].T @ tangent[keep])
    t = abs(relative[index]) / np.sqrt(spread * (1 + tangent[index] @ cover @ tangent[index]))
    return float(2 * stdtr(freedom, -t))


def inversions(x: ArrayLike, y: ArrayLike) -> list[tuple[float, float]]:
    """Pairs of neighbouring sizes (smaller, larger) where the larger is worse by more than two standard errors.

    The noise of one run is the scatter of the other sizes around their law, so that a pair cannot hide in a noise that
    it inflates; with fewer than four other sizes, it is the scatter of all. Runs of the same size are averaged.
    """
    size, loss = checked(x, y)
    sizes = np.unique(size)
    mean = np.array([loss[size == s].mean() for s in sizes])
    found = []
    for i in np.flatnonzero(np.diff(mean) > 0):
        pair = np.isin(size, sizes[i : i + 2])
        others = ~pair if len(sizes) >= 6 else np.ones_like(pair)
        try:
            noise = fit_power_law(size[others], loss[others]).rms
        except DataError:  # the others alone do not fall
            noise = fit_power_law(size, loss).rms
        error = max(noise, NOISE) * mean[i + 1] * np.sqrt(sum(1 / (size == s).sum() for s in sizes[i : i + 2]))
        if mean[i + 1] - mean[i] > 2 * error:
            found.append((float(sizes[i]), float(sizes[i + 1])))
    return found


def bend(x: ArrayLike, y: ArrayLike, fit: PowerLawFit) -> float:
    """p-value of an F-test for additional terms in (log x)^2 and, from eight sizes on, (log x)^3.

    A small value means that the residuals bend: the law has another form, or changes within the ladder. Returns 1 for
    fewer than six runs or five sizes.
    """
    size, loss = checked(x, y)
    if len(size) < 6 or len(np.unique(size)) < 5:
        return 1.0
    log = np.log(size) - np.log(size).mean()
    power = np.exp(fit.law.b * log)
    base = np.stack([np.ones_like(log), power, power * log], -1) / loss[:, None]
    powers = (2, 3) if len(np.unique(size)) >= 8 else (2,)
    full = np.column_stack([base, *(log**power / loss for power in powers)])
    target = 1 - fit.law(size) / loss
    return added_terms_p_value(target, base, full)


def added_terms_p_value(target: Array, base: Array, full: Array) -> float:
    """p-value of an F-test of the columns that `full` [n, k + q] adds to `base` [n, k]. target: [n]."""
    before, after = (float(((target - m @ np.linalg.lstsq(m, target, rcond=None)[0]) ** 2).sum()) for m in (base, full))
    added, freedom = full.shape[1] - base.shape[1], len(target) - full.shape[1]
    noise = (after + NOISE**2) / (freedom + 1)
    return float(fdtrc(added, freedom, max(before - after, 0) / added / noise))


def not_collapsing(
    x: ArrayLike, curves: Sequence[tuple[NDArray[np.int64], Array]], floor: float, tolerance: float = 0.03
) -> list[int]:
    """Indices of runs whose normalised curve does not collapse onto the others.

    Curves are normalised as (L(t) - c) / (L(T) - c) against t/T (Qiu et al., arXiv:2507.02119). At each time the
    deviation is measured from a line in log x, which allows a slow trend. A run is returned if its deviation exceeds
    both `tolerance` of the reducible loss and five median deviations for more than a tenth of the second half.
    floor: c. Returns an empty list for fewer than five curves.
    """
    if len(curves) < 5:
        return []
    times = np.linspace(0.5, 1.0, 41)[:-1]
    rows = []
    for steps, values in curves:
        end = values[-1] - floor
        rows.append((np.interp(times, steps / steps[-1], values) - floor) / end)
    height, log = np.array(rows), np.log(np.asarray(x, np.float64))
    first, second = np.triu_indices(len(log), 1)
    first, second = first[log[first] != log[second]], second[log[first] != log[second]]
    # A Theil-Sen line at each time.
    slope = np.median((height[second] - height[first]) / (log[second] - log[first])[:, None], axis=0)
    deviation = height - np.median(height, axis=0) - slope * (log - np.median(log))[:, None]
    scale = np.maximum(1.4826 * np.median(np.abs(deviation), axis=0), 1e-4)
    far = (np.abs(deviation) > tolerance) & (np.abs(deviation) > 5 * scale)
    return [int(i) for i in np.flatnonzero(far.mean(1) > 0.1)]


def describe_ladder(x: ArrayLike, y: ArrayLike, names: Sequence[str]) -> tuple[list[Outlier], list[str]]:
    """The outliers, and all warnings about the final losses as text."""
    size, loss = checked(x, y)
    outliers = find_outliers(size, loss)
    warnings = []
    for outlier in outliers:
        kind = "seems to have diverged" if outlier.diverged else "is an outlier"
        away = f"{outlier.excess:+.1%} from the law of the others (p = {outlier.p_value:.1g})"
        warnings.append(f"{names[outlier.index]} {kind}: {away}")
    keep = np.setdiff1d(np.arange(len(size)), [o.index for o in outliers])
    fit = fit_power_law(size[keep], loss[keep])
    for small, large in inversions(size[keep], loss[keep]):
        warnings.append(f"broken scaling: size {large:g} is worse than size {small:g}")
    if (p := bend(size[keep], loss[keep], fit)) < SIGNIFICANCE:
        warnings.append(f"the residuals bend (p = {p:.1g}): one power law does not hold over the whole ladder")
    return outliers, warnings

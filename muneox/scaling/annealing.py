"""The annealing law predicts a run's loss curve from its learning-rate schedule: L(s) = L0 + A S1^-alpha - C S2.

Tissue et al., arXiv:2408.11029, eq. 1: S1(s) is the sum of the learning rate up to step s and S2(s) the sum of the
momentum m_i = lambda m_(i-1) + (lr_(i-1) - lr_i). The law is linear in L0, A and C once alpha and lambda are fixed.
Both sums include the warm-up. The learning rate is in units of its peak.

If the rate never falls, S2 is constant after about 1/(1 - lambda) steps and acts as a second L0. Such curves do not
determine C and lambda. The fit then uses L0 + A S1^-alpha, and this law rejects a schedule whose rate falls. Start such
curves about a thousand steps after the warm-up: until then the warm-up still changes S2, and the fit would attribute
that change to A S1^-alpha.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron.errors import DataError
from muneox.scaling.prior import Array, Exponents, Prior
from muneox.scaling.separable import Design, Draws, best_exponents, residuals, sample_posterior

# alpha, and one minus lambda (0.99 to 0.9999).
EXPONENTS = Exponents(low=(0.05, 1e-4), high=(2.0, 2e-2), cells=40, median=(0.4, 1.5e-3), log_sd=(0.5, 1.0))
CONSTANT = Exponents(low=(0.05,), high=(2.0,), cells=72, median=(0.4,), log_sd=(0.5,))  # alpha alone
FALLEN = 0.99  # a rate below this fraction of the highest earlier rate has fallen
INDEPENDENT = 24  # points per curve that the interval counts as independent; neighbouring points are correlated


@dataclass(frozen=True)
class Curve:
    """A loss curve and its learning-rate schedule.

    steps: int64[n] >= 1, increasing. loss: float64[n]. rates: float64[T], the learning rate of each step 1..T. Raises
    DataError if the lengths do not match, or if a value is out of range.
    """

    steps: NDArray[np.int64]
    loss: Array
    rates: Array

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.loss) or not len(self.steps):
            raise DataError(f"the loss curve has {len(self.steps)} steps but {len(self.loss)} losses")
        if self.steps.min() < 1 or self.steps.max() > len(self.rates):
            raise DataError(
                f"the loss curve has steps {self.steps.min()} to {self.steps.max()}; "
                f"expected steps 1 to {len(self.rates)} of the schedule"
            )
        if not np.isfinite(self.loss).all() or (self.loss <= 0).any():
            raise DataError("the loss curve has values that are not positive and finite")
        if not np.isfinite(self.rates).all() or (self.rates < 0).any() or self.rates.max() <= 0:
            raise DataError("the schedule has learning rates that are negative, not finite, or all zero")

    @property
    def fallen(self) -> NDArray[np.bool_]:
        """Whether the rate has fallen by each step of the curve: bool[n]."""
        return fallen(self.rates)[self.steps - 1]

    def part(self, index: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Curve:
        return Curve(self.steps[index], self.loss[index], self.rates)


def fallen(rates: Array) -> NDArray[np.bool_]:
    """Whether the rate is below its highest so far: bool[T]."""
    return np.asarray(rates < FALLEN * np.maximum.accumulate(rates))


def schedule(steps: ArrayLike, rates: ArrayLike, length: int, warmup: int = 0) -> Array:
    """The learning rate of each step, float64[length], interpolated linearly between logged steps.

    The rate is constant before the first and after the last logged step, apart from a linear warm-up over the first
    `warmup` steps.
    """
    step = np.arange(1, length + 1)
    rate = np.interp(step, np.asarray(steps, np.float64), np.asarray(rates, np.float64))
    return rate * np.minimum(1, step / warmup) if warmup else rate


def areas(rates: Array, steps: NDArray[np.int64], decay: Array) -> tuple[Array, Array]:
    """S1 [n] and S2 [g, n] at steps [n], in units of the peak rate. decay: 1 - lambda, [g]."""
    from scipy.signal import lfilter  # importing it takes a second, which forecasts of sizes do not need

    rate = rates / rates.max()
    drop = -np.diff(rate, prepend=0.0)
    second = [np.cumsum(lfilter([1.0], [1.0, value - 1.0], drop))[steps - 1] for value in decay]
    return np.cumsum(rate)[steps - 1], np.array(second)


@dataclass(frozen=True)
class AnnealingLaw:
    """A fitted annealing law.

    floor: L0. height: A, at S1 = 1. gain: C, per unit of S2. momentum: lambda. gain and momentum are None if no fitted
    rate has fallen.
    """

    floor: float
    height: float
    alpha: float
    gain: float | None
    momentum: float | None

    def __call__(self, rates: Array, steps: NDArray[np.int64]) -> Array:
        """Loss at steps [m]. Raises DataError if the rate falls and C is unknown."""
        if self.gain is None or self.momentum is None:
            _require_constant(rates, steps)
            return np.asarray(self.floor + self.height * areas(rates, steps, np.zeros(0))[0] ** -self.alpha)
        first, second = areas(rates, steps, np.array([1 - self.momentum]))
        return np.asarray(self.floor + self.height * first**-self.alpha - self.gain * second[0])


def _require_constant(rates: Array, steps: NDArray[np.int64]) -> None:
    if fallen(rates)[: steps.max()].any():
        raise DataError(
            "the learning rate of the fitted curves does not fall, or hardly, so they do not determine the gain from "
            "annealing; fit a curve whose rate falls, or a longer part of it"
        )


@dataclass(frozen=True)
class AnnealingPosterior:
    """Posterior draws of the law. departure: the law's relative error on an unseen schedule or on later steps."""

    draws: Draws
    scale: tuple[float, float]
    departure: float
    seed: int

    @property
    def annealed(self) -> bool:
        """Whether C and 1 - lambda are among the draws."""
        return bool(self.draws.theta.shape[-1] == 2)

    def observe(self, rates: Array, steps: NDArray[np.int64]) -> Array:
        """Draws of the loss at steps [m]: [s, m]. Raises DataError if the rate falls and C is unknown."""
        if not self.annealed:
            _require_constant(rates, steps)
        rng = np.random.default_rng(self.seed + 1)
        loss = self.draws.observe(_design([(rates, steps)], self.scale), None, rng)
        return loss * (1 + self.departure * rng.standard_normal(len(loss)))[:, None]


def fit_annealing(curves: Sequence[Curve]) -> AnnealingLaw:
    """Fit the law by least squares in relative residuals. Every curve has the same weight, whatever its length."""
    design, loss, variance, scale, exponents = _prepare(curves)
    theta = best_exponents(design, loss, 1 / variance, exponents, cells=20)
    (floor, height, *gain), _ = residuals(design(theta[None])[0], loss, 1 / variance)
    alpha = float(theta[0])
    annealing = (float(gain[0] / scale[1]), 1 - float(theta[1])) if gain else (None, None)
    return AnnealingLaw(float(floor), float(height * scale[0] ** alpha), alpha, *annealing)


def sample_annealing(
    curves: Sequence[Curve], *, prior: Prior | None = None, draws: int = 2000, seed: int = 0
) -> AnnealingPosterior:
    """Sample the posterior of the law. At most INDEPENDENT evenly spaced points of each curve are used."""
    kept = tuple(_thinned(curve) for curve in curves)
    design, loss, variance, scale, exponents = _prepare(kept)
    found = sample_posterior(design, loss, exponents, prior=prior, variance=variance, draws=draws, seed=seed)
    return AnnealingPosterior(found, scale, max((prior or Prior()).tau, unseen_error(kept)), seed)


def unseen_error(curves: Sequence[Curve]) -> float:
    """RMS relative error of the law on the points that `held_out` leaves out."""
    errors = [
        np.mean((fit_annealing(kept)(left.rates, left.steps) / left.loss - 1) ** 2) for kept, left in held_out(curves)
    ]
    return float(np.sqrt(np.mean(errors)))


def held_out(curves: Sequence[Curve]) -> list[tuple[list[Curve], Curve]]:
    """Pairs of (curves to fit, curve to predict), one per curve.

    A single curve, or the only curve whose rate falls, is split. The fit keeps its first two thirds, and in any case
    the first half of its decay, without which it could not determine C.
    """
    parts = []
    for i, curve in enumerate(curves):
        others = [*curves[:i], *curves[i + 1 :]]
        if not others or (curve.fallen.any() and not _annealed(others)):
            count = len(curve.steps)
            decay = int(np.argmax(curve.fallen)) if curve.fallen.any() else 0
            cut = max(count * 2 // 3, (decay + count) // 2 if decay else 0)
            others, curve = [*others, curve.part(slice(cut))], curve.part(slice(cut, None))
        parts.append((others, curve))
    return parts


def _annealed(curves: Iterable[Curve]) -> bool:
    return any(bool(curve.fallen.any()) for curve in curves)


def _thinned(curve: Curve) -> Curve:
    return curve.part(
        np.unique(np.linspace(0, len(curve.steps) - 1, min(INDEPENDENT, len(curve.steps))).round().astype(int))
    )


def _prepare(curves: Sequence[Curve]) -> tuple[Design, Array, Array, tuple[float, float], Exponents]:
    if sum(len(curve.steps) for curve in curves) < 8:
        raise DataError("the loss curves have fewer than 8 points in total; the annealing law has five parameters")
    loss = np.concatenate([curve.loss for curve in curves])
    variance = np.concatenate([np.full(len(curve.steps), float(len(curve.steps))) for curve in curves])
    firsts = np.concatenate([areas(curve.rates, curve.steps, np.zeros(0))[0] for curve in curves])
    scale = float(np.exp(np.log(firsts).mean())), float(np.median(firsts)) / 100
    design = _design([(curve.rates, curve.steps) for curve in curves], scale)
    exponents = EXPONENTS if _annealed(curves) else CONSTANT
    return design, loss, variance / variance.mean(), scale, exponents


def _design(parts: Sequence[tuple[Array, NDArray[np.int64]]], scale: tuple[float, float]) -> Design:
    """Map theta [g, 2] to the columns 1, (S1/scale)^-alpha and -S2/scale over the steps of all parts: [g, n, 3].

    For theta [g, 1] the result has only the first two columns.
    """

    def columns(theta: Array) -> Array:
        decays, which = np.unique(theta[:, 1:], return_inverse=True)
        pairs = [areas(rates, steps, decays) for rates, steps in parts]
        power = np.exp(-theta[:, :1] * np.log(np.concatenate([pair[0] for pair in pairs]) / scale[0]))
        found = [np.ones_like(power), power]
        if len(decays):
            found.append(-np.concatenate([pair[1] for pair in pairs], -1)[which.ravel()] / scale[1])
        return np.stack(found, -1)

    return columns

"""Forecasts from loss curves: the end of a run from its beginning, or the loss of a new schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron.errors import ConfigError, DataError
from muneox.runs import Run, Smoothing, smooth
from muneox.scaling.annealing import AnnealingPosterior, Curve, fit_annealing, held_out, sample_annealing, schedule
from muneox.scaling.backtest import HeldOutRun
from muneox.scaling.forecast import BAND, Forecast, Target
from muneox.scaling.ladder import Point
from muneox.scaling.uncertainty import LEVEL, Band, Interval, Trace, band, interval

RATES = ("lr", "learning_rate", "train/lr", "train/learning_rate", "learning-rate")
MOST_BACKTESTS = 5


@dataclass(frozen=True)
class CurveOptions:
    """How to read a loss curve from a run.

    metric: name of the loss. rate: name of the learning-rate series; None searches the usual names. warmup: steps of
    linear warm-up that the logged rate does not include. until: the last step to fit. smoothing: see Smoothing.parse.
    """

    metric: str
    rate: str | None = None
    warmup: int = 0
    until: int | None = None
    smoothing: str = "none"


def curve_of(run: Run, options: CurveOptions) -> Curve:
    """The run's loss curve with its schedule, one rate per step. Raises DataError if a series is missing."""
    rates = planned(run, options)
    series = smooth(run.series_of(options.metric), Smoothing.parse(options.smoothing))
    keep = (series.steps >= 1) & (series.steps <= (options.until or series.steps[-1]))
    if not keep.any():
        raise DataError(f"run {run.name} has no `{options.metric}` up to step {options.until}")
    if series.steps[-1] > len(rates):
        rates = np.append(rates, np.full(series.steps[-1] - len(rates), rates[-1]))
    return Curve(series.steps[keep], series.values[keep], rates)


def planned(run: Run, options: CurveOptions) -> np.ndarray:
    """The learning rate of each step, up to the last logged one. Raises DataError if the run has no such series."""
    names = [options.rate] if options.rate else [name for name in RATES if name in run.series]
    if not names:
        raise DataError(f"run {run.name} ({run.source}) has no learning-rate series; name it with --rate")
    series = run.series_of(names[0])
    return schedule(series.steps, series.values, int(series.steps[-1]), options.warmup)


def forecast_curves(
    runs: Sequence[Run],
    schedules: Sequence[Run],
    options: CurveOptions,
    *,
    steps: Sequence[float] = (),
    level: float = LEVEL,
) -> Forecast:
    """Fit the annealing law (Tissue et al.) to the runs' curves and predict the loss on each schedule.

    steps: the steps to predict, by default the last of each schedule. schedules: runs or tables with a learning-rate
    series; they need no loss. Without schedules, the runs' own are used, so `until` predicts the end of each run from
    its beginning. Raises ConfigError for a step outside the schedule or inside the data, DataError for unusable curves.
    """
    curves = [curve_of(run, options) for run in runs]
    posterior = sample_annealing(curves)
    targets, extra, bands = [], [], []
    reach = max(int(curve.steps[-1]) for curve in curves)
    start = min(curve.steps[0] for curve in curves)
    for run in schedules or runs:
        rates = planned(run, options)
        wanted = np.array([int(s) for s in steps] or [len(rates)], np.int64)
        if wanted.max() > len(rates):
            raise ConfigError(f"step {wanted.max()} is beyond the schedule of {run.name}, which has {len(rates)} steps")
        if not schedules and wanted.min() <= reach:
            raise ConfigError(
                f"step {wanted.min()} is inside the data, which end at step {reach}; hold out steps with --until"
            )
        known = run.series.get(options.metric)
        for step, draws in zip(wanted, posterior.observe(rates, wanted).T):
            actual = None
            if known is not None and step in known.steps:
                actual = float(known.values[np.searchsorted(known.steps, step)])
            targets.append(Target(float(step), interval(draws, level), float(step / reach), actual=actual))
            extra.append(run.name)
        bands.append(_band(posterior, run.name, rates, int(start), int(wanted.max()), level))
    law = fit_annealing(curves)
    used = tuple(Point(r.name, float(c.steps[-1]), float(c.loss[-1]), r.source) for r, c in zip(runs, curves))
    traces = tuple(
        Trace(r.name, c.steps.astype(np.float64), c.loss, law(c.rates, c.steps)) for r, c in zip(runs, curves)
    )
    residual = np.concatenate([trace.fit / trace.y - 1 for trace in traces])
    return Forecast(
        "annealing", "L(s) = L0 + A S1^-alpha - C S2", "step", options.metric, tuple(targets),
        _parameters(posterior, level),
        (float(np.sqrt(np.mean(residual**2))), "residuals of the fit"), tuple(_backtest(curves, level)), used, (), (),
        prior=f"departure on an unseen schedule {posterior.departure:.2%}", extra={"schedules": extra},
        bands=tuple(bands), traces=traces,
    )  # fmt: skip


def _band(posterior: AnnealingPosterior, name: str, rates: np.ndarray, first: int, last: int, level: float) -> Band:
    """The band from the first fitted step to the last predicted one, unsmoothed to keep the kinks of the schedule."""
    steps = np.unique(np.linspace(min(first, last), last, 2 * BAND).round().astype(np.int64))
    return band(name, steps, posterior.observe(rates, steps), level, smooth=False)


def _parameters(posterior: AnnealingPosterior, level: float) -> dict[str, Interval]:
    """Intervals of the parameters, without C and lambda if the curves do not determine them."""
    draws = posterior.draws
    alpha = draws.theta[:, 0]
    found = {
        "L0": draws.coefficients[:, 0],
        "A": draws.coefficients[:, 1] * posterior.scale[0] ** alpha,
        "alpha": alpha,
    }
    if posterior.annealed:
        found |= {"C": draws.coefficients[:, 2] / posterior.scale[1], "lambda": 1 - draws.theta[:, 1]}
    return {name: interval(values, level) for name, values in found.items()}


def _backtest(curves: Sequence[Curve], level: float) -> list[HeldOutRun]:
    """Predict the end of each held-out curve. Curves that the others cannot predict are skipped."""
    results = []
    for kept, left in held_out(curves)[:MOST_BACKTESTS]:
        try:
            draws = sample_annealing(kept, draws=1000).observe(left.rates, left.steps[-1:])[:, 0]
        except DataError:
            continue
        reach = max(int(curve.steps[-1]) for curve in kept)
        end = int(left.steps[-1])
        results.append(HeldOutRun(len(kept), float(end), float(left.loss[-1]), interval(draws, level), end / reach))
    return results

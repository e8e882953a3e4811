"""Compute-optimal sizes and losses from an isoFLOP sweep, as a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from muneox.scaling.backtest import backtest
from muneox.scaling.compute import PRIOR
from muneox.scaling.forecast import BAND, Forecast, Target, columns, far_targets
from muneox.scaling.isoflop import EXPONENT, EXPONENT_SD, Budget, Optima, sample_optima, split_budgets
from muneox.scaling.ladder import Point
from muneox.scaling.power_law import PowerLawPosterior, sample_power_law
from muneox.scaling.prior import Array
from muneox.scaling.uncertainty import LEVEL, Trace, band, interval

FORMULA = "N*(C) = k C^p, from a parabola in log N per budget; L*(C) = a C^b + c"
FEWEST_BUDGETS = 3  # of L*(C), which has three parameters


def forecast_isoflop(
    points: Sequence[Point],
    budgets: Sequence[float] = (),
    *,
    level: float = LEVEL,
    y_name: str = "loss",
    perplexity: bool = False,
) -> Forecast:
    """Find the compute-optimal N*, D* and loss of each budget of the sweep, and predict those of larger `budgets`.

    points: runs with x = N and tokens. budgets: FLOPs to predict. The loss needs three budgets with a minimum inside
    their sizes; with fewer, only N* and D* are predicted, with wide intervals. Raises DataError if the runs form no
    budgets, or if no budget has a minimum.
    """
    found = split_budgets(*columns(points))
    usable = [budget for budget in found if not budget.problem]
    optima = sample_optima(found)
    loss = np.median(optima.loss, axis=0)
    law = _law(optima, loss)
    warnings = _warnings(found, optima, law)
    parameters = {"p": interval(optima.exponent, level)}
    targets: tuple[Target, ...] = ()
    bands, traces, held_out = [], [], []
    if law is not None:
        parameters |= {name: interval(getattr(law, name), level) for name in "abc"}
        if budgets:
            reach = [float(c / optima.flops.max()) for c in budgets]
            losses = [interval(draws, level) for draws in law.observe(budgets).T]
            targets = tuple(Target(*of_one) for of_one in zip(map(float, budgets), losses, reach))
        line = np.geomspace(optima.flops.min(), max([optima.flops.max(), *budgets]), BAND)
        bands = [band("", line, law.observe(line), level)]
        traces = [Trace("minima of the budgets", optima.flops, loss, np.median(law.law(optima.flops), axis=0))]
        held_out = backtest(optima.flops, loss, level=level, prior=PRIOR)
    used = [
        Point(f"{int(b.near.sum())} runs at {b.flops:.3g} FLOPs", b.flops, float(value), points[0].source)
        for b, value in zip(usable, loss)
    ]
    extra = {
        "compute_optimal": [_optimum(c, optima, law, level) for c in budgets],
        "isoflop": _sweep(found, usable, optima, level),
    }
    return Forecast(
        "isoflop", FORMULA, "flops", y_name, targets, parameters,
        (float(np.median(optima.noise)), "residuals of the parabolas"), tuple(held_out), tuple(used), (),
        (*warnings, *far_targets(targets)), perplexity, f"p normal with mean {EXPONENT} and standard deviation "
        f"{EXPONENT_SD}; for L*, {PRIOR}", extra, tuple(bands), tuple(traces),
    )  # fmt: skip


def _law(optima: Optima, loss: Array) -> PowerLawPosterior | None:
    if len(loss) < FEWEST_BUDGETS:
        return None
    spread = np.log(optima.loss).var(axis=0)
    return sample_power_law(optima.flops, loss, variance=spread / spread.mean(), prior=PRIOR)


def _optimum(flops: float, optima: Optima, law: PowerLawPosterior | None, level: float) -> dict[str, Any]:
    params = optima.optimal_params(flops)[:, 0]
    parts = {"params": params, "tokens": flops / 6 / params}
    if law is not None:
        parts["loss"] = law.law([flops])[:, 0]
    found: dict[str, Any] = {name: interval(part, level).as_json() for name, part in parts.items()}
    return {"flops": flops} | found


def _sweep(found: Sequence[Budget], usable: Sequence[Budget], optima: Optima, level: float) -> list[dict[str, Any]]:
    """The runs, parabola and optimum of each budget, for the JSON file and the figure."""
    places = {id(budget): i for i, budget in enumerate(usable)}
    rows = []
    for budget in found:
        row: dict[str, Any] = {
            "flops": budget.flops, "params": budget.params.tolist(), "loss": budget.loss.tolist(),
            "on_parabola": budget.near.tolist(), "problem": budget.problem,
        }  # fmt: skip
        if (place := places.get(id(budget))) is not None:
            params, loss = optima.params[:, place], optima.loss[:, place]
            parts = {"params": params, "tokens": budget.flops / 6 / params, "loss": loss}
            row["optimum"] = {name: interval(part, level).as_json() for name, part in parts.items()}
            fitted = budget.params[budget.near]
            line = np.geomspace(fitted[0], fitted[-1], 40)
            row["parabola"] = {"params": line.tolist(), "loss": budget(line).tolist()}
        rows.append(row)
    return rows


def _warnings(found: Sequence[Budget], optima: Optima, law: PowerLawPosterior | None) -> list[str]:
    warnings = [f"the budget {b.flops:.3g} FLOPs is left out: {b.problem}" for b in found if b.problem]
    if law is None:
        few = f"the loss L*(C) needs {FEWEST_BUDGETS} budgets with a minimum, found {len(optima.flops)}"
        warnings.append(f"{few}: only N* and D* are predicted")
    if len(optima.flops) == 1:
        warnings.append("one budget does not determine the exponent p, which has only its prior")
    compared = sum(len(b.params) for b in found)
    if (dropped := sum(b.runs for b in found) - compared) > 0:
        rng, each = np.random.default_rng(0), 1 + dropped / compared
        bias = float(np.median(optima.noise) * rng.standard_normal((4000, round(each) + 1)).max(1).mean())
        warnings.append(
            f"{dropped} runs are not the best of their size and budget and are left out: the best of several runs is "
            f"lower than their mean, by up to {bias:.2%} from noise alone"
        )
    return warnings

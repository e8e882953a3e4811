"""Forecasts with intervals and a backtest. A forecast can be saved (registered) and checked later."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy

import megatron
from megatron.errors import ConfigError, DataError
from megatron.files import read_json
from muneox.output import short, write_atomically
from muneox.scaling.backtest import HeldOutRun, backtest, coverage, mean_error
from muneox.scaling.diagnostics import describe_ladder, not_collapsing
from muneox.scaling.ladder import Point
from muneox.scaling.power_law import PowerLawPosterior, sample_power_law
from muneox.scaling.separable import Array, NoisePrior
from muneox.scaling.surface import sample_surface
from muneox.scaling.uncertainty import LEVEL, Band, Interval, Trace, band, interval, noise_floor, seed_variance

FEWEST_SIZES = 4
FORMAT = 1
BAND = 80  # points along a band
FAR = 10.0  # a target further beyond the data than this factor gets a warning
PRIOR = (
    "exponents log-normal with median 0.33 and 90 % in 0.14 to 0.75; coefficients flat over positive values; noise of "
    "one run scaled inverse chi-squared with scale {sigma:.2%}"
)

DEPARTURE = (
    "; predictions allow for a smooth departure from the law, half-Cauchy with scale {tau:.2%}; the intervals of "
    "a, b and c assume an exact law"
)


@dataclass(frozen=True)
class Target:
    """A prediction at x.

    extrapolation: x divided by the largest fitted x; for L(N, D) the ratio of N D. tokens: only for L(N, D).
    actual: the observed loss, if known.
    """

    x: float
    predicted: Interval
    extrapolation: float
    tokens: float | None = None
    actual: float | None = None

    def as_json(self, perplexity: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "x": self.x, "prediction": self.predicted.value, "low": self.predicted.low, "high": self.predicted.high,
            "level": self.predicted.level, "extrapolation": self.extrapolation,
        }  # fmt: skip
        if self.tokens is not None:
            found["tokens"] = self.tokens
        if self.actual is not None:
            error = self.predicted.value / self.actual - 1
            found |= {"actual": self.actual, "relative_error": error, "inside": self.actual in self.predicted}
        if perplexity:
            found["perplexity"] = {key: math.exp(found[key]) for key in ("prediction", "low", "high")}
        return found


@dataclass(frozen=True)
class Forecast:
    """The result of predict_loss.py. law: size, compute, surface or annealing."""

    law: str
    formula: str
    x_name: str
    y_name: str
    targets: tuple[Target, ...]
    parameters: dict[str, Interval]
    noise: tuple[float, str]
    held_out: tuple[HeldOutRun, ...]
    used: tuple[Point, ...]
    left_out: tuple[tuple[Point, str], ...]
    warnings: tuple[str, ...]
    perplexity: bool = False
    prior: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    bands: tuple[Band, ...] = ()  # intervals of a new run, along x up to the targets
    traces: tuple[Trace, ...] = ()  # for the picture; not in the JSON

    def as_json(self) -> dict[str, Any]:
        """The forecast as JSON: `targets`, `parameters`, `backtest`, `points`, `bands`, `warnings` and `prior`."""
        worst = max((h.extrapolation for h in self.held_out), default=None)
        return {
            "format": FORMAT,
            "law": self.law, "formula": self.formula, "x": self.x_name, "y": self.y_name,
            "targets": [target.as_json(self.perplexity) for target in self.targets],
            "parameters": {name: found.as_json() for name, found in self.parameters.items()},
            "noise": {"relative": self.noise[0], "from": self.noise[1]},
            "backtest": {
                "mean_absolute_relative_error": None if not self.held_out else mean_error(self.held_out),
                "coverage": None if not self.held_out else coverage(self.held_out),
                "largest_extrapolation": worst,
                "held_out": [_held_out_json(h) for h in self.held_out],
            },
            "points": {
                "used": [_point_json(point) for point in self.used],
                "left_out": [_point_json(point) | {"reason": reason} for point, reason in self.left_out],
            },
            "bands": [found.as_json() for found in self.bands],
            "warnings": list(self.warnings),
            "prior": self.prior,
            **self.extra,
        }  # fmt: skip


def _held_out_json(run: HeldOutRun) -> dict[str, Any]:
    return {
        "fitted_sizes": run.sizes, "x": run.x, "actual": run.actual, "prediction": run.predicted.value,
        "low": run.predicted.low, "high": run.predicted.high, "level": run.predicted.level,
        "relative_error": run.error, "inside": run.inside,
        "extrapolation": run.extrapolation,
    }  # fmt: skip


def _point_json(point: Point) -> dict[str, Any]:
    value = point.y if math.isfinite(point.y) else str(point.y)
    found = {"name": point.name, "x": point.x, "y": value, "source": point.source}
    return found if point.tokens is None else found | {"tokens": point.tokens}


def forecast_size(
    points: Sequence[Point],
    targets: Sequence[float],
    *,
    fit_below: float | None = None,
    drop_flagged: bool = False,
    level: float = LEVEL,
    prior: NoisePrior | None = None,
    law: str = "size",
    names: tuple[str, str] = ("x", "loss"),
    perplexity: bool = False,
) -> Forecast:
    """Fit L(x) = a x^b + c to the points and predict the targets.

    fit_below: fit only points with x up to this. A target is compared with the held-out points at the same x.
    drop_flagged: leave out runs flagged as outliers instead of only warning about them. Raises DataError for fewer than
    four sizes and ConfigError for a target that is not beyond the fitted points.
    """
    prior = prior or NoisePrior()
    fitted, left_out = _split(points, fit_below)
    if (count := len({p.x for p in fitted})) < FEWEST_SIZES:
        raise DataError(f"{count} different sizes of {names[0]}; a forecast needs at least {FEWEST_SIZES}")
    outliers, warnings = describe_ladder([p.x for p in fitted], [p.y for p in fitted], [p.name for p in fitted])
    if drop_flagged and outliers:
        flagged = {o.index for o in outliers}
        left_out += [(fitted[i], "outlier") for i in sorted(flagged)]
        fitted = [p for i, p in enumerate(fitted) if i not in flagged]
    x, y = np.array([p.x for p in fitted]), np.array([p.y for p in fitted])
    variance = seed_variance(x, y)
    posterior = sample_power_law(x, y, variance=variance, prior=prior)
    exact = sample_power_law(x, y, variance=variance, prior=replace(prior, tau=0.0))  # for the intervals of a, b, c
    found = _size_targets(posterior, targets, float(x.max()), points, level)
    line = np.geomspace(x.min(), max([float(x.max()), *targets]), BAND)
    warnings += collapse_warnings(fitted, float(np.median(posterior.c))) + _far(found)
    return Forecast(
        law, f"L({names[0]}) = a {names[0]}^b + c", *names, found,
        {name: interval(getattr(exact, name), level) for name in "abc"},
        noise_floor(x, y), tuple(backtest(x, y, level=level, prior=prior)), tuple(fitted), tuple(left_out),
        tuple(warnings), perplexity, (PRIOR + DEPARTURE).format(sigma=prior.sigma, tau=prior.tau),
        bands=(band("", line, posterior.observe(line), level),),
        traces=(Trace("fitted runs", x, y, np.median(posterior.law(x), axis=0)),),
    )  # fmt: skip


def _split(points: Sequence[Point], fit_below: float | None) -> tuple[list[Point], list[tuple[Point, str]]]:
    limit = math.inf if fit_below is None else fit_below
    above = f"x above --fit-below {limit:g}"
    return [p for p in points if p.x <= limit], [(p, above) for p in points if p.x > limit]


def _size_targets(
    posterior: PowerLawPosterior, targets: Sequence[float], largest: float, points: Sequence[Point], level: float
) -> tuple[Target, ...]:
    for target in targets:
        if not target > largest:
            raise ConfigError(
                f"target {target:g} is inside the data, which end at {largest:g}; choose a larger target, or hold out "
                "runs with --fit-below"
            )
    samples = posterior.observe(targets)
    found = []
    for target, draws in zip(targets, samples.T):
        known = [p.y for p in points if math.isclose(p.x, target, rel_tol=1e-6)]
        actual = float(np.mean(known)) if known else None
        found.append(Target(float(target), interval(draws, level), float(target / largest), actual=actual))
    return tuple(found)


def forecast_surface(
    points: Sequence[Point],
    targets: Sequence[tuple[float, float]],
    budgets: Sequence[float] = (),
    *,
    fit_below: float | None = None,
    level: float = LEVEL,
    prior: NoisePrior | None = None,
    names: tuple[str, str] = ("params", "loss"),
    perplexity: bool = False,
) -> Forecast:
    """Fit L(N, D) to the points and predict the targets (N, D).

    budgets: compute budgets C = 6 N D in FLOPs, for which the compute-optimal N and D are reported. fit_below: fit only
    points with N up to this. Raises DataError for input that cannot be fitted.
    """
    prior = prior or NoisePrior()
    fitted, left_out = _split(points, fit_below)
    n, d, y = (np.array([getattr(p, key) for p in fitted], np.float64) for key in ("x", "tokens", "y"))
    posterior = sample_surface(n, d, y, prior=prior)
    found, bands = [], []
    if targets:
        samples = posterior.observe(*np.array(targets).T)
        for (params, tokens), draws in zip(targets, samples.T):
            reach = params * tokens / (n * d).max()
            known = [p.y for p in points if math.isclose(p.x, params) and math.isclose(p.tokens or 0, tokens)]
            actual = float(np.mean(known)) if known else None
            found.append(Target(params, interval(draws, level), float(reach), tokens, actual))
    for tokens in dict.fromkeys(tokens for _, tokens in targets):
        line = np.geomspace(n.min(), max([n.max(), *(params for params, other in targets if other == tokens)]), BAND)
        along = posterior.observe(line, np.full(BAND, tokens))
        bands.append(band(f"{short(tokens)} tokens", line, along, level))
    held_out = _surface_backtest(n, d, y, level, prior)
    surface, optima = posterior.surface, []
    for budget in budgets:
        best_n, best_d = surface.optimal(budget)
        parts = {"params": best_n, "tokens": best_d, "loss": surface(best_n, best_d)}
        optimum: dict[str, Any] = {name: interval(part, level).as_json() for name, part in parts.items()}
        optima.append({"flops": budget} | optimum)
    parameters = {name: interval(getattr(surface, name), level) for name in ("e", "a", "alpha", "b", "beta")}
    return Forecast(
        "surface", "L(N, D) = e + a N^-alpha + b D^-beta", *names, tuple(found), parameters,
        (float(np.median(posterior.draws.sigma)), "residuals of the fit"), tuple(held_out), tuple(fitted),
        tuple(left_out), tuple(_far(found)), perplexity, PRIOR.format(sigma=prior.sigma),
        {"compute_optimal": optima}, tuple(bands),
        (Trace("fitted runs", n, y, np.median(posterior.law(n, d), axis=0), d),),
    )  # fmt: skip


def _surface_backtest(n: Array, d: Array, y: Array, level: float, prior: NoisePrior) -> list[HeldOutRun]:
    """Predict each of up to three largest sizes from all smaller ones, at least three."""
    held_out: list[HeldOutRun] = []
    sizes = np.unique(n)
    for size in sizes[max(3, len(sizes) - 3) :]:
        smaller, at = n < size, n == size
        try:
            before = sample_surface(n[smaller], d[smaller], y[smaller], prior=prior, draws=2000)
        except DataError:
            continue
        reach = (n[smaller] * d[smaller]).max()
        for tokens, value, draws in zip(d[at], y[at], before.observe(n[at], d[at]).T):
            found = interval(draws, level)
            run = HeldOutRun(int(smaller.sum()), float(size), float(value), found, float(size * tokens / reach))
            held_out.append(run)
    return held_out


def collapse_warnings(points: Sequence[Point], floor: float) -> list[str]:
    """Warnings about runs whose normalised curves do not collapse. floor: the irreducible loss c."""
    curves = [(p.curve.steps, p.curve.values) for p in points if p.curve is not None and len(p.curve) >= 20]
    if len(curves) < len(points) or any(not np.isfinite(values).all() for _, values in curves):
        return []
    far = not_collapsing([p.x for p in points], curves, min(floor, 0.999 * min(p.y for p in points)))
    return [f"{points[i].name} does not collapse onto the normalised curve of the other runs; check its recipe and log"
            for i in far]  # fmt: skip


def _far(targets: Sequence[Target]) -> list[str]:
    return [f"target {t.x:g} is {t.extrapolation:.3g} times beyond the data" for t in targets if t.extrapolation > FAR]


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files."""
    found = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if path.is_dir():
            found.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def save(path: Path, content: dict[str, Any], register: bool) -> None:
    """Write a forecast atomically.

    register: add the date, versions, hashes of the inputs and a hash of the forecast itself. Registering raises
    ConfigError if the file exists, because a registered forecast must not change.
    """
    if register:
        if path.exists():
            raise ConfigError(f"{path} exists and a registered forecast is not overwritten; choose another name")
        sources = sorted({point["source"] for part in content["points"].values() for point in part})
        inputs = [{"source": s, "sha256": digest(Path(s)) if Path(s).exists() else None} for s in sources]
        versions = {"muneox": megatron.__version__, "python": platform.python_version(),
                    "numpy": np.__version__, "scipy": scipy.__version__}  # fmt: skip
        created = datetime.now(UTC).isoformat(timespec="seconds")
        content = content | {"registered": {"created": created, "inputs": inputs, "versions": versions}}
        content["registered"]["sha256"] = _seal(content)
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Load a registered forecast. Raises DataError if the file is not one, or was changed after it was registered."""
    try:
        content = read_json(path)
        seal, current = content["registered"]["sha256"], _seal(content)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a registered forecast; --save writes one") from error
    if seal != current:
        raise DataError(f"{path} was changed after it was registered: its hash does not match")
    return dict(content)


def _seal(content: dict[str, Any]) -> str:
    bare = content | {"registered": {k: v for k, v in content["registered"].items() if k != "sha256"}}
    return hashlib.sha256(json.dumps(bare, sort_keys=True, allow_nan=False).encode()).hexdigest()

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
from muneox.scaling.prior import Array, Prior
from muneox.scaling.surface import PRIOR as SURFACE_PRIOR
from muneox.scaling.surface import WINDOW, near_best, sample_surface, window_of
from muneox.scaling.surface_diagnostics import describe_surface
from muneox.scaling.track_record import track_record
from muneox.scaling.uncertainty import LEVEL, Band, Interval, Trace, band, interval, noise_floor, seed_variance

FEWEST_SIZES = 4
FORMAT = 1
BAND = 80  # points along a band
FAR = 10.0  # a target further beyond the data than this factor gets a warning
EXACT = "; the intervals of a, b and c assume an exact law"


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
    """The result of predict_loss.py. law: size, compute, surface, isoflop or annealing."""

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

    @property
    def track_record(self) -> str:
        """What forecasts of this law were worth on published runs at the farthest target's distance, or empty."""
        if not self.targets:
            return ""
        farthest = max(self.targets, key=lambda target: target.extrapolation)
        return track_record(self.law, farthest.extrapolation, farthest.predicted.level)

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
            "track_record": self.track_record,
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
    prior: Prior | None = None,
    law: str = "size",
    names: tuple[str, str] = ("x", "loss"),
    perplexity: bool = False,
) -> Forecast:
    """Fit L(x) = a x^b + c to the points and predict the targets.

    fit_below: fit only points with x up to this. A target is compared with the held-out points at the same x.
    drop_flagged: leave out runs flagged as outliers instead of only warning about them. Raises DataError for fewer than
    four sizes and ConfigError for a target that is not beyond the fitted points.
    """
    prior = prior or Prior()
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
    warnings += collapse_warnings(fitted, float(np.median(posterior.c))) + far_targets(found)
    return Forecast(
        law, f"L({names[0]}) = a {names[0]}^b + c", *names, found,
        {name: interval(getattr(exact, name), level) for name in "abc"},
        noise_floor(x, y), tuple(backtest(x, y, level=level, prior=prior)), tuple(fitted), tuple(left_out),
        tuple(warnings), perplexity, f"{prior}{EXACT}",
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
    window: float = WINDOW,
    level: float = LEVEL,
    prior: Prior | None = None,
    names: tuple[str, str] = ("params", "loss"),
    perplexity: bool = False,
) -> Forecast:
    """Fit L(N, D) to the points near the best loss at their compute, and predict the targets (N, D).

    budgets: compute budgets C = 6 N D in FLOPs, for which the compute-optimal N and D are reported. fit_below: fit only
    points with N up to this. window: the relative excess over the best loss up to which points are fitted; it is
    widened for few points, and for targets far from the optimum (see surface.window_of); infinity fits all points.
    Raises DataError for input that cannot be fitted.
    """
    prior = prior or SURFACE_PRIOR
    fitted, left_out = _split(points, fit_below)
    n, d, y = columns(fitted)
    if targets:
        window = float(window_of(n, d, y, *np.array(targets).T, prior=prior, window=window).max())
    near = near_best(n, d, y, window)
    left_out += [(p, f"loss more than {window:.0%} above the best at its FLOPs") for p, k in zip(fitted, near) if not k]
    fitted = [p for p, kept in zip(fitted, near) if kept]
    everything, (n, d, y) = (n, d, y), columns(fitted)
    posterior = sample_surface(n, d, y, prior=prior)
    found, bands = [], []
    if targets:
        samples = posterior.observe(*np.array(targets).T)
        for (params, tokens), draws in zip(targets, samples.T):
            reach = params * tokens / (everything[0] * everything[1]).max()
            known = [p.y for p in points if math.isclose(p.x, params) and math.isclose(p.tokens or 0, tokens)]
            actual = float(np.mean(known)) if known else None
            found.append(Target(params, interval(draws, level), float(reach), tokens, actual))
    for tokens in dict.fromkeys(tokens for _, tokens in targets):
        line = np.geomspace(n.min(), max([n.max(), *(params for params, other in targets if other == tokens)]), BAND)
        along = posterior.observe(line, np.full(BAND, tokens))
        bands.append(band(f"{short(tokens)} tokens", line, along, level))
    warnings = describe_surface(n, d, y, [p.name for p in fitted]) + far_targets(found)
    held_out = _surface_backtest(*everything, level, prior, window)
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
        tuple(left_out), tuple(warnings), perplexity, str(prior),
        {"compute_optimal": optima}, tuple(bands),
        (Trace("fitted runs", n, y, np.median(posterior.law(n, d), axis=0), d),),
    )  # fmt: skip


def columns(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    """Parameters, tokens and loss of the points of L(N, D), each [n]."""
    n, d, y = (np.array([getattr(p, key) for p in points], np.float64) for key in ("x", "tokens", "y"))
    return n, d, y


def _surface_backtest(n: Array, d: Array, y: Array, level: float, prior: Prior, window: float) -> list[HeldOutRun]:
    """Predict each of up to three largest sizes from all smaller ones, at least three."""
    held_out: list[HeldOutRun] = []
    sizes = np.unique(n)
    for size in sizes[max(3, len(sizes) - 3) :]:
        small, at = np.flatnonzero(n < size), n == size
        near = small[near_best(n[small], d[small], y[small], window)]
        try:
            before = sample_surface(n[near], d[near], y[near], prior=prior, draws=2000)
        except DataError:
            continue
        reach = (n[small] * d[small]).max()
        for tokens, value, draws in zip(d[at], y[at], before.observe(n[at], d[at]).T):
            found = interval(draws, level)
            held_out.append(HeldOutRun(len(near), float(size), float(value), found, float(size * tokens / reach)))
    return held_out


def collapse_warnings(points: Sequence[Point], floor: float) -> list[str]:
    """Warnings about runs whose normalised curves do not collapse. floor: the irreducible loss c."""
    curves = [(p.curve.steps, p.curve.values) for p in points if p.curve is not None and len(p.curve) >= 20]
    if len(curves) < len(points) or any(not np.isfinite(values).all() for _, values in curves):
        return []
    far = not_collapsing([p.x for p in points], curves, min(floor, 0.999 * min(p.y for p in points)))
    return [f"{points[i].name} does not collapse onto the normalised curve of the other runs; check its recipe and log"
            for i in far]  # fmt: skip


def far_targets(targets: Sequence[Target]) -> list[str]:
    """Warnings about targets far beyond the data."""
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

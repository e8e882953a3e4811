"""Predict a large model's loss from smaller runs, with intervals and a backtest.

    python tools/scaling/predict_loss.py ./wandb --x params --y valid/loss --at-step 20000 --target 6.7e9
    python tools/scaling/predict_loss.py entity/project --group ladder-3 --x params --y valid/loss --target 6.7e9
    python tools/scaling/predict_loss.py 'runs/*/metrics.jsonl' --x params --y valid/loss --target 512e6 \\
        --json forecast.json --plot forecast.png
    python tools/scaling/predict_loss.py runs/ladder --y valid/loss --target-config configs/mup/target.yml ...
    python tools/scaling/predict_loss.py table.csv --x params_M --y loss --fit-below 160 --target 676 1447
    python tools/scaling/predict_loss.py runs --law surface --x params --y valid/loss --target 7e9:1.4e11 --budget 1e22
    python tools/scaling/predict_loss.py sweep.csv --law isoflop --x params --y loss --budget 1e22
    python tools/scaling/predict_loss.py runs --law compute --y valid/loss --target 1e22
    python tools/scaling/predict_loss.py curves --law annealing --y valid/loss --schedule plan.csv
    python tools/scaling/predict_loss.py runs ... --target 512e6 --save forecast.json      # before the run
    python tools/scaling/predict_loss.py --check forecast.json runs/target/metrics.jsonl   # after it

Sources: wandb folders and projects, metrics.jsonl, TensorBoard folders, globs of these; a table with one row per run
(CSV, TSV, Parquet); results of lm-evaluation-harness (--y task/metric). The exit code is 1 if the data do not allow a
forecast, or if a check finds the loss outside its interval.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron.command_help import command_parser
from megatron.errors import ConfigError, DataError, refusing
from muneox.runs import CORPUS, describe_corpus, read_runs, require_same_corpus
from muneox.scaling.compute import PRIOR as COMPUTE_PRIOR
from muneox.scaling.compute import envelope
from muneox.scaling.curve_forecast import CurveOptions, forecast_curves
from muneox.scaling.forecast import (
    Forecast,
    Target,
    forecast_size,
    forecast_surface,
    load,
    save,
)
from muneox.scaling.isoflop_forecast import forecast_isoflop
from muneox.scaling.ladder import Point, Selection, finite, read_points
from muneox.scaling.next_run import NextRunPlan, plan_next
from muneox.scaling.sentence import outcome, predicted
from muneox.scaling.size_column import better_size
from muneox.scaling.surface import WINDOW

OPTIMUM = {"params": "N =", "tokens": "D =", "loss": "loss"}


def arguments(input_args: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        __doc__,
        "`muneox report --forecast FILE.json` shows it in the report.",
        usage="%(prog)s RUNS ... --y METRIC --target X [options]",
    )
    parser.add_argument("sources", nargs="*", metavar="RUNS", help="runs, as listed above")
    parser.add_argument(
        "--law", choices=("size", "surface", "compute", "isoflop", "annealing"), default="size", help="see the examples"
    )
    what = parser.add_argument_group("input")
    what.add_argument("--x", default="params", help="--law size: a configuration value or column (default: params)")
    what.add_argument("--y", help="metric or column, for example valid/loss")
    what.add_argument("--sizes", default="", help="sizes of runs without any: a table (name, params), or `name`")
    what.add_argument("--tokens", default="tokens", help="column of a table, for --law surface")
    what.add_argument("--at-step", type=int, help="read all runs at this step (default: their common end)")
    what.add_argument("--at-tokens", type=float, help="read all runs at this number of tokens")
    what.add_argument("--smooth", default="none", metavar="KIND:POINTS", help="none, mean:20, median:5, ema:20")
    what.add_argument("--perplexity", action="store_true", help="y is a perplexity: the law is fitted to its logarithm")
    what.add_argument("--group", help="only runs of this group")
    what.add_argument("--tag", action="append", default=[], help="only runs with this tag (repeatable)")
    what.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only matching runs or rows")
    what.add_argument("--exclude", nargs="+", default=[], metavar="RUN", help="leave out these runs")
    what.add_argument("--allow", nargs="+", default=[], metavar="KEY", help="recipe keys, or `corpus`, that can differ")
    what.add_argument("--drop-diverged", action="store_true", help="leave out runs whose loss is not finite")
    what.add_argument("--drop-flagged", action="store_true", help="leave out runs flagged as outliers")
    fit = parser.add_argument_group("the forecast")
    fit.add_argument(
        "--target", nargs="+", default=[], help="x to predict; N:D for --law surface; FLOPs for compute, isoflop; steps"
    )
    fit.add_argument("--target-config", nargs="+", default=[], metavar="CONFIG", help="predict this model (x = params)")
    fit.add_argument("--fit-below", type=float, metavar="X", help="fit sizes up to X; compare with the others")
    fit.add_argument("--window", type=float, default=WINDOW, metavar="SHARE", help="--law surface: fit the runs within "
                     "this share of the best loss at their FLOPs; inf fits all (default: %(default)s)")  # fmt: skip
    fit.add_argument("--level", type=float, default=0.9, help="level of the intervals (default: 0.9)")
    fit.add_argument(
        "--budget", nargs="+", type=float, default=[], help="FLOPs: compute-optimal N and D (surface, isoflop)"
    )
    fit.add_argument("--plan", action="store_true", help="suggest the run to train next, with the interval after it")
    fit.add_argument("--cost-exponent", type=float, default=1.0, help="--plan: the cost of a run is x to this power")
    curve = parser.add_argument_group("--law annealing")
    curve.add_argument("--rate", help="series of the learning rate (default: lr, learning_rate, ...)")
    curve.add_argument("--schedule", nargs="+", default=[], help="runs or CSV files (step, lr) to predict")
    curve.add_argument("--until", type=int, help="fit only the steps up to this one")
    curve.add_argument("--warmup", type=int, default=0, help="steps of linear warm-up missing from the logged rate")
    out = parser.add_argument_group("results")
    out.add_argument("--json", type=Path, help="write the forecast, or with --check its outcome, as JSON")
    out.add_argument("--plot", type=Path, help=".png, .pdf or .svg")
    out.add_argument("--save", type=Path, metavar="FILE", help="register the forecast: date, versions, hashes")
    out.add_argument("--check", type=Path, metavar="FILE", help="compare a registered forecast with RUNS")
    return parser.parse_args(input_args)


def selection(options: argparse.Namespace) -> Selection:
    if not options.y:
        raise ConfigError("--y is missing: name the loss, for example --y valid/loss")
    pairs = [tuple(text.partition("=")[::2]) for text in options.where]
    return Selection(
        options.x, options.y, options.tokens, options.at_step, options.at_tokens, options.smooth, options.perplexity,
        options.group, tuple(options.tag), tuple(pairs), tuple(options.exclude), tuple(options.allow), options.sizes,
    )  # fmt: skip


def make_forecast(options: argparse.Namespace) -> Forecast:
    if not options.sources:
        raise ConfigError("no runs are given: name at least one; see --help")
    if options.target_config:
        options.target.append(str(_params(options)))
    if not 0.5 <= options.level < 1:
        raise ConfigError(f"--level {options.level:g}: expected a number from 0.5 to below 1, for example 0.9")
    if not options.window > 0:
        raise ConfigError(f"--window {options.window:g}: expected a positive share, for example {WINDOW}")
    if options.window != WINDOW and options.law != "surface":
        raise ConfigError(f"--window selects the runs of L(N, D): it needs --law surface, got {options.law}")
    if options.budget and options.law not in ("surface", "isoflop"):
        raise ConfigError(
            f"--budget finds the best N and D for FLOPs: it needs --law surface or isoflop, got {options.law}"
        )
    chosen = selection(options)
    if options.law == "annealing":
        return _annealing(options, chosen)
    points, damage = read_points(options.sources, chosen, "surface" if options.law == "isoflop" else options.law)
    points, bad = finite(points, options.drop_diverged)
    shared = {"fit_below": options.fit_below, "level": options.level, "perplexity": options.perplexity}
    if options.law == "isoflop":
        flops = [*(_number(text) for text in options.target), *options.budget]
        found = forecast_isoflop(
            points, flops, level=options.level, y_name=chosen.y, perplexity=options.perplexity
        )  # fmt: skip
    elif options.law == "surface":
        targets = [_pair(text) for text in options.target]
        names = (chosen.x, chosen.y)
        found = forecast_surface(points, targets, options.budget, window=options.window, names=names, **shared)
    else:
        x_name, prior = chosen.x, None
        if options.law == "compute":
            x_name, points, prior = "flops", _best_of_budgets(points), COMPUTE_PRIOR
        found = forecast_size(
            points, [_number(text) for text in options.target], drop_flagged=options.drop_flagged, law=options.law,
            names=(x_name, chosen.y), prior=prior, **shared,
        )  # fmt: skip
    other = better_size(options.sources, chosen, found) if options.law == "size" else []
    warnings = (*damage, *other, *(f"{p.name} diverged and is left out" for p in bad), *found.warnings)
    left_out = (*found.left_out, *((p, "loss not finite") for p in bad))
    corpora = {point.corpus for point in found.used}
    recorded: dict[str, Any] = {"corpus": corpora.pop() if len(corpora) == 1 else None}
    recorded |= {"selection": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(chosen).items()}}
    return replace(found, warnings=warnings, left_out=left_out, extra=found.extra | recorded)


def _params(options: argparse.Namespace) -> int:
    """Number of parameters of the model of --target-config, counted as in a run's header."""
    if options.law != "size" or options.x != "params":
        raise ConfigError("--target-config gives a number of parameters: it needs --law size and --x params")
    from megatron.neox_arguments import NeoXArgs
    from megatron.neox_arguments.resolve import cost_config
    from muneox.cost import cost_of

    return cost_of(cost_config(NeoXArgs.from_ymls(options.target_config, world_size=1))).params


def _annealing(options: argparse.Namespace, chosen: Selection) -> Forecast:
    runs = read_runs(options.sources, group=chosen.group, tags=chosen.tags, where=dict(chosen.where))
    schedules = read_runs(options.schedule) if options.schedule else []
    how = CurveOptions(chosen.y, options.rate, options.warmup, options.until, chosen.smoothing)
    runs = [run for run in runs if run.name not in chosen.exclude]
    if "corpus" not in chosen.allow:
        require_same_corpus([*runs, *(run for run in schedules if run.value(CORPUS))], "a forecast of curves")
    return forecast_curves(runs, schedules, how, steps=[_number(t) for t in options.target], level=options.level)


def _best_of_budgets(points: Sequence[Point]) -> list[Point]:
    """The best point of each budget. Points that are not finite are excluded."""
    points = [point for point in points if point.x > 0]
    return [points[i] for i in envelope([point.x for point in points], [point.y for point in points])]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"--target {text} is not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"--target {text}: expected a positive number")
    return value


def _pair(text: str) -> tuple[float, float]:
    first, colon, second = text.partition(":")
    if not colon:
        raise ConfigError(f"--target {text}: L(N, D) needs parameters and tokens, for example 7e9:1.4e11")
    return _number(first), _number(second)


def show(forecast: Forecast, registered: Path | None, console: Console) -> None:
    """Print the forecast, with the numbers of the JSON file: one sentence per target first."""
    content = forecast.as_json()
    for target in content["targets"]:
        where = f"; registered in {registered}" if registered else ""
        console.print(f"{predicted(forecast.x_name, target)}{where}", soft_wrap=True, markup=False)
        if "actual" in target:
            console.print(f"  {outcome(target)}", soft_wrap=True, markup=False)
    for optimum in forecast.extra.get("compute_optimal", ()):
        parts = [f"{name} {_span(optimum[key])}" for key, name in OPTIMUM.items() if key in optimum]
        console.print(f"budget {optimum['flops']:.3g} FLOPs: {', '.join(parts)}", soft_wrap=True, markup=False)
    if forecast.track_record:
        console.print(forecast.track_record, soft_wrap=True, markup=False)
    for warning in forecast.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    if forecast.targets:
        console.print(_target_table(forecast))
    console.print(f"{forecast.formula}, {len(forecast.used)} runs used, {len(forecast.left_out)} left out")
    for name, found in forecast.parameters.items():
        console.print(f"  {name} = {found.value:.5g}  [{found.low:.5g}, {found.high:.5g}]")
    console.print(f"  noise of one run {forecast.noise[0]:.2%} (from {forecast.noise[1]})")
    console.print(f"prior: {forecast.prior}", soft_wrap=True)
    if not forecast.held_out:
        console.print("no backtest: it needs at least one size more than the four that are fitted")
        return
    backtest = content["backtest"]
    console.print(
        f"backtest: mean error {backtest['mean_absolute_relative_error']:.2%}, {backtest['coverage']:.0%} inside, "
        f"up to {backtest['largest_extrapolation']:.1f} times beyond the fitted runs"
    )
    console.print(_backtest_table(forecast))


def _span(found: dict[str, float]) -> str:
    return "{value:.4g} [{low:.4g}, {high:.4g}]".format(**found)


def _target_table(forecast: Forecast) -> Table:
    """One row per target. Columns without any value are left out."""
    what = f"the logarithm of {forecast.y_name}" if forecast.perplexity else forecast.y_name
    rows = [_target_row(forecast, target) for target in forecast.targets]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    table = Table(title=f"forecast of {what}")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _target_row(forecast: Forecast, target: Target) -> dict[str, str]:
    found, actual = target.predicted, target.actual
    perplexities, seen, error = "", "", ""
    if forecast.perplexity:
        perplexities = "{:.4g} ({:.4g} to {:.4g})".format(*map(math.exp, (found.value, found.low, found.high)))
    if actual is not None:
        seen = f"{actual:.4f}, {'inside' if actual in found else '[red]outside[/red]'}"
        error = f"{found.value / actual - 1:+.2%}"
    return {
        forecast.x_name: (
            f"{target.x:.6g}" if target.tokens is None else f"{target.x:.4g} on {target.tokens:.4g} tokens"
        ),
        "beyond the data": f"{target.extrapolation:.1f} x",
        "prediction": f"{found.value:.4f}",
        f"{found.level:.0%} interval": f"{found.low:.4f} to {found.high:.4f}",
        "perplexity": perplexities,
        "actual": seen,
        "error": error,
    }


def _backtest_table(forecast: Forecast) -> Table:
    table = Table("fitted", forecast.x_name, "beyond", "predicted", "actual", "error", "")
    for h in forecast.held_out:
        inside = "inside" if h.inside else "[red]outside[/red]"
        row = [str(h.sizes), f"{h.x:.6g}", f"{h.extrapolation:.1f} x", f"{h.predicted.value:.4f}", f"{h.actual:.4f}"]
        table.add_row(*row, f"{h.error:+.2%}", inside)
    return table


def show_plan(plan: NextRunPlan, target: float, console: Console) -> None:
    table = Table("size", "cost, of the target's", "interval then", "shrinks by",
                  title=f"next run, for x = {target:g}: interval now +-{plan.half_width:.2%}")  # fmt: skip
    for c in plan.candidates:
        mark = " <- most informative for the money" if c == plan.best else ""
        table.add_row(f"{c.x:.4g}", f"{c.cost:.1%}", f"+-{c.half_width:.2%}", f"{c.shrink:.0%}{mark}")
    console.print(table)
    if plan.best is None:
        console.print("no run of up to a third of the target's cost would shrink the interval by more than 2 %")


def check(options: argparse.Namespace, console: Console) -> int:
    """Compare a registered forecast with the trained runs. Returns 1 if a loss is outside its interval.

    --json writes the forecast for the report, with the mean loss of the trained runs added to each target.
    """
    content = load(options.check)
    if not options.sources:
        raise ConfigError("--check: name the RUNS to compare with")
    with refusing(f"{options.check} is not a registered forecast; --save writes one", DataError):
        outside = _compare(content, options, console)
    if options.json:
        save(options.json, content, register=False)
    return int(outside > 0)


def _compare(content: dict[str, Any], options: argparse.Namespace, console: Console) -> int:
    """Add the losses of the trained runs to the targets of a forecast. Returns how many are outside."""
    if "selection" not in content or content["law"] not in ("size", "surface"):
        raise ConfigError(f"{options.check}: expected a forecast of sizes or surfaces, not of {content['law']}")
    known: dict[str, Any] = content["selection"]
    kept: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    # The filters selected the ladder's runs. The runs to compare with are named explicitly.
    chosen = replace(Selection(**kept), group=None, tags=(), where=(), exclude=())
    points, _ = read_points(options.sources, chosen, content["law"])
    if "corpus" not in chosen.allow:
        _require_corpus(options.check, content.get("corpus"), points)
    outside = compared = 0
    for target in content["targets"]:
        seen = [point for point in points if _is_of(point, target)]
        for point in seen:
            inside = target["low"] <= point.y <= target["high"]
            compared, outside = compared + 1, outside + (not inside)
            console.print(
                f"{point.name}: actual {point.y:.4f}, forecast {target['prediction']:.4f} "
                f"[{target['low']:.4f}, {target['high']:.4f}] of {content['registered']['created']}: "
                f"{'inside' if inside else 'OUTSIDE'}, forecast off by {target['prediction'] / point.y - 1:+.2%}",
                soft_wrap=True,
                markup=False,
            )
        if seen:
            actual = mean(point.y for point in seen)
            inside = target["low"] <= actual <= target["high"]
            target |= {"actual": actual, "relative_error": target["prediction"] / actual - 1, "inside": inside}
    if not compared:
        sizes = ", ".join(f"{t['x']:g}" for t in content["targets"])
        found = ", ".join(f"{p.x:g}" for p in points)
        raise DataError(f"{options.check} forecasts {content['x']} = {sizes}; the runs given have {found}")
    return outside


def _require_corpus(file: Path, corpus: str | None, points: Sequence[Point]) -> None:
    """Raise DataError if a run's corpus differs from that of the forecast's runs. Unknown corpora pass."""
    for point in points:
        if corpus and point.corpus and point.corpus != corpus:
            raise DataError(
                f"{file} forecasts losses on the corpus with {describe_corpus(corpus)}, and {point.name} was trained "
                f"on the one with {describe_corpus(point.corpus)}: they cannot be compared"
            )


def _is_of(point: Point, target: dict[str, Any]) -> bool:
    """Whether a run has the size, and for surfaces the tokens, of a target."""
    if not math.isclose(point.x, target["x"], rel_tol=1e-3):
        return False
    return "tokens" not in target or math.isclose(point.tokens or 0, target["tokens"], rel_tol=1e-2)


def main(input_args: Sequence[str] | None = None) -> int:
    """Predict or check. Returns the exit code. Raises ConfigError or DataError."""
    options = arguments(input_args)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    if options.check:
        return check(options, console)
    forecast = make_forecast(options)
    content, plan = forecast.as_json(), None
    if options.plan:
        if forecast.law not in ("size", "compute") or not forecast.targets:
            raise ConfigError("--plan needs a --target, and --law size or compute")
        x, y = [p.x for p in forecast.used], [p.y for p in forecast.used]
        last = forecast.targets[-1].x
        prior = COMPUTE_PRIOR if forecast.law == "compute" else None
        plan = plan_next(x, y, last, cost_exponent=options.cost_exponent, level=options.level, prior=prior)
        content["plan"] = asdict(plan)
    if options.json:
        save(options.json, content, register=False)
    if options.save:
        save(options.save, content, register=True)
    show(forecast, options.save, console)
    if plan is not None:
        show_plan(plan, forecast.targets[-1].x, console)
    if options.plot:
        from muneox.scaling.isoflop_picture import draw_sweep
        from muneox.scaling.picture import draw

        (draw_sweep if forecast.law == "isoflop" else draw)(forecast, options.plot)
    return 0

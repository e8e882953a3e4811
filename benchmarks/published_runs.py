"""Measures the loss predictor on published ladders against a plain fit, and the coverage of its 90 % intervals.

    python benchmarks/published_runs.py --data DIR

DIR holds published runs as CSV files. The main table holds out runs by compute: the law is fitted to all runs up to a
budget, and the best run at 3, 10, 30 and 100 times that budget is predicted. It has every table of the folder with the
columns params and loss (and tokens and flops where they are known), and Mu-scaling, nanoLM, OLMo's ladder,
OpenLM, Gemstone and Pythia's LAMBADA. Baselines are curve_fit of the same law, the Huber fit of Hoffmann et al., and a
power law of compute through the best run of each budget. The predictor's constants are chosen for each dataset by the
other datasets, and printed.

Then come the splits that others reported, if all their tables are there, error and coverage over those splits, and the
speed of the fit. Without DIR there is only the speed. --json writes the main table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _held_out import held_out
from _leave_one_out import baselines, leave_one_out, show, show_datasets
from _published_tables import Array, all_runs, column, olmo_surface, read, where
from numpy.typing import NDArray

from megatron.errors import DataError
from muneox.scaling.annealing import Curve, fit_annealing, sample_annealing, schedule
from muneox.scaling.power_law import bootstrap_power_law, fit_power_law, sample_power_law
from muneox.scaling.surface import fit_surface, sample_surface

DRAWS = 2000
SCHEDULES = ("cosine_24000", "constant_24000", "wsdcon_9")  # fitted; the other six are predicted
WARMUP = 2160  # steps, linear; the curves start after them


@dataclass(frozen=True)
class Split:
    """Runs of which the mask `fitted` is fitted and the rest held out. tokens: None for a ladder of one recipe."""

    source: str
    name: str
    size: Array
    tokens: Array | None
    loss: Array
    fitted: NDArray[np.bool_]
    note: str = ""


@dataclass(frozen=True)
class Result:
    """Per held-out run: relative errors of predictor and plain fit, inside the interval or not, relative half-width."""

    split: Split
    error: Array
    plain: Array
    inside: NDArray[np.bool_]
    half_width: Array


def ladder(source: str, name: str, size: Array, loss: Array) -> Iterator[Split]:
    """Every split into the smallest sizes, at least four, and the rest."""
    order = np.argsort(size)
    size, loss = size[order], loss[order]
    for cut in np.unique(size)[3:-1]:
        yield Split(source, name, size, None, loss, size <= cut)


def ladders(data: Path) -> Iterator[Split]:
    rows = read(data / "mu_scaling.csv")
    yield from ladder("Mu-scaling", "20k steps", column(rows, "params_M"), column(rows, "train_loss_20k"))
    rows = read(data / "nanolm.csv")
    for series, step in dict.fromkeys((row["series"], row["step"]) for row in rows):
        some = where(rows, series=series, step=step)
        yield from ladder("nanoLM", f"{series} {step}", column(some, "N_millions"), column(some, "loss"))
    rows = where(read(data / "olmo_ladder/finals.csv"), rerun="False")
    for metric in (key for key in rows[0] if "CrossEntropy" in key):
        for multiple in dict.fromkeys(row["chinchilla_mult"] for row in rows):
            some = where(rows, chinchilla_mult=multiple)
            name = f"{metric.split('/')[1]} {float(multiple):g}x"
            yield from ladder("OLMo L(N)", name, column(some, "N"), column(some, metric))


def changing_recipes(data: Path) -> Iterator[Split]:
    """OpenLM at one token multiple. Batch size and, for the largest, learning rate change along the ladder."""
    rows = read(data / "openlm_overtraining/runs.csv")
    for corpus in dict.fromkeys(row["dataset"] for row in rows):
        for multiple in dict.fromkeys(row["chinchilla_multiplier"] for row in rows):
            some = where(rows, dataset=corpus, chinchilla_multiplier=multiple)
            for metric in (key for key in rows[0] if key.startswith("loss_")):
                if len(some) >= 5:
                    name = f"{corpus} {metric} {multiple}x"
                    yield from ladder("OpenLM L(N)", name, column(some, "N"), column(some, metric))


def surfaces(data: Path) -> Iterator[Split]:
    rows = read(data / "olmo_ladder/finals.csv")
    for metric in (key for key in rows[0] if "CrossEntropy" in key):
        size, tokens, loss = olmo_surface(data / "olmo_ladder", rows, metric)
        name = metric.split("/")[1]
        for cut in (1e9, 2e9, 5e9):
            yield Split("OLMo L(N, D)", name, size, tokens, loss, size < cut, f"N < {cut:.0e}")
        keep = size > 3e8
        yield Split("OLMo L(N, D)", name, size[keep], tokens[keep], loss[keep], size[keep] < 5e9, "370M to 3B")
    rows = read(data / "openlm_overtraining/runs.csv")
    for corpus in dict.fromkeys(row["dataset"] for row in rows):
        some = where(rows, dataset=corpus)
        size = column(some, "N")
        for metric in (key for key in rows[0] if key.startswith("loss_")):
            for cut in (3e8, 6e8, 2e9):
                name, loss = f"{corpus} {metric}", column(some, metric)
                yield Split("OpenLM L(N, D)", name, size, column(some, "D"), loss, size < cut, f"N < {cut:.0e}")
    rows = read(data / "gemstone/wandb_df_for_fitting_cool_end.csv")
    size = column(rows, "params_active_precise")
    tokens, loss = column(rows, "tokens"), column(rows, "final_loss")
    for cut in (2e8, 6e8, 1.2e9):
        yield Split("Gemstone L(N, D)", "", size, tokens, loss, size < cut, f"N < {cut:.0e}")


def evaluate(split: Split) -> Result:
    fitted, left = split.fitted, ~split.fitted
    loss, actual = split.loss[fitted], split.loss[left]
    if split.tokens is None:
        samples = sample_power_law(split.size[fitted], loss, draws=DRAWS).observe(split.size[left])
        plain = fit_power_law(split.size[fitted], loss).law(split.size[left])
    else:
        data = split.size[fitted], split.tokens[fitted], loss
        target = split.size[left], split.tokens[left]
        samples = sample_surface(*data, draws=DRAWS).observe(*target)
        plain = fit_surface(*data)(*target)
    low, middle, high = np.quantile(samples, [0.05, 0.5, 0.95], axis=0)
    inside = (low <= actual) & (actual <= high)
    return Result(split, middle / actual - 1, plain / actual - 1, inside, (high - low) / 2 / actual)


def curves(data: Path, size: str) -> dict[str, Curve]:
    found = {}
    for path in sorted((data / "multi_power_law").glob(f"{size}_*.csv")):
        rows = read(path)
        steps = column(rows, "step").astype(np.int64)
        rates = schedule(steps, column(rows, "lr"), int(steps[-1]), WARMUP)
        found[path.stem.removeprefix(f"{size}_")] = Curve(steps, column(rows, "loss"), rates)
    if not set(SCHEDULES) < set(found):
        raise DataError(f"{data / 'multi_power_law'} has no complete set of curves for {size}")
    return found


def annealing(data: Path, size: str) -> tuple[float, float]:
    """Mean error of the law over the six unseen schedules, and the share of their points inside the intervals."""
    found = curves(data, size)
    kept = [found[name] for name in SCHEDULES]
    law, posterior = fit_annealing(kept), sample_annealing(kept)
    errors, inside = [], []
    for name, curve in found.items():
        if name not in SCHEDULES:
            errors.append(np.abs(law(curve.rates, curve.steps) / curve.loss - 1).mean())
            low, high = np.quantile(posterior.observe(curve.rates, curve.steps), [0.05, 0.95], axis=0)
            inside.append(np.mean((low <= curve.loss) & (curve.loss <= high)))
    return float(np.mean(errors)), float(np.mean(inside))


def percent(values: Array) -> str:
    return " / ".join(f"{100 * value:+.2f}" for value in values)


def row(label: str, ours: str, plain: str, published: str) -> None:
    print(f"{label:46}{ours:>27}{plain:>27}   {published}")


def show_reported(results: Sequence[Result], data: Path) -> None:
    """Print the splits that others reported, next to the plain fit of this run and the published error."""

    def pick(source: str, name: str, note: str = "", count: int | None = None) -> Result:
        for r in results:
            s = r.split
            if (s.source, s.name, s.note) == (source, name, note) and count in (None, int(s.fitted.sum())):
                return r
        raise DataError(f"{data} has no split {source} {name}")

    row("split", "predictor, %", "plain fit, %", "published, %")
    r = pick("Mu-scaling", "20k steps", count=7)
    row("Mu-scaling, 7 widths -> 1024, 2048, 3072", percent(r.error), percent(r.plain), "+0.29 / -0.17 / -0.18")
    ours, plain = (np.abs(e * r.split.loss[~r.split.fitted]).mean() for e in (r.error, r.plain))
    row("", f"MAE {ours:.4f} nats, {r.inside.sum()} of 3 inside", f"MAE {plain:.4f} nats", "MAE 0.0068 nats")
    for name, published in (("gpt_mup 7000", "-0.02"), ("gpt_mup 20000", "-0.81"), ("llama_mup 20000", "+0.54")):
        r = pick("nanoLM", name, count=7)
        row(f"nanoLM {name}, 7 widths -> 8th", percent(r.error), percent(r.plain), published)
    for multiple, published in (("1x", "-0.76"), ("2x", "-0.26"), ("5x", "-0.45"), ("10x", "-0.18")):
        r = pick("OLMo L(N)", f"c4_en-validation {multiple}")
        row(f"OLMo C4 {multiple} L(N), 4 sizes -> 3B", percent(r.error), percent(r.plain), published)
    r = pick("OLMo L(N, D)", "c4_en-validation", "N < 2e+09")
    split = [np.r_[np.abs(e[:-2]).mean(), e[-2:]] for e in (r.error, r.plain)]
    row("OLMo C4 N < 2B: mean 3B, 7B-4T, 13B-5T", percent(split[0]), percent(split[1]), "1.03 / 1.89 / 3.66")
    r = pick("OLMo L(N, D)", "c4_en-validation", "370M to 3B")
    row("OLMo C4 370M to 3B: 7B-4T, 13B-5T", percent(r.error), percent(r.plain), "+0.03 / -0.74")
    for corpus in ("c4_original", "rpj", "rw_original"):
        r = pick("OpenLM L(N, D)", f"{corpus} loss_paloma_c4_en", "N < 6e+08")
        means = [np.array([np.abs(e).mean()]) for e in (r.error, r.plain)]
        row(f"OpenLM {corpus} N < 0.6B -> 1.4B, 6.9B", percent(means[0]), percent(means[1]), "1.4 to 3.3")
    r = pick("Gemstone L(N, D)", "", "N < 1e+09")
    spread = [np.array([np.abs(e).mean(), np.abs(e).max()]) for e in (r.error, r.plain)]
    row("Gemstone N < 1.2B: mean, max", percent(spread[0]), percent(spread[1]), "1.26 / 3.79")
    for size, published in (("25M", "0.13"), ("100M", "0.14"), ("400M", "0.23")):
        error, inside = annealing(data, size)
        row(f"annealing law {size}, 3 schedules -> 6", f"{error:.3%}, {inside:.0%} inside", "", published)
    print(
        "nanoLM's losses have two decimals (0.13 %) and repeats differ by 0.02-0.12 %: smaller errors are equivalent.\n"
        "The annealing law is the plain fit; it gains from the warm-up in both areas and from curves of equal weight."
    )


def show_all(results: Sequence[Result]) -> float:
    """Print error and coverage by source. Returns the coverage over all splits of one recipe."""
    names = ("splits", "held out", "mean error", "plain fit", "half width", "coverage")
    print(f"\n{'all splits':18}" + "".join(f"{name:>12}" for name in names))
    headline: dict[bool, list[NDArray[np.bool_]]] = {True: [], False: []}
    apart = np.concatenate([r.inside for r in results if r.split.source == "OpenLM L(N)"])
    for source in dict.fromkeys(r.split.source for r in results):
        some = [r for r in results if r.split.source == source]
        parts = ("error", "plain", "half_width", "inside")
        error, plain, width, inside = (np.concatenate([getattr(r, key) for r in some]) for key in parts)
        if source != "OpenLM L(N)":
            headline[some[0].split.tokens is None].append(inside)
        print(
            f"{source:18}{len(some):12}{len(error):12}{np.abs(error).mean():12.2%}{np.abs(plain).mean():12.2%}"
            f"{np.median(width):12.2%}{inside.mean():12.1%}"
        )
    curve, surface = (np.concatenate(headline[key]) for key in (True, False))
    coverage = float(np.concatenate([curve, surface]).mean())
    print(f"coverage of the 90 % intervals: L(N) {curve.mean():.1%}, L(N, D) {surface.mean():.1%}, all {coverage:.1%}")
    print(
        "OpenLM L(N) is not included: batch size and learning rate change with the size, so it is not a ladder of one "
        f"recipe.\nWith it the coverage is {np.concatenate([curve, surface, apart]).mean():.1%}."
    )
    return coverage


def show_speed() -> float:
    """Time 1,000 bootstrap samples of 1,000 points against SciPy's curve_fit per sample. Returns the ratio."""
    from scipy.optimize import curve_fit

    def law(v: Array, a: float, b: float, c: float) -> Array:
        return np.asarray(a * v**b + c)

    rng = np.random.default_rng(0)
    x = 10 ** rng.uniform(1, 4, 1000)
    y = law(x, 5, -0.35, 2) * (1 + 0.004 * rng.standard_normal(1000))
    start = time.process_time()
    bootstrap_power_law(x, y, samples=1000)
    ours = time.process_time() - start
    start, some = time.process_time(), 20
    for pick in rng.integers(0, 1000, (some, 1000)):
        curve_fit(law, x[pick], y[pick], [5, -0.3, 2], y[pick], maxfev=10000)
    theirs = (time.process_time() - start) * 1000 / some
    print(f"1,000 points, 1,000 bootstrap samples: {ours:.2f} s; curve_fit {theirs:.2f} s: {theirs / ours:.1f} times")
    return theirs / ours


def show_left_out(data: Path, target: Path | None) -> None:
    """Print the leave-one-dataset-out table, and write it as JSON if `target` is given."""
    cases = held_out(all_runs(data))
    scores, others = leave_one_out(cases), [baselines(case) for case in cases]
    cells = show(cases, scores, others)
    show_datasets(cases, scores, others)
    print()
    if target is not None:
        target.write_text(json.dumps({name: cell.as_json() for name, cell in cells.items()}, indent=2) + "\n")


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of published runs")
    parser.add_argument("--json", type=Path, help="write the leave-one-dataset-out table")
    options = parser.parse_args(input_args)
    data = options.data
    if data is None:
        print("no published runs given (--data DIR); measuring only the speed")
    else:
        show_left_out(data, options.json)
        try:
            splits = [*ladders(data), *surfaces(data), *changing_recipes(data)]
            results = [evaluate(split) for split in splits]
            show_reported(results, data)
            show_all(results)
        except DataError as error:
            print(f"the splits that others reported are left out: {error}")
        print()
    show_speed()
    return 0


if __name__ == "__main__":
    from megatron.entry import run_script

    sys.exit(run_script(main))

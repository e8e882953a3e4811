"""Check that wider models are better at every step, from training curves with the same hyperparameters.

    python tools/mup/width_check.py runs/widths --out runs/width_check
    python tools/mup/width_check.py runs/sweep --where lr=0.0078125 --smooth mean:5

Writes OUT.png, OUT.csv (one row per comparison and step) and OUT.json (for tools/scaling/report.py). The noise is the
seed noise, pooled over neighbouring steps; the error rate of a comparison is 5 % over all its steps. The exit code is
1 if a wider muP model is worse than the next narrower one at any step beyond noise. SP is shown as well; it decides
the exit code only without muP runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.command_help import command_parser
from muneox.analysis.families import LEARNING_RATES, WIDTH, family
from muneox.analysis.plotting import new_figure, save, width_colours
from muneox.analysis.width_check import Comparison, WidthCheck, width_check
from muneox.arguments import add_run_arguments, chosen_runs
from muneox.output import write_csv, write_json
from muneox.runs import Smoothing


def draw(result: WidthCheck, path: Path) -> None:
    """Draw the curves (top), and each width minus the next narrower one with the noise margin (bottom)."""
    names = list(dict.fromkeys(c.parametrization for c in result.comparisons))
    colours = width_colours([curve.width for curve in result.curves])
    figure, axes = new_figure(len(names), rows=2, height=3.4)
    for i, name in enumerate(names):
        top, bottom = axes[i], axes[len(names) + i]
        for curve in (curve for curve in result.curves if curve.parametrization == name):
            mean = curve.seed is None
            style: dict[str, Any] = (
                {"linewidth": 1.8, "label": str(curve.width)} if mean else {"linewidth": 0.6, "alpha": 0.4}
            )
            top.plot(curve.steps, curve.values, color=colours[curve.width], **style)
        judged = [c for c in result.comparisons if c.parametrization == name]
        for comparison in judged:
            _draw_difference(bottom, comparison, colours[comparison.wide])
        worse = sum(not comparison.passed for comparison in judged)
        top.set_title(
            f"{name}: {f'wider is worse in {worse} comparisons' if worse else 'wider is not worse beyond noise'}",
            fontsize=10,
        )
        top.legend(title="width", fontsize=8)
        bottom.legend(title="wide - narrow", fontsize=8)
        bottom.axhline(0, color="black", linewidth=0.8)
        bottom.set_xlabel("step")
        for ax in (top, bottom):
            ax.grid(alpha=0.25)
    axes[0].set_ylabel(f"{result.metric} [nats/token]")
    axes[len(names)].set_ylabel("difference [nats/token]")
    save(figure, path)


def _draw_difference(ax: Any, comparison: Comparison, colour: Any) -> None:
    steps, difference = np.array(comparison.steps), np.array(comparison.difference)
    margin = np.array(comparison.margin)
    ax.plot(steps, difference, color=colour, label=f"{comparison.wide} - {comparison.narrow}")
    ax.fill_between(steps, difference - margin, difference + margin, color=colour, alpha=0.15, linewidth=0)
    worse = np.isin(steps, comparison.worse)
    ax.plot(steps[worse], difference[worse], "v", color="red", markersize=5)


def rows(result: WidthCheck) -> list[dict[str, Any]]:
    """One row per comparison and step."""
    return [
        {
            "parametrization": c.parametrization,
            "narrow": c.narrow,
            "wide": c.wide,
            "step": step,
            "difference": difference,
            "standard_error": error,
            "noise_margin": margin,
            "verdict": "worse" if step in c.worse else "better" if step in c.better else "within noise",
        }
        for c in result.comparisons
        for step, difference, error, margin in zip(c.steps, c.difference, c.error, c.margin)
    ]


def main(input_args: Sequence[str] | None = None) -> int:
    """Run the check. Returns the exit code: 0 if wider is never worse, otherwise 1."""
    parser = command_parser(__doc__, "`muneox predict-loss RUNS --y valid/loss` predicts a larger model.")
    add_run_arguments(parser)
    parser.add_argument("--metric", default="train/loss", help="default: %(default)s")
    parser.add_argument("--width-key", default=WIDTH, help="configuration key of the width (default: %(default)s)")
    parser.add_argument(
        "--smooth", default="none", help="none, mean:20, median:20, ema:20 logged points (default: none)"
    )
    parser.add_argument("--from-step", type=int, help="ignore earlier steps (default: the warm-up)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="nats by which wider can be worse beyond noise")
    parser.add_argument("--out", type=Path, default=Path("width_check"), help="prefix of the output files")
    options = parser.parse_args(input_args)
    smoothing = Smoothing.parse(options.smooth)
    members = family(
        chosen_runs(options), "a width check", width_key=options.width_key, also_alike=(LEARNING_RATES[0], "lr")
    )
    result = width_check(
        members, options.metric, smoothing=smoothing, from_step=options.from_step, tolerance=options.tolerance
    )
    out: Path = options.out
    draw(result, out.with_name(out.name + ".png"))
    write_csv(out.with_name(out.name + ".csv"), rows(result))
    write_json(out.with_name(out.name + ".json"), result.as_dict())
    print("\n".join([*result.verdicts, *(f"warning: {text}" for text in result.warnings)]))
    outcome = "PASS" if result.passed else "FAIL"
    print(f"{result.judged}: {outcome}, {result.metric} from step {result.from_step}, {result.smoothing}")
    print(f"written: {out}.png, {out}.csv, {out}.json")
    return int(not result.passed)

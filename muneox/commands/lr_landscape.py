"""Learning-rate landscape: final loss over learning rate for each width, in muP and SP, and the drift of the basin.

    python tools/mup/lr_landscape.py runs/sweep --out runs/lr_landscape
    python tools/mup/lr_landscape.py ./wandb --metric valid/loss --at-step 2000 --where num_layers=4
    python tools/mup/lr_landscape.py entity/project --group sweep-3

Writes OUT.png, OUT.csv (one row per run) and OUT.json (for tools/scaling/report.py). Prints each width's minimum with
its 95 % interval from seed noise, and the drift in octaves per doubling of the width. Diverged runs are kept and
marked. With `--max-drift 0.15` the exit code is 1 if muP's basin moves more than that, or if its drift is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from megatron.command_help import command_parser
from muneox.analysis.families import WIDTH, default_metric, family
from muneox.analysis.lr_landscape import Basin, Landscape, landscape
from muneox.analysis.plotting import new_figure, save, width_colours
from muneox.arguments import add_run_arguments, chosen_runs
from muneox.output import write_csv, write_json


def draw(result: Landscape, path: Path) -> None:
    """Draw one panel per parametrization: seeds as dots, their means as lines, minima as stars with intervals."""
    names = list(dict.fromkeys(point.parametrization for point in result.points))
    colours = width_colours([point.width for point in result.points])
    figure, axes = new_figure(len(names))
    low, ceiling = result.loss_range
    for ax, name in zip(axes, names):
        for basin in (basin for basin in result.basins if basin.parametrization == name):
            _draw_width(ax, result, basin, colours[basin.width], ceiling)
        drift = next(drift for drift in result.drifts if drift.parametrization == name)
        ax.set_title(f"{name}: {drift.summary}", fontsize=10)
        ax.set_xscale("log", base=2)
        ax.set_xlabel("learning rate")
        ax.legend(fontsize=8, title="width")
        ax.grid(alpha=0.25)
    margin = 0.06 * (ceiling - low)
    axes[0].set_ylim(low - margin, ceiling + 2.5 * margin)
    axes[0].set_ylabel(f"{result.metric} at step {result.step} [nats/token]")
    save(figure, path)


def _draw_width(ax: Any, result: Landscape, basin: Basin, colour: Any, ceiling: float) -> None:
    points = [p for p in result.points if (p.parametrization, p.width) == (basin.parametrization, basin.width)]
    good = [(p.lr, p.loss) for p in points if p.status == "ok" and p.loss is not None]
    bad = [p.lr for p in points if p.status != "ok"]
    rates = sorted({lr for lr, _ in good})
    means = [mean(loss for lr, loss in good if lr == rate) for rate in rates]
    ax.plot(*zip(*good), ".", color=colour, alpha=0.45, markersize=5)
    ax.plot(bad, [ceiling] * len(bad), "x", color=colour, markersize=7)
    ax.plot(rates, means, "-", color=colour, linewidth=1.6, label=f"{basin.width}")
    best = 2.0**basin.log2_lr
    if basin.low is not None and basin.high is not None:
        spread = [[best - 2.0**basin.low], [2.0**basin.high - best]]
        ax.errorbar(best, basin.loss, xerr=spread, color=colour, capsize=3)
    style = {"markersize": 12, "markeredgecolor": "black", "markerfacecolor": "white" if basin.edge else colour}
    ax.plot(best, basin.loss, "*", **style)


def table(result: Landscape) -> str:
    """Table of the minima by width, followed by verdicts and warnings."""
    lines = [
        f"{'':6} {'width':>6} {'best lr':>10} {'minimum, log2':>14} {'95 % interval':>17} {'loss':>8} {'seeds':>5}"
    ]
    for b in result.basins:
        interval = "" if b.low is None or b.high is None else f"[{b.low:+.2f}, {b.high:+.2f}]"
        edge = f"  at the edge: {b.edge}" if b.edge else ""
        lines.append(
            f"{b.parametrization:6} {b.width:6d} {b.best_lr:10.3g} {b.log2_lr:+14.2f} {interval:>17} {b.loss:8.4f} "
            f"{b.seeds:5d}{edge}"
        )
    lines += [drift.verdict for drift in result.drifts]
    best = {name: min(b.loss for b in result.basins if b.parametrization == name) for name in result.noise}
    if len(best) > 1:
        lines.append("lowest loss: " + ", ".join(f"{name} {loss:.4f}" for name, loss in best.items()))
    return "\n".join([*lines, *(f"warning: {text}" for text in result.warnings)])


def main(input_args: Sequence[str] | None = None) -> int:
    """Analyse the runs. Returns the exit code: 1 if --max-drift is given and exceeded, otherwise 0."""
    parser = command_parser(__doc__, "`muneox report --lr-landscape OUT.json` shows it in the report.")
    add_run_arguments(parser)
    parser.add_argument("--metric", help="the loss (default: valid/loss, or train/loss if a run lacks it)")
    parser.add_argument("--at-step", type=int, help="step whose loss is used (default: the last)")
    parser.add_argument("--width-key", default=WIDTH, help="configuration key of the width (default: %(default)s)")
    parser.add_argument("--lr-key", help="configuration key of the learning rate (default: optimizer.params.lr or lr)")
    parser.add_argument("--out", type=Path, default=Path("lr_landscape"), help="prefix of the output files")
    parser.add_argument("--max-drift", type=float, help="limit of the drift of muP's basin, in octaves per doubling")
    options = parser.parse_args(input_args)
    runs = chosen_runs(options)
    members = family(runs, "a learning-rate landscape", width_key=options.width_key, lr_key=options.lr_key)
    metric = options.metric or default_metric(runs)
    result = landscape(members, metric, options.at_step, max_drift=options.max_drift)
    out: Path = options.out
    draw(result, out.with_name(out.name + ".png"))
    write_csv(out.with_name(out.name + ".csv"), [asdict(point) for point in result.points])
    write_json(out.with_name(out.name + ".json"), result.as_dict())
    print(table(result))
    print(f"written: {out}.png, {out}.csv, {out}.json")
    return int(options.max_drift is not None and not result.passed)

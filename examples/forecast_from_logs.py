"""Forecast the loss of a larger model from runs that you have: tables, wandb, TensorBoard or metrics.jsonl.

    python examples/forecast_from_logs.py

The cells (# %%) run in Jupyter, VS Code and Spyder too. By default they read examples/ladder.csv, the losses that
`benchmarks/own_ladder.py` measured: one row per width, mean of three seeds. The fit does not see the widest model.
Change the first cell for your runs. The same on the command line: `python tools/scaling/predict_loss.py`.
"""

# %% The runs: files, folders or globs, such as ["./wandb"], ["entity/project"], ["runs/*/metrics.jsonl"].
from __future__ import annotations

from pathlib import Path

from muneox.scaling import Selection, forecast_size, read_points
from muneox.scaling.picture import draw

SOURCES = ["examples/ladder.csv"]
SIZE, LOSS = "params", "loss"  # columns of the table, or configuration value and metric of the runs
TARGET = 9_720_320  # size of the large model
PICTURE = Path("runs/forecast_from_logs.png")

# %% Read them. Runs of different recipes or corpora are an error that names the difference.
points, warnings = read_points(SOURCES, Selection(SIZE, LOSS))
for point in points:
    print(f"{point.name:24} {point.x:12,.0f}  {point.y:.4f}")
print(*(f"warning: {warning}" for warning in warnings), sep="\n")

# %% Fit L = a N^b + c to the runs below the target. Seeds of one size give the noise.
forecast = forecast_size(points, [TARGET], fit_below=TARGET / 1.5, names=(SIZE, LOSS))
[target] = forecast.targets
found = target.predicted
print(f"{TARGET:,} parameters: {found.value:.3f}, {found.level:.0%} interval {found.low:.3f} to {found.high:.3f}")
print(f"the target is {target.extrapolation:.1f} times the largest run that was fitted")
print(*(f"warning: {warning}" for warning in forecast.warnings), sep="\n")

# %% How well does the law predict the largest of these runs from the smaller ones?
for run in forecast.held_out:
    print(f"from {run.sizes} sizes: {run.predicted.value:.4f}, actual {run.actual:.4f}, error {run.error:+.2%}")

# %% Compare, if the large model has been trained, and draw.
if target.actual is not None:
    side = "inside" if target.actual in found else "OUTSIDE"
    print(f"actual {target.actual:.3f}, {side} the interval, error {found.value / target.actual - 1:+.2%}")
draw(forecast, PICTURE)
print(f"written: {PICTURE}")

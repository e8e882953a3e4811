"""Families of runs with known minima and curves, as runs and as metrics.jsonl files."""

from __future__ import annotations

import json

import numpy as np

from muneox.runs import Run, Series


def config(width, lr, seed, use_mup=True, iters=100, corpus="a" * 64, **changes):
    own = {"train_iters": iters, "seed": seed, "use_mup": use_mup, "data_path": "data/x", "warmup": 0.05, **changes}
    return {
        "config": {**own, "optimizer": {"params": {"lr": lr}}},
        "corpus": {"bytes": 1000, "sha256": corpus},
        "model": {"hidden_size": width, "params": 12 * width * width},
        "train_batch_size": 8,
        "seq_length": 32,
    }


def curve(final, steps, start=5.0):
    """Parabola that falls from `start` to `final`."""
    x = np.asarray(steps) / max(steps)
    return start + (final - start) * (1 - (1 - x) ** 2)


def run(width, lr, seed=1, final=2.0, steps=(1, 25, 50, 75, 100), values=None, **options):
    values = curve(final, steps) if values is None else values
    kind = "mup" if options.get("use_mup", True) else "sp"
    name = f"{kind}-w{width}-lr{lr:g}-s{seed}"
    loss = Series.of(steps, values)
    series = {"train/loss": loss, "valid/loss": Series.of(steps[-1:], values[-1:])}
    return Run(name, f"{name}/metrics.jsonl", config(width, lr, seed, **options), series)


def sweep(minimum, widths=(64, 128, 256), log2_lrs=range(-11, -3), seeds=(1, 2, 3), noise=0.0, use_mup=True, draw=None):
    """Runs whose loss is a parabola in log2 lr with its minimum at `minimum(width)`."""
    draw = np.random.default_rng(0) if draw is None else draw
    runs = []
    for width in widths:
        for x in log2_lrs:
            for seed in seeds:
                final = 2.5 - 0.1 * np.log2(width / 64) + 0.05 * (x - minimum(width)) ** 2 + noise * draw.normal()
                runs.append(run(width, 2.0**x, seed, min(final, 4.9), use_mup=use_mup))
    return runs


def write(runs, folder):
    """Write runs in the trainer's format."""
    for one in runs:
        path = folder / one.name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        steps = sorted({int(step) for series in one.series.values() for step in series.steps})
        lines = [one.config]
        for step in steps:
            record = {"step": step}
            for name, series in one.series.items():
                for value in series.values[series.steps == step]:
                    record |= {name: value} if np.isfinite(value) else {name: None, f"{name}_nonfinite": str(value)}
            lines.append(record)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder

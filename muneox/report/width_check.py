"""The report's section on the width check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muneox.report.content import DASHES, Entry, Figure, Section, Status, Table, colour, label, load, number

FEW = 40  # curves with at most this many points have markers
MAKER = "tools/mup/width_check.py"
LEAD = (
    "The same hyperparameters at several widths. In muP a wider model is at least as good as a narrower one at every "
    "training step. If it is worse by more than the noise of seeds, some parameter is not scaled correctly."
)


def section(path: Path) -> Section:
    """Build the section from the JSON of width_check.py."""
    content = load(path, ("curves", "comparisons", "verdicts", "passed", "judged", "metric"), MAKER)
    names = list(dict.fromkeys(comparison["parametrization"] for comparison in content["comparisons"]))
    figures = [figure for name in names for figure in (_curves(content, name), _differences(content, name))]
    headline = ". ".join(verdict for verdict in content["verdicts"] if verdict.startswith(content["judged"]))
    if content["passed"]:
        judged = [c for c in content["comparisons"] if c["parametrization"] == content["judged"]]
        steps = len({step for c in judged for step in c["steps"]})
        headline = f"Wider is never worse beyond the noise of seeds: {len(judged)} pairs of widths, {steps} steps"
    others = [verdict for verdict in content["verdicts"] if not verdict.startswith(content["judged"])]
    lead = LEAD + (f" For comparison: {'; '.join(others)}." if others else "")
    status: Status = "pass" if content["passed"] else "fail"
    blocks: tuple[Figure | Table, ...] = (*figures, _table(content))
    return Section("width-check", "Width check", status, headline, lead, blocks, tuple(content.get("warnings", ())))


def _curves(content: Mapping[str, Any], name: str) -> Figure:
    widths = sorted({curve["width"] for curve in content["curves"]})
    data = []
    for curve in (curve for curve in content["curves"] if curve["parametrization"] == name):
        i, mean = widths.index(curve["width"]), curve["seed"] is None
        style = {
            "color": colour(i) if mean else f"{colour(i)}/0.35",
            "width": 2.5 if mean else 1,
            "dash": DASHES[i % 4],
        }
        text = f"width {curve['width']}" + (", mean of seeds" if mean else f": {curve['run']}")
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if mean and len(curve["steps"]) <= FEW else "lines",
                "name": f"width {curve['width']}",
                "legendgroup": str(curve["width"]),
                "showlegend": mean,
                "x": curve["steps"],
                "y": curve["values"],
                "line": style if mean else {**style, "dash": "solid"},
                "hovertemplate": f"{text}<br>step %{{x}}<br>%{{y:.4f}}<extra></extra>",
            }
        )
    return Figure(
        f"curves-{name.lower()}",
        f"{name}: training curves",
        f"{name}: {content['metric']} over the steps for widths {', '.join(map(str, widths))}, {content['smoothing']}.",
        data,
        {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": label(content["metric"])}}},
        caption=f"Thick: mean over seeds; thin: single runs. {content['smoothing'].capitalize()}.",
        half=True,
    )


def _differences(content: Mapping[str, Any], name: str) -> Figure:
    widths = sorted({curve["width"] for curve in content["curves"]})
    data: list[dict[str, Any]] = []
    judged = [comparison for comparison in content["comparisons"] if comparison["parametrization"] == name]
    for c in judged:
        shade, text = colour(widths.index(c["wide"])), f"{c['wide']} − {c['narrow']}"
        pairs = [
            (s, d, m) for s, d, m in zip(c["steps"], c["difference"], c["margin"]) if d is not None and m is not None
        ]
        steps = [step for step, _, _ in pairs]
        edge = [d + m for _, d, m in pairs] + [d - m for _, d, m in reversed(pairs)]
        common = {"type": "scatter", "legendgroup": text}
        band = {
            "x": steps + steps[::-1],
            "y": edge,
            "fill": "toself",
            "fillcolor": f"{shade}/0.15",
            "line": {"width": 0},
        }
        data.append({**common, **band, "mode": "lines", "hoverinfo": "skip", "showlegend": False})
        line = {"color": shade, "width": 2, "dash": DASHES[widths.index(c["wide"]) % 4]}
        hover = f"{text}<br>step %{{x}}<br>%{{y:+.4f}}<extra></extra>"
        curve = {"x": c["steps"], "y": c["difference"], "name": text, "line": line, "hovertemplate": hover}
        data.append({**common, **curve, "mode": "lines"})
        worse = [(s, d) for s, d in zip(c["steps"], c["difference"]) if s in set(c["worse"]) and d is not None]
        marks = {"symbol": "triangle-down", "size": 9, "color": "$bad"}
        hover = f"{text}<br>step %{{x}}<br>%{{y:+.4f}}: worse beyond noise<extra></extra>"
        points = {"x": [s for s, _ in worse], "y": [d for _, d in worse], "marker": marks, "hovertemplate": hover}
        data.append({**common, **points, "mode": "markers", "showlegend": False})
    worse_count = sum(len(c["worse"]) for c in judged)
    return Figure(
        f"differences-{name.lower()}",
        f"{name}: each width minus the next narrower",
        f"{name}: differences of loss between neighbouring widths over the steps; below zero the wider one is better. "
        f"{worse_count} points are worse beyond noise.",
        data,
        {
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"title": {"text": "difference [nats per token]"}, "zeroline": True, "zerolinewidth": 2},
        },
        caption="Below zero the wider model is better. Bands: noise of seeds.",
        toggles=("x",),
        half=True,
    )


def _table(content: Mapping[str, Any]) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for c in content["comparisons"]:
        known = [value for value in c["difference"] if value is not None]
        rows.append(
            (
                c["parametrization"],
                number(c["narrow"], ".0f"),
                number(c["wide"], ".0f"),
                number(len(c["steps"]), ".0f"),
                number(len(c["better"]), ".0f"),
                number(len(c["worse"]), ".0f"),
                number(c["difference"][-1], "+.4f"),
                number(max(known, default=None), "+.4f"),
                "paired" if c["paired"] else "not paired",
            )
        )
    head = (
        "parametrization",
        "narrow",
        "wide",
        "steps",
        "better",
        "worse",
        "difference at the end",
        "largest",
        "seeds",
    )
    return Table("Comparisons of neighbouring widths", head, rows)

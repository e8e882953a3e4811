"""How far forecasts were off on published runs, by law and distance, for readers of a new forecast.

track_record.json is written by `benchmarks/published_runs.py --data DIR --json`: hold-outs of ten data sets, each
predicted with constants that the others chose.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("track_record.json")
ROWS = {"size": "size", "compute": "compute", "isoflop": "compute", "surface": "surface, any run"}
FACTORS = (3, 10, 30, 100)
FEWEST = 10  # targets of a cell; a distance with fewer gets the next smaller distance
LEVEL = 0.9


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def track_record(law: str, extrapolation: float, level: float = LEVEL) -> str:
    """A sentence about published forecasts at a similar distance; empty for other laws, levels and targets inside.

    extrapolation: the target's compute, or size at equal tokens, as a multiple of the largest fitted one.
    """
    if law not in ROWS or extrapolation <= 1 or level != LEVEL:
        return ""
    nearest = min(FACTORS, key=lambda factor: abs(math.log(extrapolation / factor)))
    for factor in sorted((f for f in FACTORS if f <= nearest), reverse=True):
        cell = _table().get(f"{ROWS[law]} {factor}")
        if cell is not None and cell["targets"] >= FEWEST:
            middle, far = cell["errors"]["predictor"]
            return (
                f"on published runs, forecasts with this law about {factor} times beyond the fitted compute were off "
                f"by {middle:.1%} in the median and by {far:.1%} in one of ten, and {cell['coverage']:.0%} of the 90 % "
                f"intervals held ({cell['targets']:.0f} targets)"
            )
    return ""

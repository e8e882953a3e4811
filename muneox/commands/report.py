"""One HTML page with coordinate check, audit, learning-rate landscape, width check, ladder and forecast.

    python tools/scaling/report.py --coord-check runs/check/coord_check.0.json --audit audit.json \\
        --lr-landscape lr_landscape.json --width-check width_check.json --forecast forecast.json --out report.html

Each part is optional. The page is self-contained and needs no network. Its inputs are the files that the tools write:
`coord-check: true` (the CSV next to the JSON is read too), `tools/mup/audit.py CONFIG... --json audit.json`,
`tools/mup/lr_landscape.py`, `tools/mup/width_check.py`, and `tools/scaling/predict_loss.py --json` or `--save`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import megatron
from megatron.errors import ConfigError, DataError, refusing
from megatron.files import read_json
from muneox.output import write_atomically
from muneox.report import audit, coord_check, forecast, lr_landscape, width_check
from muneox.report.content import Section
from muneox.report.html import render


def build(options: argparse.Namespace) -> tuple[list[Section], dict[str, Any]]:
    """Build the requested sections in the order of the page. Returns them with the JSON of their inputs."""
    sections: list[Section] = []
    inputs: dict[str, Any] = {}
    makers = {
        "coord_check": coord_check.section,
        "audit": audit.section,
        "lr_landscape": lr_landscape.section,
        "width_check": width_check.section,
    }
    for name, make in makers.items():
        path: Path | None = getattr(options, name)
        if path is not None:
            with refusing(f"{path} is not the file that --{name.replace('_', '-')} reads", DataError):
                sections.append(make(path))
            inputs[name] = read_json(path)
    if options.forecast:
        with refusing(f"--forecast: not all of {', '.join(map(str, options.forecast))} are forecasts", DataError):
            sections.append(forecast.section(options.forecast))
        inputs["forecast"] = [read_json(path) for path in options.forecast]
    if not sections:
        raise ConfigError("nothing to report: give --coord-check, --audit, --lr-landscape, --width-check or --forecast")
    return sections, inputs


def main(input_args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coord-check", type=Path, metavar="JSON", help="coord_check.<rank>.json")
    parser.add_argument("--audit", type=Path, metavar="JSON", help="output of tools/mup/audit.py --json")
    parser.add_argument("--lr-landscape", type=Path, metavar="JSON")
    parser.add_argument("--width-check", type=Path, metavar="JSON")
    parser.add_argument(
        "--forecast", type=Path, nargs="+", default=[], metavar="JSON", help="one forecast, or several to compare"
    )
    parser.add_argument("--title", default="muP report")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    options = parser.parse_args(input_args)
    sections, inputs = build(options)
    subtitle = "From a checked parametrization and a tuned proxy to a forecast of the large model."
    footer = (
        f"muNeoX {megatron.__version__}, {datetime.now():%Y-%m-%d %H:%M}. Numbers in tables are rounded; a copy of "
    )
    footer += "the inputs in full precision is embedded in the page."
    write_atomically(options.out, render(sections, inputs, options.title, subtitle, footer))
    print(f"written: {options.out} ({options.out.stat().st_size / 1e6:.1f} MB, {len(sections)} sections)")

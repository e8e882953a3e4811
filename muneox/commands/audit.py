"""Static audit: measure the model and the optimizer of a configuration, and compare with what its keys must give.

    python tools/mup/audit.py configs/mup/target.yml configs/local_setup.yml --json audit.json

The audit measures the multipliers of every layer, forward and backward, the initial weights, the groups over
the schedule, and two updates of the weights with a known gradient. The expected values come from a second table, which
shares no code with the model. The exit code is 1 if a measured value departs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import audit_config
from muneox.analysis.audit import MEASURES, as_dict, measure_text, one_per_kind, shape_text, summary, verdict
from muneox.arguments import config_parser
from muneox.output import write_json


def _show(content: dict[str, Any], console: Console, brief: bool) -> None:
    table = Table("parameter", "role", "shape", "base", "r", *MEASURES, "verdict", title="parameters, as measured")
    for row in one_per_kind(content["parameters"]) if brief else content["parameters"]:
        sizes = (shape_text(row["shape"]), shape_text(row["base_shape"]), f"{row['fan_in_mult']:g}")
        cells = [_marked(measure_text(row, measure), measure in row["departures"]) for measure in MEASURES]
        table.add_row(row["name"], row["role"], *sizes, *cells, _marked(verdict(row), bool(row["departures"])))
    console.print(table)
    factors = Table("forward factor", "rule", "measured", "verdict", title="forward factors")
    for row in content["factors"]:
        values = (f"{row[key]['forward']:.6g}" for key in ("expected", "measured"))
        factors.add_row(row["name"], *values, _marked(verdict(row), bool(row["departures"])))
    console.print(factors)
    for note in content["notes"]:
        console.print(f"note: {note}")
    console.print(f"audit: {summary(content)}")


def _marked(text: str, departs: bool) -> str:
    return f"[red]{text}[/red]" if departs else text


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Audit the configured model. Returns the exit code."""
    parser = config_parser(__doc__, following="`muneox train CONFIG... --coord-check` checks it in training.")
    parser.add_argument("--brief", action="store_true", help="one row for the same parameter of all blocks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the audit as JSON, for the report")
    options, rest = parser.parse_known_args(input_args)
    neox_args = NeoXArgs.consume_neox_args(overwrite_values, rest)
    config = audit_config(neox_args)
    from megatron.audit.run import run_audit
    from megatron.initialize import start_worker

    runtime = start_worker(config.launch, config.engine.layout, config.seed)
    audit = run_audit(config, runtime)
    if not runtime.is_first:
        return int(not audit.passed)
    content = as_dict(audit)
    _show(content, Console(width=None if sys.stdout.isatty() else 160), options.brief)
    if options.json:
        write_json(options.json, content)
    return int(not audit.passed)

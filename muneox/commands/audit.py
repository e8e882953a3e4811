"""Static audit: every parameter's role, shapes, r, and its init std, lr, eps, weight decay against the rule.

    python tools/mup/audit.py configs/mup/target.yml configs/local_setup.yml

`--brief` shows one row for all blocks. Exit code 1 if something that was measured departs from its rule.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from megatron.neox_arguments import NeoXArgs

if TYPE_CHECKING:
    from megatron.training.audit_run import ModelAudit
    from mup.static_audit import AuditRow

MEASURES = ("init_std", "lr", "eps", "weight_decay")


def _cell(expected: float | None, measured: float | None, departs: bool) -> str:
    if measured is None or expected is None:
        return "-"  # SGD has no eps
    return f"[red]{measured:.4g}, rule {expected:.4g}[/red]" if departs else f"{measured:.4g}"


def _alike(row: AuditRow) -> tuple[object, ...]:
    """Rows of one kind: the same parameter of every block, as long as it passes."""
    return re.sub(r"\.\d+\.", ".*.", row.name), row.departures


def _verdict(row: AuditRow) -> str:
    return "ok" if row.passed else "[red]DEPARTS[/red]: " + ", ".join(row.departures)


def _show(audit: ModelAudit, console: Console, brief: bool) -> None:
    table = Table("parameter", "role", "shape", "base", "r", *MEASURES, "verdict", title="parameters, as measured")
    shown = list({_alike(row): row for row in reversed(audit.parameters)}.values())[::-1] if brief else audit.parameters
    for row in shown:
        name = re.sub(r"\.\d+\.", ".*.", row.name) if brief else row.name
        shapes = ["x".join(map(str, shape)) for shape in (row.shape, row.base_shape)]
        cells = [_cell(row.expected.get(m), row.measured.get(m), m in row.departures) for m in MEASURES]
        table.add_row(name, row.role, *shapes, f"{row.fan_in_mult:g}", *cells, _verdict(row))
    console.print(table)
    factors = Table("forward factor", "rule", "measured", "verdict", title="forward factors")
    for row in audit.factors:
        factors.add_row(row.name, f"{row.expected['forward']:.6g}", f"{row.measured['forward']:.6g}", _verdict(row))
    console.print(factors)
    for note in audit.notes:
        console.print(f"note: {note}")


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Audit the configured model; returns the exit code."""
    arguments = list(sys.argv[1:] if input_args is None else input_args)
    brief = "--brief" in arguments
    neox_args = NeoXArgs.consume_neox_args([a for a in arguments if a != "--brief"], overwrite_values)
    from megatron.initialize import initialize_megatron
    from megatron.training.audit_run import run_audit

    audit = run_audit(neox_args, initialize_megatron(neox_args.distributed_backend, neox_args.seed))
    console = Console(width=None if sys.stdout.isatty() else 160)
    _show(audit, console, brief)
    departures = sum(not row.passed for row in audit.rows)
    console.print(f"audit: FAIL, {departures} departures from the rules" if departures else "audit: PASS")
    return int(not audit.passed)

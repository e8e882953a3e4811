"""Static audit: every parameter's role, shapes, r, and its init std, lr, eps, weight decay against the rule.

    python tools/mup/audit.py configs/mup/target.yml configs/local_setup.yml

`--brief` shows one row for all blocks. Exit code 1 if something that was measured departs from its rule.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from megatron.entry import run_script  # noqa: E402
from megatron.neox_arguments import NeoXArgs  # noqa: E402

if TYPE_CHECKING:
    from megatron.parametrization.audit import AuditRow
    from megatron.training.audit_run import Audit

MEASURES = ("init_std", "lr", "eps", "weight_decay")


def _cell(expected: float, measured: float | None, departs: bool) -> str:
    if measured is None:
        return "[red]missing[/red]"
    return f"[red]{measured:.4g}, rule {expected:.4g}[/red]" if departs else f"{measured:.4g}"


def _alike(row: AuditRow) -> tuple[object, ...]:
    """Rows of one kind: the same parameter of every block, as long as it passes."""
    return re.sub(r"\.\d+\.", ".*.", row.name), row.departures


def _show(audit: Audit, console: Console, brief: bool) -> None:
    table = Table("parameter", "role", "shape", "base", "r", *MEASURES, "verdict", title="parameters, as measured")
    shown = list({_alike(row): row for row in reversed(audit.parameters)}.values())[::-1] if brief else audit.parameters
    for row in shown:
        cells = [_cell(row.expected[m], row.measured.get(m), m in row.departures) for m in MEASURES]
        shapes = ["x".join(map(str, shape)) for shape in (row.shape, row.base_shape)]
        verdict = "ok" if row.passed else "[red]DEPARTS[/red]: " + ", ".join(row.departures)
        table.add_row(
            re.sub(r"\.\d+\.", ".*.", row.name) if brief else row.name,
            row.role,
            *shapes,
            f"{row.fan_in_mult:g}",
            *cells,
            verdict,
        )
    console.print(table)
    factors = Table("forward factor", "rule", "measured", "verdict", title="forward factors")
    for factor in audit.factors:
        verdict = "ok" if factor.passed else "[red]DEPARTS[/red]"
        factors.add_row(factor.name, f"{factor.expected:.6g}", f"{factor.measured:.6g}", verdict)
    console.print(factors)
    for name in audit.finite:
        console.print(f"note: {name} has the same fan-in in base and target, so its r is 1: is this meant?")


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
    departures = sum(not row.passed for row in (*audit.parameters, *audit.factors))
    console.print(f"audit: FAIL, {departures} departures from the rules" if departures else "audit: PASS")
    return int(not audit.passed)


if __name__ == "__main__":
    sys.exit(run_script(main))

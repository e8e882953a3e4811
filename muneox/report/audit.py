"""The report's section on the static audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.errors import DataError
from muneox.analysis.audit import MEASURES, measure_text, shape_text, summary, verdict
from muneox.report.content import Cell, Entry, Section, Status, Table, load, number

MAKER = "`tools/mup/audit.py CONFIG... --json FILE`"
LEAD = (
    "Every parameter of the real model with its role, shapes and scale. Scales are measured on the model and the "
    "optimizer that training would use, and compared with the rules of the parametrization."
)


def section(path: Path) -> Section:
    """Build the section from the JSON of `tools/mup/audit.py`. Raises DataError for any other file."""
    content = load(path, ("passed", "parameters", "factors", "notes"), MAKER)
    try:
        parameters, factors = _parameters(content["parameters"]), _factors(content["factors"])
        kinds = _by_role(content["parameters"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not what {MAKER} writes: a row lacks {error}") from error
    counts = f"{len(parameters.rows)} parameters, {len(factors.rows)} forward factors"
    outcome = "all follow the rules" if content["passed"] else summary(content).removeprefix("FAIL, ")
    status: Status = "pass" if content["passed"] else "fail"
    blocks = (kinds, parameters, factors)
    return Section("audit", "Static audit", status, f"{counts}: {outcome}", LEAD, blocks, tuple(content["notes"]))


def _measure(row: Mapping[str, Any], measure: str) -> Cell:
    return Cell(measure_text(dict(row), measure), row["measured"].get(measure))


def _parameters(rows: Sequence[Mapping[str, Any]]) -> Table:
    entries: list[tuple[Entry, ...]] = [
        (
            row["name"],
            row["role"],
            shape_text(row["shape"]),
            shape_text(row["base_shape"]),
            number(row["fan_in_mult"], "g"),
            *(_measure(row, measure) for measure in MEASURES),
            verdict(dict(row)),
        )
        for row in rows
    ]
    head = ("parameter", "role", "shape", "base", "r", *MEASURES, "verdict")
    return Table("parameters, as measured", head, entries, folded=True)


def _factors(rows: Sequence[Mapping[str, Any]]) -> Table:
    entries: list[tuple[Entry, ...]] = [
        (row["name"], *(number(row[key]["forward"], ".6g") for key in ("expected", "measured")), verdict(dict(row)))
        for row in rows
    ]
    return Table("forward factors", ("forward factor", "rule", "measured", "verdict"), entries, folded=True)


def _by_role(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Count the parameters by role and scale."""
    measures = ("lr", "eps", "weight_decay")
    counts = Counter(
        (
            str(row["role"]),
            f"{row['fan_in_mult']:g}",
            *(measure_text(dict(row), measure) for measure in measures),
            verdict(dict(row)),
        )
        for row in rows
    )
    entries: list[tuple[Entry, ...]] = [(kind[0], str(count), *kind[1:]) for kind, count in counts.items()]
    return Table("Parameters by role and scale", ("role", "parameters", "r", *measures, "verdict"), entries)

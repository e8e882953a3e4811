"""The static audit's section, from what `tools/mup/audit.py` prints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from megatron.errors import DataError
from muneox.report.content import Entry, Section, Status, Table

MAKER = "`python tools/mup/audit.py CONFIG... > FILE`"
BORDERS = re.compile(r"[│┃]")
LEAD = (
    "Every parameter of the real model with its role, shapes and scale, measured on the model and the optimizer that "
    "would train, beside the rule of the parametrization."
)


def section(path: Path) -> Section:
    """Raises DataError for a file that holds no audit."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    tables = _printed_tables(text)
    verdict = re.search(r"^audit: (PASS|FAIL.*)$", text, re.MULTILINE)
    if verdict is None or not tables:
        raise DataError(f"{path} is not what {MAKER} writes: no line `audit: PASS` or `audit: FAIL`")
    notes = tuple(
        " ".join(note.split()) for note in re.findall(r"^note: (.*(?:\n(?!note: |audit: ).+)*)", text, re.MULTILINE)
    )
    status: Status = "pass" if verdict[1] == "PASS" else "fail"
    counts = ", ".join(f"{len(table.rows)} {table.caption.split(',')[0]}" for table in tables)
    said = "all as the rules say" if status == "pass" else verdict[1].removeprefix("FAIL, ")
    return Section("audit", "Static audit", status, f"{counts}: {said}", LEAD, (*_by_role(tables[0]), *tables), notes)


def _printed_tables(text: str) -> list[Table]:
    """Tables as rich draws them: a title, a head between heavy bars, rows whose cells may go on in the next line."""
    found: list[Table] = []
    previous = ""
    for line in text.splitlines():
        cells = tuple(cell.strip() for cell in BORDERS.split(line)[1:-1])
        if "┏" in line:
            found.append(Table(previous.strip(), (), [], folded=True))
        elif cells and found:
            table = found[-1]
            if "┃" in line:
                head = _joined(table.head, cells) if table.head else cells
                found[-1] = Table(table.caption, head, table.rows, folded=True)
            elif table.rows and not cells[1]:  # the first and the second column always say something in a new row
                table.rows[-1] = _joined(tuple(str(cell) for cell in table.rows[-1]), cells)
            else:
                table.rows.append(cells)
        previous = line if line.strip() else previous
    return [table for table in found if table.rows]


def _joined(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{a} {b}".strip() if a and b else a or b for a, b in zip(first, second))


def _by_role(parameters: Table) -> tuple[Table, ...]:
    """How many parameters of each role have which scales; nothing for a table without these columns."""
    columns = ("role", "r", "lr", "eps", "weight_decay", "verdict")
    if not set(columns) <= set(parameters.head):
        return ()
    places = [parameters.head.index(name) for name in columns]
    counts = Counter(tuple(str(row[i]) for i in places) for row in parameters.rows)
    rows: list[tuple[Entry, ...]] = [(kind[0], str(count), *kind[1:]) for kind, count in counts.items()]
    return (Table("Parameters by role and scale", ("role", "parameters", *columns[1:]), rows),)

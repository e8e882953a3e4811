"""Renders the report as one self-contained HTML file with Plotly inlined and full-precision numbers in tables."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from megatron.optional import import_optional
from muneox.output import finite_or_none
from muneox.report.content import Cell, Figure, Section, Table, Text

_RIGHT = ' class="n"'
BADGES = {"pass": "✓ PASS", "fail": "✗ FAIL", "warn": "▲ CHECK", "note": "● NOTE"}
# The page contains everything it needs, and this policy forbids the browser to fetch anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"

PAGE = """<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">{refresh}
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<div class="bar"><div><nav aria-label="Sections">{nav}</nav>
<button id="theme" type="button" aria-label="Switch between dark and light">Dark</button></div></div>
<main id="main">
<header>
<h1>{title}</h1>
<p class="muted">{subtitle}</p>
</header>
{hero}
{cards}
<noscript><p>The figures need JavaScript; the tables hold the same numbers.</p></noscript>
{sections}
<footer><p>{footer}</p></footer>
</main>
<script type="application/json" id="report-data">{inputs}</script>
<script type="application/json" id="figures">{figures}</script>
<script>{plotly}</script>
<script>
{script}</script>
</body>
</html>
"""


def render(
    sections: Sequence[Section],
    inputs: dict[str, Any],
    title: str,
    subtitle: str,
    footer: str,
    refresh: float | None = None,
) -> str:
    """Render the page. A forecast that is the first section comes before the overview of the others.

    inputs: the source of its numbers, embedded as JSON. refresh: seconds after which a browser loads the page again.
    Raises ConfigError if plotly is missing.
    """
    here = Path(__file__).parent
    hero, rest = (list(sections[:1]), list(sections[1:])) if sections[0].name == "forecast" else ([], list(sections))
    figures = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    return PAGE.format(
        policy=POLICY,
        refresh="" if refresh is None else f'\n<meta http-equiv="refresh" content="{refresh:g}">',
        title=escape(title),
        subtitle=escape(subtitle),
        style=(here / "style.css").read_text(encoding="utf-8"),
        nav="".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections),
        hero="\n".join(_section(section) for section in hero),
        cards='<ul class="cards">\n' + "\n".join(map(_card, rest)) + "\n</ul>" if rest else "",
        sections="\n".join(map(_section, rest)),
        footer=escape(footer),
        inputs=_embedded(inputs),
        figures=_embedded([_spec(figure) for figure in figures]),
        plotly=_plotly(),
        script=(here / "script.js").read_text(encoding="utf-8"),
    )


def _plotly() -> str:
    script: str = import_optional("plotly.offline", "report", "the report").get_plotlyjs()
    return script.replace("</script", "<\\/script")


def _embedded(value: Any) -> str:
    """JSON for a script element, with `<` escaped so that no text can end the element."""
    return json.dumps(finite_or_none(value), allow_nan=False).replace("<", "\\u003c")


def _spec(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "data": figure.data,
        "layout": figure.layout,
        "views": figure.views,
        "height": figure.height,
    }


def _badge(section: Section) -> str:
    return f'<span class="badge {section.status}">{BADGES[section.status]}</span>'


def _card(section: Section) -> str:
    return (
        f'<li><a href="#{section.name}"><strong>{escape(section.title)}{_badge(section)}</strong>'
        f'<span class="outcome">{escape(section.headline)}</span></a></li>'
    )


def _section(section: Section) -> str:
    parts = [f'<section id="{section.name}" aria-labelledby="{section.name}-title">', '<div class="head">']
    parts += [f'<h2 id="{section.name}-title">{escape(section.title)}</h2>{_badge(section)}</div>']
    parts += [f'<p class="headline">{escape(section.headline)}.</p>', f'<p class="muted">{escape(section.lead)}</p>']
    if section.warnings:
        items = "".join(f"<li>{escape(text)}</li>" for text in section.warnings)
        parts.append(f'<ul class="warnings" aria-label="Warnings">{items}</ul>')
    for half, blocks in itertools.groupby(section.blocks, lambda block: isinstance(block, Figure) and block.half):
        inside = "\n".join(map(_block, blocks))
        parts.append(f'<div class="grid">{inside}</div>' if half else inside)
    return "\n".join([*parts, "</section>"])


def _block(block: Figure | Table | Text) -> str:
    match block:
        case Figure():
            return _figure(block)
        case Table():
            return _table(block)
        case Text():
            text = f'<pre class="sample">{escape(block.text)}</pre>'
            return f'<div class="block"><h3>{escape(block.caption)}</h3>{text}</div>'


def _figure(figure: Figure) -> str:
    name = escape(figure.name)
    tools = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="false" aria-controls="{name}-plot">log {axis}</button>'
        for axis in figure.toggles
    )
    if figure.views:
        chosen = (" selected" if i == figure.opened else "" for i in range(len(figure.views)))
        options = "".join(f"<option{mark}>{escape(label)}</option>" for mark, (label, _) in zip(chosen, figure.views))
        tools = f'<select aria-label="View of: {escape(figure.title)}">{options}</select>' + tools
    tools += '<button type="button" class="reset">whole range</button>'
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    return (
        f'<figure id="{name}" aria-labelledby="{name}-title"><h3 id="{name}-title">{escape(figure.title)}</h3>'
        f'<div class="tools">{tools}</div>'
        f'<div class="plot" id="{name}-plot" role="img" aria-label="{escape(figure.alt)}" '
        f'style="min-height:{figure.height}px"></div>{caption}</figure>'
    )


def _table(table: Table) -> str:
    columns = [
        any(isinstance(entry, Cell) and entry.value is not None for entry in column) for column in zip(*table.rows)
    ]
    numeric = columns or [False] * len(table.head)
    head = "".join(f'<th scope="col"{_RIGHT * right}>{escape(name)}</th>' for name, right in zip(table.head, numeric))
    rows = "\n".join(
        f"<tr>{''.join(_cell(entry, i, numeric[i]) for i, entry in enumerate(row))}</tr>" for row in table.rows
    )
    caption = escape(table.caption)
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table>'
    if table.folded:
        return f'<details class="block"><summary>{caption} ({len(table.rows)})</summary>{scroll}{body}</details>'
    return f'<div class="block"><h3>{caption}</h3>{scroll}{body}</div>'


def _cell(entry: Cell | str, column: int, right: bool) -> str:
    cell = entry if isinstance(entry, Cell) else Cell(entry)
    behind = _RIGHT * right + ("" if cell.value is None else f' data-value="{cell.value!r}"')
    tag, scope = ("th", ' scope="row"') if column == 0 else ("td", "")
    return f"<{tag}{scope}{behind}>{escape(cell.text)}</{tag}>"

"""Write one HTML page: the forecast and its outcome, the search and its cost, and the checks.

    python tools/scaling/report.py --forecast outcome.json --out report.html
    python tools/scaling/report.py --forecast outcome.json --search runs/search --ladder runs/ladder \\
        --target runs/target --coord-check runs/check/coord_check.0.json --width-check width_check.json
    python tools/scaling/report.py --ladder runs/ladder --watch      # while a ladder trains, on http://127.0.0.1:8000

Each part is optional. The page is self-contained and needs no network. Its inputs are the files that the tools write:
`coord-check: true` (the CSV next to the JSON is read too), `tools/mup/audit.py CONFIG... --json audit.json`,
`tools/mup/lr_landscape.py`, `tools/mup/width_check.py`, and `tools/scaling/predict_loss.py --json` or `--save`; and
folders of runs. With --watch the page is served on this machine only, and a browser loads it again every ten seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import megatron
from megatron.command_help import command_parser
from megatron.errors import ConfigError, DataError, refusing
from megatron.files import read_json
from muneox.output import short, write_atomically
from muneox.report import audit, coord_check, forecast, lr_landscape, runs, width_check
from muneox.report.content import Section
from muneox.report.html import render
from muneox.report.serve import server
from muneox.runs import CORPUS, Run, describe_corpus, read_runs
from muneox.scaling.sentence import place

REFRESH = 10.0  # seconds


def build(options: argparse.Namespace) -> tuple[list[Section], dict[str, Any]]:
    """Build the requested sections in the order of the page. Returns them with the JSON of their inputs."""
    sections: list[Section] = []
    inputs: dict[str, Any] = {}
    if options.forecast:
        with refusing(f"--forecast: not all of {', '.join(map(str, options.forecast))} are forecasts", DataError):
            sections.append(forecast.section(options.forecast))
        inputs["forecast"] = [read_json(path) for path in options.forecast]
    of_runs = (options.search, options.ladder, options.target, options.sample)
    if any(of_runs):
        sections.append(runs.section(*of_runs))
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
    if not sections:
        raise ConfigError(
            "nothing to report: give --forecast, --search, --ladder, --coord-check, --audit, --lr-landscape or "
            "--width-check"
        )
    return sections, inputs


def titles(options: argparse.Namespace, inputs: Mapping[str, Any]) -> tuple[str, str]:
    """Title and subtitle: the model, the corpus, the target of the forecast, and the date."""
    run = next(iter(read_runs([str(options.target)])), None) if options.target else None
    content = inputs["forecast"][0] if options.forecast else {}
    targets = content.get("targets") or [None]
    what = None if targets[-1] is None else place(content.get("x", "x"), targets[-1])
    title = options.title or (f"Forecast for {what}" if what else "muP report")
    about = [*([] if run is None else [_model(run)]), *_corpus(run, content)]
    about.append(f"{datetime.now():%-d %B %Y}")
    return title, "; ".join(about)


def _model(run: Run) -> str:
    layers, width, params = (run.number(f"model.{key}") for key in ("num_layers", "hidden_size", "params"))
    known = [f"{layers:g} layers" if layers else "", f"width {width:g}" if width else ""]
    return ", ".join([*filter(None, [f"{short(params)} parameters" if params else "", *known])]) or run.name


def _corpus(run: Run | None, content: Mapping[str, Any]) -> list[str]:
    digest = content.get("corpus") if run is None else run.value(CORPUS)
    path = None if run is None else run.value("data_path")
    found = [str(path)] if path else []
    return [*found, *([f"corpus of {describe_corpus(digest)}"] if digest else [])]


def page(options: argparse.Namespace, refresh: float | None = None) -> str:
    """The page as HTML. refresh: seconds after which a browser loads it again."""
    sections, inputs = build(options)
    title, subtitle = titles(options, inputs)
    footer = (
        f"muNeoX {megatron.__version__}, {datetime.now():%Y-%m-%d %H:%M}. Numbers in tables are rounded; a copy of "
        "the inputs in full precision is embedded in the page."
    )
    return render(sections, inputs, title, subtitle, footer, refresh)


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, "open the page in a browser; README-MUP.md explains its parts.")
    parser.add_argument(
        "--forecast", type=Path, nargs="+", default=[], metavar="JSON", help="one forecast, or several to compare"
    )
    parser.add_argument("--search", type=Path, metavar="DIR", help="folder of a search: its winner and its cost")
    parser.add_argument("--ladder", type=Path, metavar="DIR", help="folder of the ladder's runs: curves and cost")
    parser.add_argument("--target", type=Path, metavar="DIR", help="folder of the target's run: model, corpus, cost")
    parser.add_argument("--sample", type=Path, metavar="FILE", help="text of the model, as generate.py writes it")
    parser.add_argument("--coord-check", type=Path, metavar="JSON", help="coord_check.<rank>.json")
    parser.add_argument("--audit", type=Path, metavar="JSON", help="output of tools/mup/audit.py --json")
    parser.add_argument("--lr-landscape", type=Path, metavar="JSON", help="output of tools/mup/lr_landscape.py")
    parser.add_argument("--width-check", type=Path, metavar="JSON", help="output of tools/mup/width_check.py")
    parser.add_argument("--title", help="default: the size that is forecast")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="default: %(default)s")
    parser.add_argument(
        "--watch", type=int, nargs="?", const=8000, metavar="PORT", help="serve the page here (default port: 8000)"
    )
    return parser


def main(input_args: Sequence[str] | None = None) -> None:
    options = arguments().parse_args(input_args)
    if options.watch is not None:
        with server(lambda: page(options, REFRESH), options.watch, REFRESH) as serving:
            address = f"http://127.0.0.1:{serving.server_port}"
            print(f"the report is on {address}; Ctrl-C ends it", flush=True)
            serving.serve_forever()
    write_atomically(options.out, page(options))
    size = options.out.stat().st_size / 1e6
    print(f"written: {options.out} ({size:.1f} MB); open it in a browser")

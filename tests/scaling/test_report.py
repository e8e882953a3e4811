"""Tests of the report page: its numbers match its inputs, it is self-contained, and a browser draws it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import urllib.request
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron.errors import ConfigError, DataError
from megatron.monitoring.jsonl import JsonlMonitor
from muneox.commands import lr_landscape, report, width_check
from muneox.report import coord_check, html, serve
from muneox.report import lr_landscape as lr_landscape_section
from mup.slopes import Thresholds, verdict
from tests.tools_mup import synthetic

pytestmark = pytest.mark.xdist_group("report")  # the inputs and the browser's page are made once

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "</script><img src=x onerror=alert(1)>&\"'"


def audit_row(name, role, shape, base, r, values, departs=()):
    names = ("init_std", "lr", "eps", "weight_decay")
    measured = dict(zip(names, values))
    expected = {key: 2 * value if key in departs else value for key, value in measured.items()}
    return {
        **{"name": name, "role": role, "shape": shape, "base_shape": base, "fan_in_mult": r},
        **{"measured": measured, "expected": expected, "departures": list(departs)},
    }


MLP = ("hidden", [64, 64], [32, 32], 2.0, (0.03512345, 0.005, 5e-9, 0.2))
AUDIT = {
    "passed": False,
    "parameters": [
        audit_row("embedding.weight", "input", [50, 64], [50, 32], 1.0, (0.05, 0.01, 1e-8, 0.1)),
        audit_row("layers.0.mlp.weight", *MLP, departs=("init_std",)),
        audit_row("layers.1.mlp.weight", *MLP),
        audit_row("layers.2.mlp.weight", *MLP),
    ],
    "factors": [
        {"name": "logits", "role": "forward factor", "shape": [], "base_shape": [], "fan_in_mult": 1.0}
        | {"measured": {"forward": 0.5}, "expected": {"forward": 0.5}, "departures": []}
    ],
    "notes": [f"mlp.odd has the same fan-in in base and target, so its r is 1 {EVIL}"],
}

FORECAST = {
    "law": "size",
    "formula": "L(params) = a params^b + c",
    "x": "params",
    "y": "valid/loss",
    "targets": [
        {"x": 6.7e9, "prediction": 2.51234567, "low": 2.47, "high": 2.55, "level": 0.9, "extrapolation": 12.5}
        | {"actual": 2.5, "relative_error": 0.0049, "inside": True}
    ],
    "parameters": {n: {"value": v, "low": v - 0.1, "high": v + 0.1, "level": 0.9} for n, v in zip("abc", (9, -0.2, 2))},
    "backtest": {
        "mean_absolute_relative_error": 0.004,
        "held_out": [
            {"fitted_sizes": 4, "x": 2e8, "actual": 2.8, "prediction": 2.81, "low": 2.7, "high": 2.9}
            | {"relative_error": 0.0036, "inside": True, "extrapolation": 2.0}
        ],
    },
    "points": {
        "used": [{"name": f"run {i} {EVIL}", "x": 1e6 * 4**i, "y": 4 - 0.3 * i, "source": "x"} for i in range(5)],
        "left_out": [{"name": "gone", "x": 5e6, "y": "nan", "source": "x", "reason": "loss is nan"}],
    },
    "bands": [
        {"name": "", "level": 0.9, "x": [1e6, 1e8, 6.7e9], "median": [4.0, 3.1, 2.51]}
        | {"low": [3.95, 3.05, 2.47], "high": [4.05, 3.15, 2.55]}
    ],
    "warnings": [f"a warning with {EVIL}"],
    "prior": "exponents log-normal, median 0.33",
}


def coord_records(power):
    """Statistics of three modules over four widths and three seeds; those of `mlp` grow as a power of the width."""
    for module, seed in ((m, s) for m in ("embedding", "mlp", "") for s in (1, 2, 3)):
        for width in (64, 128, 256, 512):
            for statistic, t in (("mean_abs", 0), ("rms_delta", 1), ("rms_delta", 4)):
                value = (0.5 + 0.01 * seed) * (width / 64) ** (power if module == "mlp" else 0)
                cell = {"module": module, "width": width, "seed": seed, "t": t, "statistic": statistic}
                yield {**cell, "value": value}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with the tools' files for a small family of runs."""
    folder = tmp_path_factory.mktemp("inputs")
    up, sp = list(coord_records(0.0)), list(coord_records(0.8))
    outcomes = {"up": verdict(up, reference=sp).as_dict(), "sp": verdict(sp).as_dict()}
    (folder / "coord_check.0.json").write_text(json.dumps(outcomes))
    rows = [f"{p},{','.join(str(v) for v in r.values())}" for p, rs in (("up", up), ("sp", sp)) for r in rs]
    (folder / "coord_check.0.csv").write_text("parametrization,module,width,seed,t,statistic,value\n" + "\n".join(rows))
    (folder / "audit.json").write_text(json.dumps(AUDIT))
    (folder / "forecast.json").write_text(json.dumps(FORECAST))
    family = synthetic.sweep(lambda w: -7.3, widths=(64, 128), seeds=(1, 2), noise=0.01)
    family += synthetic.sweep(lambda w: -7.3 - math.log2(w / 64), widths=(64, 128), seeds=(1, 2), use_mup=False)
    family.append(synthetic.run(64, 2.0**-3, values=[5.0, 4.0, 6.0, 7.0, math.nan]))
    runs = str(synthetic.write(family, folder / "runs"))
    lr_landscape.main([runs, "--out", str(folder / "lr")])
    width_check.main([runs, "--where", "lr=0.0078125", "--out", str(folder / "width")])
    return folder


def arguments(folder):
    return [
        *("--coord-check", str(folder / "coord_check.0.json"), "--audit", str(folder / "audit.json")),
        *("--lr-landscape", str(folder / "lr.json"), "--width-check", str(folder / "width.json")),
        *("--forecast", str(folder / "forecast.json"), "--title", f"Report {EVIL}"),
    ]


@pytest.fixture(scope="module")
def page(inputs):
    out = inputs / "report.html"
    report.main([*arguments(inputs), "--out", str(out)])
    return out


class Reader(HTMLParser):
    """Parses a page into elements with attributes, tables as rows of (text, number), and the content of scripts."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables, self.scripts, self.text = [], [], [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append((tag, attributes))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            value = attributes.get("data-value")
            self.tables[-1][-1].append(["", None if value is None else float(value)])

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script":
            self.scripts[attributes.get("id", "")] = data
        elif tag in ("td", "th"):
            self.tables[-1][-1][-1][0] += data
        elif tag not in ("style", "title"):
            self.text += data


def without_scripts(text):
    return re.sub(r"<script>.*?</script>", "", text, flags=re.S)


@pytest.fixture(scope="module")
def read(page):
    return Reader(without_scripts(page.read_text(encoding="utf-8")))


def table(read, *head):
    return [
        [cell for cell in row]
        for rows in read.tables
        for row in rows[1:]
        if [c[0] for c in rows[0]][: len(head)] == [*head]
    ]


def check_numbers(read, inputs):
    """Compare the tables with the JSON files: rounded text in the cells, full precision behind them."""
    landscape = json.loads((inputs / "lr.json").read_text())
    rows = table(read, "parametrization", "width", "best lr tried")
    keys = ("width", "best_lr", "log2_lr", "low", "high", "loss", "seeds")
    assert [[cell[1] for cell in row[1:8]] for row in rows] == [[b[k] for k in keys] for b in landscape["basins"]]
    assert [row[6][0] for row in rows] == [f"{basin['loss']:.4f}" for basin in landscape["basins"]]
    points = table(read, "run", "parametrization", "width", "lr")
    expected = [(p["run"], p["width"], p["lr"], p["seed"], p["loss"], p["status"]) for p in landscape["points"]]
    assert [(r[0][0], r[2][1], r[3][1], r[4][1], r[5][1], r[6][0]) for r in points] == expected
    assert "diverged" in {row[6][0] for row in points}
    widths = json.loads((inputs / "width.json").read_text())
    found = [[row[i][1] for i in range(1, 7)] for row in table(read, "parametrization", "narrow")]
    assert found == [
        [c["narrow"], c["wide"], len(c["steps"]), len(c["better"]), len(c["worse"]), c["difference"][-1]]
        for c in widths["comparisons"]
    ]
    coord = json.loads((inputs / "coord_check.0.json").read_text())
    slopes = [[row[i][1] for i in (3, 4, 5)] for row in table(read, "parametrization", "module")]
    assert slopes == [[r["slope"], r["low"], r["high"]] for short in ("up", "sp") for r in coord[short]["rows"]]
    [target] = table(read, "parameters", "prediction")
    expected = [FORECAST["targets"][0][key] for key in ("x", "prediction", "low", "high", "level", "extrapolation")]
    assert [cell[1] for cell in target[:6]] == expected and target[0][0] == "6.7B" and target[1][0] == "2.5123"
    assert [cell[1] for cell in target[6:8]] == [2.5, 0.0049] and target[8][0] == "inside"
    parameters = table(read, "parameter", "value")
    assert {row[0][0]: row[1][1] for row in parameters} == {"a": 9, "b": -0.2, "c": 2}
    assert "Prior: exponents log-normal, median 0.33." in read.text
    ladder = table(read, "run", "parameters", "validation loss [nats per token]")
    assert [(r[0][0], r[1][1]) for r in ladder[:5]] == [(p["name"], p["x"]) for p in FORECAST["points"]["used"]]
    assert [cell[0] for cell in ladder[5]] == ["gone", "5M", "nan", "left out: loss is nan"]


def test_numbers_in_the_page_match_the_inputs(read, inputs):
    check_numbers(read, inputs)
    embedded = json.loads(read.scripts["report-data"])
    assert embedded["forecast"] == [FORECAST]
    assert embedded["lr_landscape"] == json.loads((inputs / "lr.json").read_text())


def test_numbers_in_the_figures_match_the_inputs(read, inputs):
    figures = {figure["name"]: figure for figure in json.loads(read.scripts["figures"])}
    assert set(figures) == {
        *("coord-slopes", "coord-up", "coord-sp", "landscape-mup", "landscape-sp"),
        *("curves-mup", "differences-mup", "curves-sp", "differences-sp", "ladder"),
    }
    landscape = json.loads((inputs / "lr.json").read_text())
    mine = [p for p in landscape["points"] if p["parametrization"] == "muP" and p["status"] == "ok"]
    drawn = {
        (x, y): run
        for trace in figures["landscape-mup"]["data"]
        for x, y, run in zip(trace["x"], trace["y"], trace.get("customdata", []))
        if isinstance(run, str)
    }
    assert drawn == {(p["lr"], p["loss"]): p["run"] for p in mine}
    traces = {trace["name"]: trace for trace in figures["ladder"]["data"]}
    assert traces["fitted runs"]["y"] == [point["y"] for point in FORECAST["points"]["used"]]
    assert traces["forecast"]["y"] == [2.51234567] and traces["actual"]["y"] == [2.5]
    [band] = FORECAST["bands"]
    assert traces["median"]["x"] == band["x"] and traces["median"]["y"] == band["median"]
    area = traces["90% interval of a new run"]
    assert area["x"] == band["x"] + band["x"][::-1] and area["y"] == band["low"] + band["high"][::-1]


def test_the_audit_table_matches_its_json(read):
    rows = table(read, "parameter", "role")
    assert [row[0][0] for row in rows] == [row["name"] for row in AUDIT["parameters"]]
    assert [row[5][1] for row in rows] == [row["measured"]["init_std"] for row in AUDIT["parameters"]]
    assert [row[5][0] for row in rows] == ["0.05", "0.03512, rule 0.07025", "0.03512", "0.03512"]
    assert [row[9][0] for row in rows] == ["ok", "DEPARTS: init_std", "ok", "ok"]
    roles = [[cell[0] for cell in row] for row in table(read, "role", "parameters")]
    assert roles == [
        ["input", "1", "1", "0.01", "1e-08", "0.1", "ok"],
        ["hidden", "1", "2", "0.005", "5e-09", "0.2", "DEPARTS: init_std"],
        ["hidden", "2", "2", "0.005", "5e-09", "0.2", "ok"],
    ]
    assert "4 parameters, 1 forward factors: 1 departures from the rules" in read.text and "mlp.odd has" in read.text
    [factor] = table(read, "forward factor", "rule")
    assert [cell[1] for cell in factor[1:3]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("moves", "options", "code", "status"),
    [
        (0.0, [], 0, "pass"),
        (0.8, [], 0, "fail"),  # without a limit the tool always exits with 0
        (0.1, ["--max-drift", "0.05"], 1, "fail"),
        (0.1, ["--max-drift", "0.2"], 0, "pass"),
        (0.8, ["--max-drift", "1.0"], 0, "pass"),
    ],
)
def test_the_report_and_the_tool_agree_on_a_landscape(tmp_path, moves, options, code, status):
    family = synthetic.sweep(lambda w: -7.3 - moves * math.log2(w / 64), widths=(64, 128), seeds=(1, 2), noise=0.001)
    runs = synthetic.write(family, tmp_path / "runs")
    assert lr_landscape.main([str(runs), "--out", str(tmp_path / "lr"), *options]) == code
    assert lr_landscape_section.section(tmp_path / "lr.json").status == status


def test_the_shaded_band_has_the_limits_of_the_verdict(tmp_path):
    up, sp = list(coord_records(0.0)), list(coord_records(0.8))
    strict = Thresholds(max_slope=0.1, min_slope=-0.2)
    outcomes = {"up": verdict(up, reference=sp, thresholds=strict).as_dict(), "sp": verdict(sp).as_dict()}
    (tmp_path / "check.json").write_text(json.dumps(outcomes))
    [figure, *_] = coord_check.section(tmp_path / "check.json").blocks
    [band] = figure.layout["shapes"]
    assert (band["x0"], band["x1"]) == (-0.2, 0.1) and "-0.2 to 0.1, passes" in figure.alt


def test_the_page_is_well_formed_self_contained_and_accessible(page, read):
    assert not read.open
    names = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for tag, attributes in read.elements:
        for key in ("src", "href"):
            target = attributes.get(key, "#")
            assert target.startswith("#") and (target == "#" or target[1:] in names) or target == "data:,"
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in names
        if "plot" in attributes.get("class", "").split():
            assert attributes["role"] == "img" and len(attributes["aria-label"]) > 40
        if tag == "select":
            assert attributes["aria-label"]
        if tag == "div" and attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0" and attributes["aria-label"]
    assert not [tag for tag, _ in read.elements if tag in ("img", "iframe", "object")]
    assert "default-src 'none'" in page.read_text(encoding="utf-8")
    assert EVIL in read.text  # as text, in title and warning


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    """Contrast ratio of two colours (WCAG 2.2, 1.4.3)."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_text_and_lines_light_and_dark():
    style = (Path(html.__file__).parent / "style.css").read_text()
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root[^{]*{([^}]*)}", style)
    ]
    assert len(themes) == 2
    for theme in themes:
        for text, ground in (
            *(("text", "card"), ("text", "page"), ("muted", "card"), ("muted", "page"), ("accent", "card")),
            *(("good", "good-soft"), ("bad", "bad-soft"), ("accent", "note-soft"), ("text", "bad-soft")),
        ):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for i in range(8):
            assert contrast(theme[f"c{i}"], theme["card"]) >= 3, i


def test_sections_are_optional_and_forecasts_can_be_compared(inputs, tmp_path):
    other = json.loads((inputs / "forecast.json").read_text())
    del other["bands"]  # a forecast can lack bands
    del other["targets"][0]["actual"], other["targets"][0]["inside"], other["targets"][0]["relative_error"]
    (tmp_path / "sp.json").write_text(json.dumps(other))
    out = tmp_path / "r.html"
    report.main(["--forecast", str(inputs / "forecast.json"), str(tmp_path / "sp.json"), "--out", str(out)])
    figures = json.loads(Reader(without_scripts(out.read_text(encoding="utf-8"))).scripts["figures"])
    assert [figure["name"] for figure in figures] == ["ladder-forecast", "ladder-sp"]
    with pytest.raises(ConfigError, match="nothing to report"):
        report.main(["--out", str(out)])


@pytest.mark.parametrize(
    "option, content, message",
    [
        ("--lr-landscape", None, r"x\.json cannot be read"),
        ("--lr-landscape", "{", r"x\.json is not JSON: .*lr_landscape\.py"),
        ("--lr-landscape", "{}", r"x\.json is not what tools/mup/lr_landscape\.py writes: it has no `points`"),
        ("--width-check", "[]", r"is not what tools/mup/width_check\.py writes"),
        ("--coord-check", '{"up": {}, "sp": {}}', "`up` has no rows"),
        ("--forecast", '{"targets": []}', "it has no `parameters`"),
        (
            "--audit",
            "audit: PASS",
            r"x\.json is not JSON: expected the file that `tools/mup/audit\.py .* --json",
        ),
        ("--audit", '{"passed": true}', r"x\.json is not what `tools/mup/audit\.py .* writes: it has no `parameters`"),
        (
            "--audit",
            json.dumps(AUDIT | {"factors": [{"name": "logits"}]}),
            r"x\.json is not what .*: a row lacks 'expected'",
        ),
    ],
)
def test_an_invalid_input_is_named_and_nothing_is_written(tmp_path, option, content, message):
    path, out = tmp_path / "x.json", tmp_path / "out.html"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        report.main([option, str(path), "--out", str(out)])
    assert not out.exists()


def test_without_plotly_the_extra_is_named(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"pip install -e \.\[report\]"):
        report.main(["--audit", str(inputs / "audit.json"), "--out", str(tmp_path / "r.html")])


# Runs in the page after its script, acts as a reader, and stores its observations in the document.
PROBE = """
<script>
const seen = { drawn: document.querySelectorAll(".plot .main-svg").length > 0 };
const traces = (plot) => plot.querySelectorAll(".scatterlayer .trace").length;
seen.plots = [...document.querySelectorAll(".plot")].map(traces);
seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const ink = () => getComputedStyle(document.body).color + document.querySelector(".plot .xtick text").style.fill;
const light = ink();
document.getElementById("theme").click();
seen.dark = document.documentElement.dataset.theme;
seen.recoloured = ink() !== light;
const ladder = document.getElementById("ladder");
const [logX, logY] = ladder.querySelectorAll("button[data-axis]");
const kinds = () => ["xaxis", "yaxis"].map((axis) => ladder.querySelector(".plot")._fullLayout[axis].type);
const runs = ladder.querySelector(".plot")._fullData.findIndex((trace) => trace.name === "fitted runs");
Plotly.Fx.hover(ladder.querySelector(".plot"), [{ curveNumber: runs, pointNumber: 2 }]);
seen.hover = [...ladder.querySelectorAll(".hovertext")].map((label) => label.textContent).join(" ");
seen.before = [...kinds(), logX.getAttribute("aria-pressed"), logY.getAttribute("aria-pressed")];
logX.click(); logY.click();
seen.after = [...kinds(), logX.getAttribute("aria-pressed"), logY.getAttribute("aria-pressed")];
const chooser = document.querySelector("#coord-up select"), plot = document.querySelector("#coord-up .plot");
const visible = () => plot._fullData.filter((trace) => trace.visible === true).map((trace) => trace.index);
const first = visible();
chooser.selectedIndex = 0; chooser.dispatchEvent(new Event("change"));
seen.views = [first, visible()];
window.dispatchEvent(new Event("beforeprint"));
seen.print = [document.querySelectorAll("details:not([open])").length, document.documentElement.dataset.theme];
window.dispatchEvent(new Event("afterprint"));
seen.afterPrint = [document.querySelectorAll("details[open]").length, document.documentElement.dataset.theme];
document.body.dataset.seen = JSON.stringify(seen);
</script>
</body>
"""


@pytest.fixture(scope="module")
def in_browser(page, tmp_path_factory):
    """The document and the log of headless Chromium for the page, at the width of a phone."""
    if BROWSER is None:
        pytest.skip("this machine has no Chromium (apt-get install chromium), so the page is not drawn in a browser")
    folder = tmp_path_factory.mktemp("browser")
    probed = folder / "report.html"
    before, _, after = page.read_text(encoding="utf-8").rpartition("</body>")
    probed.write_text(before + PROBE + after, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        "--window-size=500,900",
        "--dump-dom",
        probed.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=240)
    return done.stdout.decode(), done.stderr.decode(errors="replace")


@pytest.mark.slow
def test_a_browser_draws_the_whole_page_without_errors(in_browser, inputs):
    document, log = in_browser
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    drawn = re.search(r'data-drawn="(\d+)"', document)
    assert drawn and int(drawn[1]) == 10
    seen = json.loads(unescape(re.search(r"<body[^>]* data-seen=\"([^\"]*)\"", document)[1]))
    assert seen["drawn"] and len(seen["plots"]) == 10 and all(traces >= 2 for traces in seen["plots"])
    assert seen["overflow"] <= 0
    assert "run 2" in seen["hover"] and "3.4000" in seen["hover"]
    assert seen["dark"] == "dark" and seen["recoloured"]
    assert seen["before"] == ["log", "linear", "true", "false"] and seen["after"] == ["linear", "log", "false", "true"]
    assert seen["views"] == [[6, 7, 8], [0, 1, 2]], "it opens on the last step"
    assert seen["print"] == [0, "light"] and seen["afterPrint"] == [0, "dark"]


@pytest.mark.slow
def test_numbers_in_the_browser_document_match_the_inputs(in_browser, inputs):
    body = re.sub(r"<script.*?</script>|<svg.*?</svg>|<style.*?</style>", "", in_browser[0], flags=re.S)
    body = re.search(r"<main.*</main>", body, flags=re.S)[0]
    check_numbers(Reader(body), inputs)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_nothing_is_cut_at_390_pixels(page, tmp_path):
    """A frame of 390 pixels: the page is no wider, and whatever is wider than its part of the page scrolls there."""
    probe = """<body><iframe id="frame" width="390" height="900" style="border:0"></iframe><script>
    const frame = document.getElementById("frame");
    frame.srcdoc = SOURCE;
    const look = () => {
      const inside = frame.contentDocument, root = inside.documentElement;
      if (!root.dataset.drawn) return setTimeout(look, 200);
      const scrolls = (element) => element.closest(".scroll, nav, .plot, svg, select, .skip");
      const wide = [...inside.querySelectorAll("main *")].filter(
        (element) => !scrolls(element) && element.getBoundingClientRect().right > 391);
      document.body.dataset.width = frame.contentWindow.innerWidth;
      document.body.dataset.overflow = root.scrollWidth - frame.contentWindow.innerWidth;
      document.body.dataset.wide = wide.map((element) => element.outerHTML.slice(0, 80)).join(" ");
      const figures = [...inside.querySelectorAll(".plot svg.main-svg")];
      document.body.dataset.figures = figures.every((figure) => figure.getBoundingClientRect().right <= 391);
    };
    frame.onload = look;
    </script></body>"""
    source = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    file = tmp_path / "narrow.html"
    file.write_text(probe.replace("SOURCE", source), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--dump-dom"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, timeout=240, text=True)
    body = re.search("<body[^>]*>", done.stdout)[0]
    values = {name: re.search(f'data-{name}="([^"]*)"', body)[1] for name in ("width", "overflow", "wide", "figures")}
    assert int(values.pop("overflow")) <= 0
    assert values == {"width": "390", "wide": "", "figures": "true"}


def test_the_forecast_comes_first_with_its_headline(page, read):
    text = page.read_text(encoding="utf-8")
    assert text.index('<section id="forecast"') < text.index('<ul class="cards">') < text.index('<section id="audit"')
    headline = "6.7B parameters: 2.512, 90% interval 2.470 to 2.550, 12.5 times the largest run; actual 2.500, inside"
    assert headline in unescape(text)


def test_the_default_title_names_what_is_forecast(inputs, tmp_path, capsys):
    out = tmp_path / "report.html"
    report.main(["--forecast", str(inputs / "forecast.json"), "--out", str(out)])
    assert "<h1>Forecast for 6.7B parameters</h1>" in out.read_text(encoding="utf-8")


def metrics(folder, flops, tokens, **config):
    monitor = JsonlMonitor(folder / "metrics.jsonl")
    monitor.start(
        {"config": config, "model": {"params": 1e6, "flops_per_token": flops}, "corpus": {"sha256": "a" * 64}}
    )
    monitor.log({"step": 10, "tokens": tokens, "train/loss": 3.5, "valid/loss": 3.25})
    monitor.close()


def test_search_cost_and_sample_are_reported(tmp_path):
    for i in range(3):
        metrics(tmp_path / f"search/trial{i}", 2e6, 1000)
    metrics(tmp_path / "ladder/w32", 4e6, 1000)
    metrics(tmp_path / "target", 6e7, 1000, data_path="data/mine")
    (tmp_path / "search/best.yml").write_text("overlay: true\nlr: 0.0078125\nmup-init-scale: 2.5\n")
    (tmp_path / "sample.txt").write_text(json.dumps({"context": "def f(", "text": f"x): {EVIL}"}) + "\n")
    parts = {name: str(tmp_path / name) for name in ("search", "ladder", "target")} | {
        "sample": str(tmp_path / "sample.txt")
    }
    out = tmp_path / "report.html"
    report.main([*(word for name, path in parts.items() for word in (f"--{name}", path)), "--out", str(out)])
    read = Reader(without_scripts(out.read_text(encoding="utf-8")))
    costs = {row[0][0]: [cell[1] for cell in row[1:]] for row in table(read, "part", "runs", "training FLOPs")}
    assert costs["search"] == [3, 6e9, pytest.approx(0.1)] and costs["ladder"] == [1, 4e9, pytest.approx(4 / 60)]
    assert {row[0][0]: row[1][1] for row in table(read, "key", "value")} == {"lr": 0.0078125, "mup-init-scale": 2.5}
    assert "The search cost 10% of one training of the target, instead of 3 trainings" in read.text
    assert f"def f(x): {EVIL}" in read.text and "data/mine" in read.text


def test_the_report_is_served_on_this_machine_only(inputs):
    pages = iter(["first", DataError("no runs <yet>")])

    def make():
        page = next(pages)
        if isinstance(page, Exception):
            raise page
        return page

    with serve.server(make, 0, 3.0) as serving:
        assert serving.server_address[0] == "127.0.0.1"
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{serving.server_port}/"
        with urllib.request.urlopen(address) as answer:
            assert answer.read() == b"first"
        with urllib.request.urlopen(address) as answer:
            text = answer.read().decode()
        assert "no runs &lt;yet&gt;" in text and 'content="3"' in text
        serving.shutdown()

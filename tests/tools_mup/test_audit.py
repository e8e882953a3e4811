"""tools/mup/audit.py as a user runs it: its help and its JSON. The report reads only the JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from muneox.commands import report
from tests.training.harness import ROOT, configuration, environment, make_corpus


def run(*arguments, **variables):
    command = [sys.executable, str(ROOT / "tools/mup/audit.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    """Printed text and JSON with UTF-8 output, with ASCII output and with forced colours."""
    folder = tmp_path_factory.mktemp("audit")
    config = configuration(make_corpus(folder / "text_document"), folder / "log", init_method_std=0.05)
    (folder / "config.json").write_text(json.dumps(config))
    outputs = {"plain": {"PYTHONIOENCODING": "utf-8"}, "ascii": {"PYTHONIOENCODING": "ascii"}}
    outputs["colours"] = {"PYTHONIOENCODING": "utf-8", "FORCE_COLOR": "1"}
    for name, variables in outputs.items():
        done = run(folder / "config.json", "--json", folder / f"{name}.json", **variables)
        assert done.returncode == 0, done.stderr.decode()
        (folder / f"{name}.txt").write_bytes(done.stdout)
    return folder


def test_the_help_belongs_to_the_tool():
    done = run("--help")
    text = done.stdout.decode()
    assert done.returncode == 0 and text.startswith("usage: audit.py CONFIG... [options] [--key value ...]")
    assert "--json" in text and "--brief" in text


@pytest.mark.xdist_group("audit")
def test_the_json_holds_every_parameter_with_its_measures(audits):
    """From base width 16 to width 64, hidden weights get a quarter of the rate and of the variance (TP-V)."""
    content = json.loads((audits / "plain.json").read_text())
    assert content["passed"] is True
    rows = {row["name"]: row for row in content["parameters"]}
    [hidden, *_] = (row for row in rows.values() if row["role"] == "hidden" and row["fan_in_mult"] == 4)
    assert hidden["measured"]["lr"] == pytest.approx(0.01 / 4)
    assert hidden["measured"]["init_std"] == pytest.approx(0.05 / 2, rel=0.05)
    text = (audits / "plain.txt").read_text()
    assert text.rstrip().endswith("audit: PASS") and len(rows) > 10
    assert {row["name"] for row in content["factors"]} >= {"embedding", "logits"}


@pytest.mark.xdist_group("audit")
def test_the_report_does_not_depend_on_the_terminal(audits, tmp_path):
    pages = {}
    for name in ("plain", "ascii", "colours"):
        report.main(["--audit", str(audits / f"{name}.json"), "--out", str(tmp_path / f"{name}.html")])
        page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        pages[name] = page[page.index("<main") : page.index("</main>")]
        assert "layers.1" in pages[name] and "\x1b" not in pages[name]
    assert pages["plain"] == pages["ascii"] == pages["colours"]


@pytest.mark.xdist_group("audit")
@pytest.mark.parametrize("name", ["plain", "ascii", "colours"])
def test_the_printed_text_is_refused_in_one_sentence(audits, tmp_path, name):
    command = [sys.executable, str(ROOT / "tools/scaling/report.py"), "--audit", str(audits / f"{name}.txt")]
    command += ["--out", str(tmp_path / "page.html")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and len(done.stderr.strip().splitlines()) == 1
    assert f"{name}.txt is not JSON" in done.stderr and "--json FILE" in done.stderr
    assert not (tmp_path / "page.html").exists()

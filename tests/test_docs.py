"""The documentation as a site: every page is in it, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml

from tests.training.harness import ROOT

needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs the extra docs")


def pages_of(nav):
    """Paths in the navigation of mkdocs.yml."""
    for entry in nav:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from pages_of(target) if isinstance(target, list) else [target]


def test_every_guide_is_in_the_navigation():
    nav = set(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert written <= nav
    assert all((ROOT / page).is_file() for page in nav if not page.startswith("api/"))


class Links(HTMLParser):
    """Relative targets of the links and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.targets = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value and not re.match(r"[a-z]+:|#|//", value):
                self.targets.add(value.partition("#")[0])


@needs_mkdocs
@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_lead_to_files(tmp_path):
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "index.html", tmp_path / "README-MUP.html", *(tmp_path / "docs").glob("*.html")):
        missing = {target for target in Links(page.read_text()).targets if not (page.parent / target).exists()}
        assert not missing, f"{page.name}: {missing}"
    api = (tmp_path / "api" / "mup.html").read_text()
    assert "mup.coord_check.coord_records" in api and "Train each model on one fixed batch" in api
    assert "https://fonts." not in api, "the site loads nothing from other servers"

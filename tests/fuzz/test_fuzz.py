"""Every parser of the fuzzer reads its own seeds without a fault, and withstands mutated input for some seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.fuzz.parsers import PARSERS
from tests.fuzz.worker import attempt


@pytest.mark.parametrize("name", PARSERS)
def test_the_seeds_are_read_without_a_fault(name, tmp_path):
    parser = PARSERS[name]
    for content in parser.seeds():
        assert attempt(parser, content, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_mutated_input_is_accepted_or_refused_with_one_message(name, tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.worker", name, "5", "0", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["inputs"] > 20 and result["failures"] == {}

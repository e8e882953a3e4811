"""For all tests: one thread a process, and no deadlines, since a busy machine is no defect."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("tests", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)  # a landing must not hang on a draw
settings.load_profile("ci" if os.environ.get("CI") else "tests")
